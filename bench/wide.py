"""Events with seven further columns, optional text, uuid, numeric and nullable ones, from PostgreSQL into ClickHouse.

The same cases as for narrow rows as far as they make sense: the limit, the product's one window, and `postgresql()`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from bench.datapath import (
    ENOUGH_ROUNDS,
    FUNCTION,
    PATIENCE_SECONDS,
    WINDOW,
    empty_table,
    read_by_libpq,
    read_by_socket,
    read_statement,
)
from bench.measures import Findings, Goal, Line, paired, rotated
from bench.rows import CAMPAIGNS, Totals, add_campaigns, source_totals, target_totals
from bench.stage import Options, Stage, connected
from worker import pipeline
from worker.celery import Servers
from worker.sink import quoted
from worker.streams import EVENTS_TABLE, STREAMS, Extra
from worker.windows import ORIGIN, Window

EXTRA = (
    Extra("placement", "String"),
    Extra("device", "Nullable(String)"),
    Extra("session", "UUID"),
    Extra("price", "Decimal(18, 6)"),
    Extra("viewport", "Nullable(Int32)"),
    Extra("score", "Nullable(Float64)"),
    Extra("seen", "Nullable(DateTime64(6, 'UTC'))"),
)
IMPRESSIONS = replace(STREAMS["impressions"], extra=EXTRA)
GROUP = "data path, wide rows"
LIMIT = "limit"
CASES = (LIMIT, WINDOW, FUNCTION)


@dataclass(frozen=True, slots=True)
class WideTotals:
    """Totals of the four columns every event has, and of the seven further ones: lengths, sums and counts."""

    narrow: Totals
    placements: int
    devices: int
    device_bytes: int
    sessions: int
    micro_price: int
    viewports: int
    viewport_sum: int
    score_sum: int
    seen_sum: int


def wide_source(stage: Stage, rows: int) -> str:
    """The DSN of a new source with that many wide impressions, evenly over the last eight days but one."""
    dsn = stage.source("wide")
    with connected(dsn) as connection, connection.cursor() as cursor:
        add_campaigns(connection)
        cursor.execute(
            "ALTER TABLE impressions ADD placement text NOT NULL DEFAULT '', ADD device text, "
            "ADD session uuid NOT NULL DEFAULT gen_random_uuid(), ADD price numeric(18, 6) NOT NULL DEFAULT 0, "
            "ADD viewport int, ADD score float8, ADD seen timestamptz"
        )
        cursor.execute("SET session_replication_role = replica")
        cursor.execute("SET synchronous_commit = off")
        cursor.execute(
            """
            INSERT INTO impressions
                (campaign_id, created_at, inserted_at, placement, device, session, price, viewport, score, seen)
            SELECT
                1 + n %% %(campaigns)s,
                at,
                at,
                'https://shop.example/' || repeat(chr(97 + (n %% 26)::int), (n %% 40)::int),
                CASE WHEN n %% 3 <> 0 THEN 'device ' || n %% 100 END,
                md5(n::text)::uuid,
                n * 0.001234,
                CASE WHEN n %% 5 <> 0 THEN (n %% 2000)::int END,
                CASE WHEN n %% 7 <> 0 THEN n / 7.0 END,
                CASE WHEN n %% 4 <> 0 THEN at + interval '3 s' END
            FROM generate_series(1, %(rows)s::bigint) AS n
            CROSS JOIN LATERAL (SELECT now() - interval '8 days' + n * interval '0.6 s' * (1e6 / %(rows)s) AS at) AS times
            """,
            {"campaigns": CAMPAIGNS, "rows": rows},
        )
        cursor.execute("VACUUM (FREEZE, ANALYZE) impressions")
        cursor.execute("CHECKPOINT")
    return dsn


def wide_source_totals(dsn: str) -> WideTotals:
    """Totals of the source."""
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT sum(octet_length(placement)), count(device), sum(octet_length(device)),
                sum(('x' || left(session::text, 8))::bit(32)::bigint), (sum(price) * 1000000)::bigint,
                count(viewport), sum(viewport), sum(round(score * 7)::bigint),
                sum((extract(epoch FROM seen) * 1000000)::bigint)
            FROM impressions
            """
        )
        found = cursor.fetchone()
    assert found is not None  # noqa: S101 - an aggregate has one row
    return WideTotals(source_totals(dsn), *(int(value) for value in found))


def wide_target_totals(here: Servers, table: str) -> WideTotals:
    """Totals of a target table, each event once."""
    (found,) = here.sink.query(
        "adding up a wide table",
        f"""
        SELECT sum(length(placement)), count(device), sum(length(device)),
            sum(toInt128(reinterpretAsUInt32(reverse(unhex(left(toString(session), 8)))))), sum(toInt128(price * 1000000)),
            count(viewport), sum(viewport), sum(toInt128(round(score * 7))), sum(toInt128(toUnixTimestamp64Micro(seen)))
        FROM {quoted(table)} FINAL WHERE event_type = 'impression'
        """,  # noqa: S608 - a quoted name
    )
    return WideTotals(target_totals(here.sink, table), *(int(value) for value in found))


