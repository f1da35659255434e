"""Looks at the three servers and says what keeps the product from working there, and how to mend it. Changes nothing."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from worker import calendars, failing, migrate, money, sessions, sourcetypes, standing
from worker.config import Settings
from worker.errors import RetailMediaError, SinkFailure, Unreachable
from worker.idshape import CAUSE, SAMPLE, shape_of
from worker.ledger import Ledger
from worker.sessions import Seen
from worker.sink import Sink
from worker.source import Source, TableFacts
from worker.streams import DIMENSION_STREAMS, EVENT_STREAMS, STREAMS
from worker.watermarks import WatermarkStore
from worker.windows import instant

POSTGRES_AT_LEAST = (13,)
CLICKHOUSE_AT_LEAST = (24, 8)
REDIS_AT_LEAST = (6,)
ACCESS_DENIED = 497
"""What ClickHouse answers a user without the right."""

MISFITS_SHOWN = 5
"""Campaigns that cannot be kept, named at most."""

SKEW_WORTH_A_WORD = timedelta(seconds=5)

State = Literal["ok", "wrong", "unreachable", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `mend` says what to do, where something is wrong."""

    about: str
    what: str
    state: State
    found: str
    mend: str = ""


def examine(
    settings: Settings,
    *,
    now: Callable[[], datetime],
    workers: Callable[[], dict[str, set[str]]],
    queues: frozenset[str],
) -> Iterator[Finding]:
    """Every finding, as it is made. `workers` asks which workers answer and which queues each serves."""
    yield Finding(
        "settings",
        "reporting",
        "ok",
        f"days are cut in {settings.reporting_timezone}, spend is priced by {settings.pricing_model}",
    )
    yield from _server("PostgreSQL", "POSTGRES_DSN", lambda: _postgres(settings, now))
    yield from _server("ClickHouse", "CLICKHOUSE_DSN", lambda: _clickhouse(settings, now))
    redis = list(_server("Redis", "REDIS_URL", lambda: _redis(settings, now)))
    yield from redis
    yield from _failing(settings)
    if not any(finding.state == "unreachable" for finding in redis):
        yield from _workers(workers, queues)


