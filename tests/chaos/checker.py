"""Compares PostgreSQL with ClickHouse, row by row and day by day, without the product's own comparisons.

Also: watermarks in Redis against the ledger, and what must not be left over. Call `check` while nobody writes.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psycopg2
from clickhouse_driver import Client
from numpy.typing import NDArray

from tests.agreement import day_of_quarter
from tests.chaos.stage import Stage, Violation, eventually
from worker import dimensions, metrics, refresh
from worker.streams import EVENT_STREAMS, EVENTS_TABLE, STREAMS

LOADABLE = "created_at >= '1900-01-02T00:00:00Z' AND created_at < '2299-12-30T00:00:00Z'"
"""What the product promises to load; the rest it promises to set aside."""

EVENTS = f"""
COPY (
    SELECT id, coalesce(campaign_id, 0), (extract(epoch FROM created_at) * 1000000)::bigint,
        (extract(epoch FROM inserted_at) * 1000000)::bigint
    FROM {{table}} WHERE {LOADABLE} ORDER BY id
) TO STDOUT
"""

PERFORMANCE = f"""
WITH
    events AS (
        SELECT 1 AS impression, 0 AS click, campaign_id, created_at FROM impressions WHERE {LOADABLE}
        UNION ALL SELECT 0, 1, campaign_id, created_at FROM clicks WHERE {LOADABLE}
    ),
    cut AS (
        SELECT quarter, day FROM unnest(%(quarters)s::bigint[], %(days)s::text[]) AS cut (quarter, day)
    ),
    daily AS (
        SELECT day, coalesce(campaign_id, 0) AS campaign_id, sum(impression) AS impressions, sum(click) AS clicks
        FROM events JOIN cut ON quarter = floor(extract(epoch FROM created_at) / 900)::bigint
        GROUP BY 1, 2
    )
SELECT day, daily.campaign_id, impressions, clicks, (clicks * coalesce(bid, 0))::numeric(38, 9)::text,
    CASE WHEN campaign.id IS NULL AND daily.campaign_id <> 0 THEN clicks ELSE 0 END AS unpriced