class _Path:
    """The cases on one source. Each returns rows per second, or None where the totals of both sides differ."""

    def __init__(self, here: Servers) -> None:
        self._here, self._window = here, Window(ORIGIN, here.source.now())
        self._statement = read_statement(here, IMPRESSIONS, self._window)
        self._totals = wide_source_totals(here.settings.source_dsn)

    def once(self, case: str) -> float | None:
        """One round of one case."""
        rows, dsn = self._totals.narrow.count, self._here.settings.source_dsn
        if case == LIMIT:
            return rows / min(read_by_socket(dsn, self._statement), read_by_libpq(dsn, self._statement))
        with empty_table(self._here) as table:
            seconds = self._load(table) if case == WINDOW else self._load_by_function(table)
            return rows / seconds if wide_target_totals(self._here, table) == self._totals else None

    def _load(self, table: str) -> float:
        here, begun = self._here, time.perf_counter()
        pipeline.load_window(
            here.source,
            here.sink,
            here.ledger,
            here.settings,
            IMPRESSIONS,
            self._window,
            table=table,
            uuid=here.sink.uuid(table),
        )
        return time.perf_counter() - begun

    def _load_by_function(self, table: str) -> float:
        parts = urlsplit(self._here.settings.source_dsn)
        names = ", ".join(extra.name for extra in EXTRA)
        statement = f"""
            INSERT INTO {quoted(table)} (event_type, event_id, campaign_id, created_at, inserted_at, _version, {names})
            SELECT 'impression', id, ifNull(campaign_id, 0), created_at, inserted_at, 1, {names}
            FROM postgresql('{parts.hostname}:{parts.port}', '{parts.path[1:]}', 'impressions', '{parts.username}',
                '{parts.password}')
        """  # noqa: S608 - addresses and names of our own making
        begun = time.perf_counter()
        self._here.sink.command("reading PostgreSQL", statement, retry=False)
        return time.perf_counter() - begun


def measure(stage: Stage, options: Options) -> Findings:
    """All cases in alternation, after one round that does not count. Leaves nothing behind in ClickHouse."""
    rows = options.size(1_000_000, quick=100_000, full=1_000_000)
    here = Servers.open(stage.settings(wide_source(stage, rows)))
    samples: dict[str, list[float]] = {case: [] for case in CASES}
    troubles: dict[str, str] = {}
    try:
        for extra in EXTRA:
            here.sink.command("widening", f"ALTER TABLE {EVENTS_TABLE} ADD COLUMN {quoted(extra.name)} {extra.type}")
        path, begun = _Path(here), time.monotonic()
        for number in range(-1, options.rounds):
            if number >= ENOUGH_ROUNDS and time.monotonic() - begun > PATIENCE_SECONDS / 2:
                break
            for case in rotated(CASES, number):
                if case in troubles:
                    continue
                try:
                    rate = path.once(case)
                except Exception as error:  # a case that fails is a finding; the others go on
                    troubles[case] = f"{type(error).__name__}: {str(error)[:200]}"
                    continue
                if rate is None:
                    troubles[case] = "source and target do not agree"
                elif number >= 0:
                    samples[case].append(rate)
    finally:
        here.close()
        stage.drop(here.settings)
    return findings(samples, troubles, rows)


def findings(samples: dict[str, list[float]], troubles: dict[str, str], rows: int) -> Findings:
    """Lines and goals of the samples, rows per second by case."""
    good = {case: () if case in troubles else tuple(values) for case, values in samples.items()}
    notes = {
        LIMIT: f"the COPY of {rows:,} rows of eleven columns, thrown away, the faster way",
        WINDOW: "COPY → columns → blocks, verified and committed, one warm process",
        FUNCTION: "INSERT … SELECT … FROM postgresql(…), whole table",
    }
    result = Findings()
    for case in CASES:
        others = {name: good[name] for name in (LIMIT, FUNCTION) if case != LIMIT or name == LIMIT}
        ratios = {name: paired(good[case], other) for name, other in others.items() if good[case] and other}
        failed = case in troubles
        note = troubles.get(case, notes[case])
        result.lines.append(Line(GROUP, case, "rows/s", good[case], ratios, note, "failed" if failed else "ok"))
    result.goals += [
        Goal("one window, wide, of the limit", "at least", 0.5, "×", paired(good[WINDOW], good[LIMIT])),
        Goal("one window, wide, of postgresql()", "at least", 1.3, "×", paired(good[WINDOW], good[FUNCTION])),
    ]
    return result