def _server(about: str, name: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings about one server; its silence is one too, and ends them."""
    try:
        yield from look()
    except Unreachable as error:
        yield Finding(about, "reachable", "unreachable", str(error), f"check that it runs, and {name}")
    except RetailMediaError as error:
        yield Finding(about, "answers", "wrong", str(error), f"check {name} and the rights of its user")


def _postgres(settings: Settings, now: Callable[[], datetime]) -> Iterator[Finding]:
    with Source(settings) as source:
        source.ping()
        where = settings.server_label("postgres")
        facts = source.privileges()
        number = int(facts["version"])
        version = (number // 10_000, number % 10_000)
        yield _version("PostgreSQL", where, version, POSTGRES_AT_LEAST)
        if facts["standby"]:
            mend = "name the primary in POSTGRES_DSN; on a standby open transactions cannot be seen and rows are missed"
            yield Finding("PostgreSQL", "primary", "wrong", "it is a standby", mend)
        else:
            yield Finding("PostgreSQL", "primary", "ok", "it is a primary")
        if facts["reads_all_stats"]:
            found = f"role {facts['role']} sees when others' transactions began"
            yield Finding("PostgreSQL", "privilege", "ok", found)
            if facts["sees_statements"]:
                told = f"role {facts['role']} also sees others' statements, with every value in them"
                yield Finding(
                    "PostgreSQL", "rights", "note", told, "deploy/postgres/roles.sql makes a role that does not"
                )
        else:
            yield Finding(
                "PostgreSQL",
                "privilege",
                "wrong",
                f"role {facts['role']} cannot see when others' transactions began",
                f'as a superuser: GRANT pg_read_all_stats TO "{facts["role"]}"; or run deploy/postgres/roles.sql, '
                "which shows less",
            )
        seen = {found.name: found for found in source.seen()}
        whole: dict[str, bool] = {}
        for table in source.tables():
            finding = _table(table, facts["role"], seen[table.name])
            yield finding
            # Rows are looked at where all of them can be seen, and by an index.
            whole[table.name] = finding.state == "ok"
            if whole[table.name]:
                yield from _ids(source, table.name)
        yield from _columns(source, amounts=whole["campaign"])
        if not facts["standby"] and facts["reads_all_stats"]:
            horizon = source.horizon()
            if horizon.at is None:
                holder = horizon.holders[0]
                mend = f"COMMIT PREPARED or ROLLBACK PREPARED '{holder.who.removeprefix('prepared ')}';"
                told = f"held by {holder.who} of {holder.user}, nothing can be synced"
                yield Finding("PostgreSQL", "horizon", "wrong", told, mend)
            else:
                yield _horizon(horizon.taken_at - horizon.at, settings, [h.who for h in horizon.holders])
        yield _skew("PostgreSQL", source.now(), now())


def _horizon(behind: timedelta, settings: Settings, holders: list[str]) -> Finding:
    seconds = behind.total_seconds()
    told = f"{seconds:,.1f} s behind"
    if seconds >= settings.horizon_alert_seconds and holders:
        mend = f"end the transaction of {holders[0]}; rows committed since wait for it"
        return Finding("PostgreSQL", "horizon", "wrong", told, mend)
    return Finding("PostgreSQL", "horizon", "ok", told)


def _table(table: TableFacts, role: str, seen: Seen) -> Finding:
    """A source table; of event tables also what a watermark needs."""
    what = f"table {table.name}"
    schema = "create the source schema: any `retailmedia seed` command does, or run seed/schema.sql"
    if not table.exists:
        return Finding("PostgreSQL", what, "wrong", "it does not exist", schema)
    if not table.readable and not seen.some_columns:
        grant = f'as its owner: GRANT SELECT ON {table.name} TO "{role}";'
        return Finding("PostgreSQL", what, "wrong", f"role {role} may not read it", grant)
    dimension = table.name in {stream.source_table for stream in DIMENSION_STREAMS}
    if hidden := sessions.refusal(seen, events=not dimension):
        return Finding("PostgreSQL", what, "wrong", hidden, "nothing is synced from it until then")
    if dimension:
        return Finding("PostgreSQL", what, "ok", "it can be read")
    lacking = []
    if table.inserted_at not in sessions.STAMPS:
        lacking.append("inserted_at is missing" if not table.inserted_at else f"inserted_at is {table.inserted_at}")
    elif not table.not_null:
        lacking.append("inserted_at may be NULL")
    if not table.indexed:
        lacking.append("no index begins with inserted_at")
    if not table.triggered:
        lacking.append("no trigger moves inserted_at on UPDATE")
    if table.bare:
        lacking.append(f"{table.bare}, a part of it, lacks NOT NULL, such an index or such a trigger of its own")
    if lacking:
        return Finding("PostgreSQL", what, "wrong", ", ".join(lacking), "run seed/schema.sql as its owner")
    return Finding("PostgreSQL", what, "ok", "inserted_at, its index and its trigger are in place")


def _columns(source: Source, *, amounts: bool) -> Iterator[Finding]:
    """Columns of a type that can lose something on the way and, of `amounts`, campaigns that cannot be kept as they are."""
    types = source.column_types()
    for table, found in types.items():
        judged = sourcetypes.judge(table, found)
        if not judged:
            yield Finding("PostgreSQL", f"types {table}", "ok", "every column that is read is kept whole")
        for one in judged:
            yield Finding("PostgreSQL", f"{table}.{one.column}", one.state, one.found, one.mend)
    if not amounts or "campaign" not in types or not sourcetypes.readable_money("campaign", types["campaign"]):
        return
    limit = 10 ** (money.DIGITS - money.DECIMALS)
    for campaign, bid, budget in source.misfits(money.DECIMALS, limit, MISFITS_SHOWN):
        reason = money.refusal(campaign, bid, budget)
        if reason is not None:
            told, _, mend = reason.rstrip(".").rpartition("; ")
            yield Finding("PostgreSQL", f"campaign {campaign}", "wrong", told, mend)


def _ids(source: Source, table: str) -> Iterator[Finding]:
    """How the newest ids of an event table are spread, and whether they can be loaded."""
    for stream in EVENT_STREAMS:
        if stream.source_table == table:
            shape = shape_of(source.newest_ids(stream, SAMPLE))
            what = f"ids of {table}"
            if shape is None:
                yield Finding("PostgreSQL", what, "ok", "there are no rows yet")
            elif shape.scattered:
                mend = f"the table {CAUSE}; let its ids come from a sequence"
                yield Finding("PostgreSQL", what, "wrong", f"scattered: of the newest, {shape.told}", mend)
            else:
                yield Finding("PostgreSQL", what, "ok", f"{shape.word}: of the newest, {shape.told}")


def _clickhouse(settings: Settings, now: Callable[[], datetime]) -> Iterator[Finding]:
    address = settings.sink_address
    with Sink(settings, database="default") as bare:
        bare.ping()
        text, zone, clock = bare.named("doctor", "server")[0]
        where = settings.server_label("clickhouse")
        yield _version("ClickHouse", where, _numbers(text), CLICKHOUSE_AT_LEAST)
        found = bare.named("doctor", "database", {"database": address.database})
    if not found:
        told = f"database {address.database} does not exist"
        yield Finding("ClickHouse", "database", "wrong", told, "run `retailmedia migrate`")
        return
    engine, uuid = found[0]
    if engine not in {"Atomic", "Replicated"}:
        yield Finding(
            "ClickHouse",
            "database",
            "wrong",
            f"database {address.database} has engine {engine}, whose tables cannot be exchanged",
            "name a database of engine Atomic in CLICKHOUSE_DSN; `retailmedia migrate` creates one",
        )
    else:
        yield Finding("ClickHouse", "database", "ok", f"database {address.database} is {engine}, uuid {uuid[:8]}…")
    with Sink(settings) as sink:
        standing = migrate.status(sink, settings)
    behind = [entry for entry in standing if entry.state != "applied"]
    if behind:
        states = sorted({entry.state for entry in behind})
        mend = "run `retailmedia migrate`"
        if {"changed", "vanished"} & set(states):
            mend = "restore the migration files as they were; see `retailmedia migrate --status`"
        told = f"{len(behind)} of {len(standing)} migrations are {' or '.join(states)}"
        yield Finding("ClickHouse", "schema", "wrong", told, mend)
    else:
        yield Finding("ClickHouse", "schema", "ok", f"all {len(standing)} migrations are applied")
        yield from _kept(settings)
        with Sink(settings) as sink:
            state, in_force, mend = calendars.told(sink, settings)
        yield Finding("ClickHouse", "calendar", state, f"days are cut by {in_force}", mend)
    yield from _clickhouse_rights(settings)
    yield Finding("ClickHouse", "time zone", "note", f"its own is {zone}; no statement asks it for one")
    yield _skew("ClickHouse", instant(clock), now())


def _kept(settings: Settings) -> Iterator[Finding]:
    """What the ledger says of the source's time, and whether rows of our tables are hidden from this user."""
    with Sink(settings) as sink:
        setback = Ledger(sink).setback()
        try:
            policies = sink.named("doctor", "row_policies", {"database": sink.database})
        except SinkFailure as error:
            policies = None
            unseen = "its user lacks the grant SHOW ROW POLICIES" if error.code == ACCESS_DENIED else str(error)
    if setback:
        yield Finding("PostgreSQL", "time", "wrong", setback, "run `retailmedia pipeline --full-refresh`")
    else:
        yield Finding("PostgreSQL", "time", "ok", "it has not gone back since it was first read")
    if policies is None:
        yield Finding("ClickHouse", "row policies", "note", f"they cannot be seen: {unseen}")
        return
    ours = [f"{name} on {table}" for name, table, applies in policies if applies]
    if ours:
        mend = "let no row policy apply to the users of this product: what it hides is counted nowhere"
        yield Finding("ClickHouse", "row policies", "wrong", f"{', '.join(ours)} hides rows from its own user", mend)
    else:
        others = f"; {len(policies)} for others" if policies else ""
        yield Finding("ClickHouse", "row policies", "ok", f"none hides rows from its own user{others}")


def _redis(settings: Settings, now: Callable[[], datetime]) -> Iterator[Finding]:
    store = WatermarkStore(settings)
    try:
        facts = store.server()
    finally:
        store.close()
    yield _version("Redis", settings.server_label("redis"), _numbers(facts["version"]), REDIS_AT_LEAST)
    policy = facts["maxmemory_policy"]
    if policy == "noeviction":
        yield Finding("Redis", "memory", "ok", "maxmemory-policy is noeviction")
    elif not policy:
        yield Finding("Redis", "memory", "note", "it does not say its maxmemory-policy; it should be noeviction")
    else:
        told = f"maxmemory-policy is {policy}: it may drop messages"
        yield Finding("Redis", "memory", "wrong", told, "CONFIG SET maxmemory-policy noeviction")
    if facts["configures"]:
        told = "its user may change the server's configuration, and so have it write files"
        yield Finding("Redis", "rights", "note", told, "use a user with the rules of deploy/redis/users.acl")
    else:
        yield Finding("Redis", "rights", "ok", "its user cannot change the server's configuration")
    yield _skew("Redis", datetime.fromtimestamp(float(facts["time"]), UTC), now())


def _failing(settings: Settings) -> Iterator[Finding]:
    """Windows, dimensions and days that fail again and again; nothing where that cannot be told."""
    with contextlib.suppress(RetailMediaError), Sink(settings) as sink:
        if any(entry.state != "applied" for entry in migrate.status(sink, settings)):
            return
        streams = list(STREAMS.values())
        found = standing.failing(Ledger(sink), streams)
        mend = "mend what the error names; it is tried again by itself"
        wrong = [
            Finding("sync", stream.name, "wrong", failing.told_failure(stream, failure), mend)
            for stream in streams
            for failure in failing.to_tell(stream, found[stream.name])[:3]
        ]
        days = [day for day in failing.failing_days(sink).values() if day.count >= failing.FAILURES_TO_TELL]
        wrong += [Finding("sync", f"day {day.day}", "wrong", failing.told_day(day), mend) for day in days[-3:]]
        yield from wrong or [Finding("sync", "failures", "ok", "no window, dimension or day keeps failing")]


def _workers(workers: Callable[[], dict[str, set[str]]], queues: frozenset[str]) -> Iterator[Finding]:
    start = "start workers with `retailmedia up`, or: celery -A worker worker -Q realtime,backfill,maintenance"
    try:
        found = workers()
    except RetailMediaError as error:
        yield Finding("Celery", "workers", "wrong", str(error), start)
        return
    if not found:
        yield Finding("Celery", "workers", "wrong", "no worker answers", start)
        return
    served = set().union(*found.values())
    idle = sorted(queues - served)
    told = ", ".join(f"{node} ({', '.join(sorted(served_by))})" for node, served_by in sorted(found.items()))
    if idle:
        yield Finding("Celery", "workers", "wrong", f"nobody serves {', '.join(idle)}; there are {told}", start)
    else:
        yield Finding("Celery", "workers", "ok", told)


def _version(about: str, where: str, version: tuple[int, ...], least: tuple[int, ...]) -> Finding:
    found = ".".join(map(str, version))
    if version and version < least:
        wanted = ".".join(map(str, least))
        return Finding(about, "version", "wrong", f"{found} at {where}", f"upgrade it to {wanted} or later")
    return Finding(about, "version", "ok", f"{found} at {where}")


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def _skew(about: str, theirs: datetime, ours: datetime) -> Finding:
    skew = theirs - ours
    seconds = skew.total_seconds()
    how = (
        "agrees with this machine's"
        if abs(skew) < SKEW_WORTH_A_WORD
        else f"differs from this machine's by {seconds:+,.0f} s"
    )
    return Finding(about, "clock", "note", f"its clock {how}; nothing depends on that")


def _clickhouse_rights(settings: Settings) -> Iterator[Finding]:
    """What its user could have the server do beyond its tables; none of it is needed."""
    may = []
    with Sink(settings) as sink:
        if not sink.named("doctor", "fixed_disk")[0][0]:
            may.append("let a table name a host to fetch from and write to")
        try:
            sink.named("doctor", "read_a_file")
            may.append("read files of the server's machine")
        except SinkFailure:
            # As it should be: the path lies outside of user_files_path.
            pass
    if may:
        mend = "deploy/clickhouse/roles.sql and limits.xml take that from it; the embedded engine keeps it"
        yield Finding("ClickHouse", "rights", "note", f"its user may {' and '.join(may)}", mend)
    else:
        yield Finding(
            "ClickHouse", "rights", "ok", "its user can name no disk and read no file of the server's machine"
        )