FROM daily LEFT JOIN campaign ON campaign.id = daily.campaign_id AND campaign.id <> 0
"""

QUARTERS = f"""
SELECT DISTINCT floor(extract(epoch FROM created_at) / 900)::bigint FROM impressions WHERE {LOADABLE}
UNION SELECT DISTINCT floor(extract(epoch FROM created_at) / 900)::bigint FROM clicks WHERE {LOADABLE}
"""

Table = NDArray[np.int64]


@dataclass
class Findings:
    """What one comparison found. Empty lists are good news."""

    rows: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)
    quarantine: list[str] = field(default_factory=list)
    state: list[str] = field(default_factory=list)
    quarantined: int = 0
    physical: int = 0

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.wrong

    @property
    def wrong(self) -> dict[str, list[str]]:
        """What is wrong, by kind."""
        kinds = {
            "lost": self.lost,
            "doubled": self.doubled,
            "stale": self.stale,
            "metrics": self.metrics,
            "quarantine": self.quarantine,
            "state": self.state,
        }
        return {kind: found for kind, found in kinds.items() if found}

    def told(self) -> str:
        """Each kind with its number and its first cases."""
        return "; ".join(f"{kind}: {len(found)} ({', '.join(found[:4])})" for kind, found in self.wrong.items())


@contextmanager
def _client(stage: Stage, **settings: Any) -> Iterator[Client]:
    address = stage.settings.sink_address
    client = Client(
        host=address.host,
        port=address.port,
        user=address.user,
        password=address.password,
        database=address.database,
        connect_timeout=5,
        send_receive_timeout=120,
        settings=settings,
    )
    try:
        yield client
    finally:
        client.disconnect()


def _source_events(stage: Stage, name: str) -> Table:
    buffer = io.StringIO()
    with stage.postgres() as connection, connection.cursor() as cursor:
        cursor.copy_expert(EVENTS.format(table=name), buffer)
    if not buffer.tell():
        return np.empty((0, 4), dtype=np.int64)
    return np.fromstring(buffer.getvalue(), dtype=np.int64, sep=" ").reshape(-1, 4)


def _target_events(stage: Stage, kind: str) -> Table:
    statement = f"""
        SELECT event_id, campaign_id, toUnixTimestamp64Micro(created_at), toUnixTimestamp64Micro(inserted_at)
        FROM ad_events FINAL WHERE event_type = '{kind}'
    """
    with _client(stage, use_numpy=True) as client:
        columns = client.execute(statement, columnar=True)
    if not columns:
        return np.empty((0, 4), dtype=np.int64)
    found = np.column_stack([np.asarray(column, dtype=np.int64) for column in columns])
    return found[np.argsort(found[:, 0], kind="stable")]


def compare_events(stage: Stage, findings: Findings) -> None:
    """For every (event_type, id): exactly one logical row with equal columns."""
    for stream in EVENT_STREAMS:
        expected, found = _source_events(stage, stream.source_table), _target_events(stage, stream.event_type)
        findings.rows += len(expected)
        if expected.shape == found.shape and np.array_equal(expected, found):
            continue
        ids, times = np.unique(found[:, 0], return_counts=True)
        findings.doubled += [f"{stream.name} {event} {n} times" for event, n in zip(ids, times, strict=True) if n > 1]
        wanted = expected[:, 0]
        findings.lost += [f"{stream.name} {event}" for event in np.setdiff1d(wanted, ids)]
        # Held although the source has no such row, or has one that must be set aside.
        findings.doubled += [f"{stream.name} {event} not at the source" for event in np.setdiff1d(ids, wanted)]
        first = found[np.unique(found[:, 0], return_index=True)[1]]
        both = np.intersect1d(wanted, ids)
        ours, theirs = expected[np.isin(wanted, both)], first[np.isin(first[:, 0], both)]
        differ = (ours != theirs).any(axis=1)
        findings.stale += [f"{stream.name} {event}" for event in ours[differ][:, 0]]


def compare_performance(stage: Stage, findings: Findings) -> None:
    """For every (day, campaign): equal impressions, clicks, spend, and clicks without a price."""
    with stage.postgres() as connection, connection.cursor() as cursor:
        cursor.execute(QUARTERS)
        quarters = [int(quarter) for (quarter,) in cursor.fetchall()]
        zone = stage.settings.reporting_timezone
        cursor.execute(PERFORMANCE, {"quarters": quarters, "days": [day_of_quarter(q, zone) for q in quarters]})
        expected = {(day, int(c)): (int(i), int(k), spend, int(n)) for day, c, i, k, spend, n in cursor.fetchall()}
    with _client(stage) as client:
        rows = client.execute(
            "SELECT toString(date_id), campaign_id, impressions_count, clicks_count, toString(spend_amount), "
            "unpriced_count FROM daily_campaign_performance"
        )
    found: dict[tuple[str, int], tuple[int, int, str, int]] = {}
    for day, c, i, k, spend, n in rows:
        if (day, int(c)) in found:
            findings.metrics.append(f"{day} campaign {c} is there twice")
        found[day, int(c)] = (int(i), int(k), _padded(spend), int(n))
    for key in sorted(expected.keys() | found.keys()):
        if expected.get(key) != found.get(key):
            findings.metrics.append(f"{key[0]} campaign {key[1]}: {expected.get(key)} became {found.get(key)}")


def _padded(amount: str) -> str:
    whole, _, cents = amount.partition(".")
    return f"{whole}.{cents:0<9}"


def compare_quarantine(stage: Stage, findings: Findings) -> None:
    """Every row that cannot be loaded is set aside with a reason."""
    with _client(stage) as client:
        held = client.execute("SELECT toString(stream), event_id, rule FROM quarantined_events FINAL")
    reasons = {(stream, event): rule for stream, event, rule in held}
    for stream in EVENT_STREAMS:
        rows = stage.write(f"SELECT id FROM {stream.source_table} WHERE NOT ({LOADABLE})")
        findings.quarantined += len(rows)
        findings.quarantine += [
            f"{stream.name} {event} is not set aside" for (event,) in rows if not reasons.get((stream.name, event))
        ]


def compare_watermarks(stage: Stage) -> list[str]:
    """Watermarks in Redis that are not what the ledger says. Computed here from the ledger's rows."""
    with _client(stage) as client:
        uuids = dict(
            client.execute("SELECT name, toString(uuid) FROM system.tables WHERE database = currentDatabase()")
        )
        commits = client.execute(
            "SELECT toString(stream), toString(target_uuid), toUnixTimestamp64Micro(lo), toUnixTimestamp64Micro(hi) "
            "FROM sync_commits ORDER BY lo"
        )
        proven = {
            (name, uuid): micros
            for name, uuid, micros in client.execute(
                "SELECT toString(stream), toString(target_uuid), toUnixTimestamp64Micro(max(checkpoint)) "
                "FROM sync_totals GROUP BY stream, target_uuid"
            )
        }
    wrong = []
    with stage.redis() as client_redis:
        for stream in STREAMS.values():
            uuid = uuids[stream.target]
            end = proven.get((stream.name, uuid), 0)
            for name, target, lo, hi in commits:
                if (name, target) == (stream.name, uuid) and lo <= end:
                    end = max(end, hi)
            told = json.loads(client_redis.get(f"retailmedia:watermark:{stream.name}") or "{}")
            at = told.get("at", "")
            micros = int(np.datetime64(at.rstrip("Z"), "us").astype(np.int64)) if at else -1
            if (micros, told.get("target_uuid")) != (end, uuid):
                wrong.append(f"{stream.name}: Redis has {at or 'nothing'}, the ledger {np.datetime64(end, 'us')}")
    return wrong


def leases(stage: Stage) -> dict[str, str]:
    """Leases and windows in flight, each with who holds it.

    A window whose time is over counts for nobody, and the next that asks takes it off: that a killed worker's is still
    listed where nothing new came to be planned is no lease left over.
    """
    found = {}
    with stage.redis() as client:
        for key in client.scan_iter("retailmedia:lease:*"):
            found[key] = str(client.get(key) or "")
        seconds, micros = client.time()
        for key in client.scan_iter("retailmedia:inflight:*"):
            for member in client.zrangebyscore(key, seconds * 1000 + micros // 1000, "+inf"):
                found[f"{key!s} {member!s}"] = "in flight"
    return {key: holder for key, holder in found.items() if holder}


def leftovers(stage: Stage) -> list[str]:
    """Staging and shadow tables."""
    with _client(stage) as client:
        rows = client.execute(
            "SELECT name FROM system.tables WHERE database = currentDatabase() AND "
            "(startsWith(name, 'ad_events_shadow_') OR name LIKE '%staging%')"
        )
    return [name for (name,) in rows]


def _newest_refresh_is_live(stage: Stage, findings: Findings) -> None:
    with _client(stage) as client:
        live = client.execute(
            "SELECT toString(uuid) FROM system.tables WHERE database = currentDatabase() AND name = 'ad_events'"
        )
        runs = client.execute(
            "SELECT run_id, toString(target_uuid), version, toString(state) FROM sync_runs FINAL WHERE kind = 'refresh'"
        )
    findings.state += [f"run {run} is still running" for run, _, _, state in runs if state == "running"]
    done = [(version, uuid, run) for run, uuid, version, state in runs if state == "succeeded" and version]
    if done:
        _, uuid, run = max(done)
        if uuid != live[0][0]:
            findings.state.append(f"refresh {run} is the newest, and another's table is live")


def check(stage: Stage, *, seconds: float = 60.0) -> tuple[Findings, float]:
    """Waits until everything agrees with nobody at work, and returns the last findings and how long that took.

    Call it while nobody writes. Findings that are still bad after `seconds` are returned as they are. What is read anew
    after a restore agrees before, while and after it is read: work in hand is no leftover, and may yet do harm.
    """
    began = time.monotonic()
    stage.send("worker.tasks.sync.plan", {"streams": ["advertisers", "campaigns"]}, "realtime", expires=30)
    while True:
        findings, busy = Findings(), True
        try:
            busy = bool(leases(stage))
            compare_events(stage, findings)
            compare_performance(stage, findings)
            compare_quarantine(stage, findings)
            _newest_refresh_is_live(stage, findings)
        except (psycopg2.Error, OSError, EOFError, KeyError) as error:
            findings.state.append(f"cannot look: {error}")
        took = time.monotonic() - began
        if (findings.good and not busy) or took > seconds:
            break
        time.sleep(0.3)
    findings.state += [told for told in stage.reports() if told.startswith("violation")]
    if findings.good:
        _check_upkeep(stage, findings)
    return findings, took


def _check_upkeep(stage: Stage, findings: Findings) -> None:
    try:
        eventually(lambda: not compare_watermarks(stage), "watermarks agree with the ledger", 10)
    except Violation:
        findings.state += compare_watermarks(stage)
    try:
        eventually(lambda: not leases(stage), "no lease is left", 2.5 * stage.settings.lease_seconds)
    except Violation:
        findings.state += [f"left over: {key}" for key in leases(stage)]
    with _client(stage) as client:
        findings.physical = client.execute("SELECT count() FROM ad_events")[0][0]
    remaining = set(leftovers(stage))
    deadline = time.monotonic() + 3
    while remaining and time.monotonic() < deadline:
        time.sleep(0.2)
        remaining &= set(leftovers(stage))
    if remaining:
        # What the product's sweep does, for tables that are older; nobody works on these any more.
        with stage.servers() as servers:
            for prefix in (metrics.STAGING, dimensions.DIMENSION_STAGING):
                servers.sink.drop_abandoned(prefix, 0)
            refresh.drop_abandoned(servers.sink, servers.ledger)
        findings.state += [f"left over: {name}" for name in remaining & set(leftovers(stage))]


def live_uuid(stage: Stage) -> str:
    """By which uuid the live table is known."""
    with stage.servers() as servers:
        return str(servers.sink.uuid(EVENTS_TABLE))
