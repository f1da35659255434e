"""Further columns of an event: every supported type, decoded as psycopg2 sees it and stored as ClickHouse has it."""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from psycopg2.extensions import connection as Connection

from tests.conftest import administer
from tests.integration.test_pipeline import add, campaigns, write
from worker import pipeline, refresh, source
from worker.celery import Servers
from worker.columns import Column, multiplier, plain
from worker.errors import BadInput, SchemaMismatch, SourceFailure
from worker.ledger import Run
from worker.sink import quoted
from worker.source import EventColumns, Source
from worker.streams import EVENTS_TABLE, STREAMS, Extra, Stream
from worker.windows import ORIGIN, Window

TYPES = {
    "label": ("text", "String"),
    "payload": ("bytea", "String"),
    "session": ("uuid", "UUID"),
    "small_amount": ("numeric", "Decimal(9, 3)"),
    "amount": ("numeric", "Decimal(18, 6)"),
    "large_amount": ("numeric", "Decimal(38, 10)"),
    "flag": ("boolean", "Bool"),
    "tiny": ("smallint", "Int16"),
    "short": ("integer", "Int32"),
    "long": ("bigint", "Int64"),
    "single": ("real", "Float32"),
    "double": ("double precision", "Float64"),
    "day": ("date", "Date32"),
    "seen": ("timestamptz", "DateTime64(6, 'UTC')"),
    "local": ("timestamp", "DateTime64(6, 'UTC')"),
}
EXTRA = tuple(
    Extra(name, f"Nullable({kind})", "bytea" if theirs == "bytea" else "") for name, (theirs, kind) in TYPES.items()
)
WIDE = replace(STREAMS["impressions"], extra=EXTRA)
LEAST, MOST = date(1900, 1, 1), date(2299, 12, 31)

numerics = st.one_of(
    st.sampled_from(["NaN", "Infinity", "-Infinity", "0", "-0.0", "1e30000", "-1e-16000", "9" * 40, "0.0000000000001"]),
    st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**6), max_value=10**6).map(str),
    st.decimals(-(10**45), 10**45, allow_nan=False, allow_infinity=False)
    .filter(lambda value: cast(int, value.as_tuple().exponent) > -16_000)
    .map(str),
    st.tuples(st.integers(-(10**38), 10**38), st.integers(-40, 12)).map(lambda parts: f"{parts[0]}e{parts[1]}"),
)
texts = st.one_of(
    st.text(
        st.characters(exclude_characters="\0", categories=("L", "M", "N", "P", "S", "Z", "Cc", "Cf", "Co", "Cn")),
        max_size=40,
    ),
    st.integers(0, 40_000).map(lambda size: "ä" * (size // 2) + "x" * (size % 2)),
)
instants = st.one_of(
    st.sampled_from(["infinity", "-infinity", "294276-12-31 23:59:59.999999", "4714-11-24 00:00:00 BC"]),
    st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)).map(lambda value: value.isoformat()),  # noqa: DTZ001
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "label": texts,
    "payload": st.binary(max_size=300).map(lambda value: "\\x" + value.hex()),
    "session": st.uuids().map(str),
    **dict.fromkeys(("small_amount", "amount", "large_amount"), numerics),
    "flag": st.booleans(),
    "tiny": st.integers(-(2**15), 2**15 - 1),
    "short": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "single": st.floats(width=32).map(repr),
    "double": st.floats().map(repr),
    "day": st.one_of(
        st.sampled_from(["infinity", "-infinity", "5874897-12-31", "4714-11-24 BC"]),
        st.dates().map(lambda value: value.isoformat()),
    ),
    "seen": instants,
    "local": instants,
}
rows = st.lists(
    st.fixed_dictionaries({name: st.one_of(st.none(), values) for name, values in VALUES.items()}),
    min_size=1,
    max_size=25,
)


@pytest.fixture
def wide(servers: Servers, writer: Connection) -> Servers:
    for name, (theirs, kind) in TYPES.items():
        write(writer, f"ALTER TABLE impressions ADD {name} {theirs}")
        servers.sink.command("widening", f"ALTER TABLE {EVENTS_TABLE} ADD COLUMN {name} Nullable({kind})")
    return servers


def put(writer: Connection, some: list[dict[str, Any]]) -> None:
    for row in some:
        casts = ", ".join(f"%s::{TYPES[name][0]}" for name in row)
        write(
            writer,
            f"INSERT INTO impressions (created_at, {', '.join(row)}) VALUES ('2026-11-18T10:00:00Z', {casts})",
            # As text: -32768::smallint is the negative of what is out of range.
            *(str(value) if type(value) is int else value for value in row.values()),
        )


def read(source: Source, stream: Stream, chunk: int = 1000) -> EventColumns:
    with source.snapshot([stream]):
        return EventColumns.joined(list(source.read_events(stream, Window(ORIGIN, source.now()), chunk)))


def as_psycopg2_has_it(writer: Connection) -> list[dict[str, Any]]:
    """Values through psycopg2, text for what Python cannot hold: dates and instants beyond year 9999."""
    listed = ", ".join(
        f"CASE WHEN {name} > '1800-01-01' AND {name} < '2400-01-01' THEN {name} END, {name}::text"
        if theirs in ("date", "timestamptz", "timestamp")
        else f"{name}, NULL"
        for name, (theirs, _) in TYPES.items()
    )
    found = write(writer, f"SELECT {listed} FROM impressions ORDER BY inserted_at, id")
    return [
        {name: row[2 * i + 1] if row[2 * i] is None else row[2 * i] for i, name in enumerate(TYPES)} for row in found
    ]


def refuses(kind: str, value: Any) -> bool:
    """Whether ClickHouse's type cannot hold a value of psycopg2's, said another way than the decoder says it."""
    if isinstance(value, Decimal):
        precision, scale = (int(part) for part in kind[8:-1].split(","))
        if not value.is_finite():
            return True
        number = int(value * 10**scale) if abs(value) < 10**60 else 10**60
        exact = abs(value) < 10**60 and Decimal(number) == value.scaleb(scale)
        return not exact or abs(number) >= 10**precision
    if kind == "Date32":
        return isinstance(value, str) or not LEAST <= value <= MOST
    if kind == "DateTime64(6)":
        if isinstance(value, str):
            return True
        return not datetime(1900, 1, 2, tzinfo=UTC) <= value.replace(tzinfo=UTC) < datetime(2299, 12, 30, tzinfo=UTC)
    return False


def same(kind: str, ours: Column, i: int, theirs: Any) -> bool:
    if kind == "String":
        wanted = theirs.encode() if isinstance(theirs, str) else bytes(theirs)
        return bool(ours.values.value(i) == wanted)
    if kind.startswith("Float"):
        exact = struct.pack("<f" if kind == "Float32" else "<d", theirs)
        return (math.isnan(theirs) and bool(np.isnan(ours.values[i]))) or bytes(ours.values[i].tobytes()) == exact
    shown = ours.shown(i)
    if kind.startswith("Decimal"):
        return bool(Decimal(shown) == theirs)
    if kind == "Date32":
        return bool(date.fromisoformat(shown) == theirs)
    if kind == "DateTime64(6)":
        return bool(datetime.fromisoformat(shown) == theirs.replace(tzinfo=UTC))
    return bool(UUID(shown) == UUID(theirs)) if kind == "UUID" else bool(shown == theirs)


@hypothesis_settings(max_examples=40)
@given(some=rows, chunk=st.integers(1, 9))
def test_every_type_is_decoded_as_psycopg2_sees_it(
    wide: Servers, writer: Connection, some: list[dict[str, Any]], chunk: int
) -> None:
    # psycopg2 rounds numerics by the context in force; PostgreSQL's have up to 16,000 digits.
    import decimal

    write(writer, "TRUNCATE impressions")
    put(writer, some)
    writer.set_client_encoding("UTF8")
    with decimal.localcontext() as context:
        context.prec = 40_000
        context.Emax, context.Emin = 100_000, -100_000
        expected = as_psycopg2_has_it(writer)
        read_back = read(wide.source, WIDE, chunk)
        assert len(read_back) == len(expected)
        refused: dict[str, set[int]] = {}
        for rule, which in read_back.refused:
            refused.setdefault(rule.partition(" ")[0], set()).update(np.flatnonzero(which).tolist())
        for name, (_, declared) in TYPES.items():
            kind, _ = plain(declared)
            column = read_back.extra[name]
            assert column.nulls is not None
            assert [row[name] is None for row in expected] == column.nulls.tolist()
            bad = {i for i, row in enumerate(expected) if row[name] is not None and refuses(kind, row[name])}
            assert refused.get(name, set()) == bad, name
            for i, row in enumerate(expected):
                if row[name] is not None and i not in bad:
                    assert same(kind, column, i, row[name]), (name, row[name], column.shown(i))


@hypothesis_settings(max_examples=15)
@given(some=rows)
def test_what_was_decoded_is_what_clickhouse_holds_and_the_rest_is_quarantined(
    wide: Servers, writer: Connection, some: list[dict[str, Any]]
) -> None:
    write(writer, "TRUNCATE impressions")
    for table in (EVENTS_TABLE, "quarantined_events"):
        wide.sink.command("emptying", f"TRUNCATE TABLE {table}")
    put(writer, some)
    done = load(wide, Window(ORIGIN, wide.source.now()))
    columns = read(wide.source, WIDE)
    bad = np.zeros(len(columns), np.bool_)
    for _, which in columns.refused:
        bad |= which
    assert (done.extracted, done.quarantined) == (len(some), int(bad.sum()))
    good = columns.take(~bad)
    names = ", ".join(
        f"if(isNull({name}), NULL, hex({name}))"
        if kind == "String"
        else f"hex(reinterpretAsString({name}))"
        if kind.startswith("Float")
        else f"toString({name})"
        for name, (_, kind) in TYPES.items()
    )
    found = wide.sink.query(
        "looking", f"SELECT event_id, {names} FROM {EVENTS_TABLE} FINAL WHERE NOT _deleted ORDER BY event_id"
    )
    assert [row[0] for row in found] == sorted(good.event_id.tolist())
    at = {event_id: i for i, event_id in enumerate(good.event_id.tolist())}
    for row in found:
        for (name, (_, kind)), value in zip(TYPES.items(), row[1:], strict=True):
            assert said(kind, good.extra[name], at[row[0]]) == normal(kind, value), name
    held = wide.sink.query("looking", "SELECT count() FROM quarantined_events FINAL")[0][0]
    assert held == int(bad.sum())


def said(kind: str, column: Column, i: int) -> Any:
    assert column.nulls is not None
    if column.nulls[i]:
        return None
    if kind == "String":
        return column.values.value(i).hex().upper()
    if kind.startswith("Float"):
        return column.values[i].tobytes().rstrip(b"\0").hex().upper()
    return normal(kind, str(column.shown(i)))


def normal(kind: str, value: Any) -> Any:
    if value is None:
        return None
    if kind.startswith("Decimal"):
        return Decimal(value)
    if kind.startswith("DateTime64"):
        return datetime.fromisoformat(value).replace(tzinfo=UTC)
    return value.lower() if kind == "Bool" else value


def load(here: Servers, window: Window, table: str = EVENTS_TABLE, stream: Stream = WIDE) -> pipeline.Loaded:
    uuid = here.sink.uuid(table)
    return pipeline.load_window(
        here.source, here.sink, here.ledger, here.settings, stream, window, table=table, uuid=uuid
    )


def test_the_content_hash_is_the_same_on_both_sides_and_sees_a_changed_value(wide: Servers, writer: Connection) -> None:
    add(writer, "impressions", campaigns(writer)[0], 500)
    write(
        writer,
        """UPDATE impressions SET label = repeat('ü', (id % 23)::int), payload = decode(md5(id::text), 'hex'),
            session = md5(id::text)::uuid, small_amount = -id / 8.0, amount = id * 1.5, large_amount = id * -1e20 + 0.25,
            flag = id % 2 = 0, tiny = -id, short = -id, long = id * -10000000000, single = id / 3.0, double = id / 7.0,
            day = '1950-01-01', seen = now(), local = '1911-11-11'
        WHERE id % 5 <> 0""",
    )
    # `load_window` compares the hashes and would raise.
    done = load(wide, Window(ORIGIN, wide.source.now()))
    assert (done.loaded, done.quarantined) == (500, 0)
    columns = read(wide.source, WIDE)
    known = pipeline.content_hash(columns)
    for name in TYPES:
        changed = dict(columns.extra)
        order = np.arange(len(columns))
        order[[200, 201]] = [201, 200]
        if name in ("flag", "day", "seen", "local"):
            order[[200, 201]] = [4, 4]  # a neighbour's value is the same; a NULL is not
        changed[name] = columns.extra[name].take(order)
        assert pipeline.content_hash(replace(columns, extra=changed)) != known, name


def test_words_of_the_hash_have_factors_of_their_own() -> None:
    factors = [multiplier(number) for number in range(100)]
    assert len(set(factors)) == 100
    assert all(factor % 2 == 1 for factor in factors)


def test_a_value_missing_where_the_table_wants_one_is_quarantined(servers: Servers, writer: Connection) -> None:
    write(writer, "ALTER TABLE impressions ADD label text")
    servers.sink.command("widening", f"ALTER TABLE {EVENTS_TABLE} ADD COLUMN label LowCardinality(String)")
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 3)
    write(writer, "UPDATE impressions SET label = 'there' WHERE id <> 2")
    stream = replace(WIDE, extra=(Extra("label", "String"),))
    done = load(servers, Window(ORIGIN, servers.source.now()), stream=stream)
    assert (done.loaded, done.quarantined) == (2, 1)
    ((rule,),) = servers.sink.query("looking", "SELECT rule FROM quarantined_events FINAL")
    assert rule == "label is NULL"
    found = servers.sink.query(
        "looking", f"SELECT event_id, label FROM {EVENTS_TABLE} FINAL WHERE NOT _deleted ORDER BY 1"
    )
    assert found == [(1, "there"), (3, "there")]


def test_a_row_clickhouse_refuses_is_found_among_wide_ones(servers: Servers, writer: Connection) -> None:
    write(writer, "ALTER TABLE impressions ADD label text")
    servers.sink.command("widening", f"ALTER TABLE {EVENTS_TABLE} ADD COLUMN label Nullable(String)")
    servers.sink.command("guarding", f"ALTER TABLE {EVENTS_TABLE} ADD CONSTRAINT tame CHECK ifNull(label != 'wild', 1)")
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 40)
    write(writer, "UPDATE impressions SET label = CASE WHEN id = 17 THEN 'wild' ELSE 'tame ' || id END")
    stream = replace(WIDE, extra=(Extra("label", "Nullable(String)"),))
    done = load(servers, Window(ORIGIN, servers.source.now()), stream=stream)
    assert (done.loaded, done.quarantined) == (39, 1)
    ((event_id, row),) = servers.sink.query("looking", "SELECT event_id, row FROM quarantined_events FINAL")
    assert event_id == 17
    assert '"label": "wild"' in row


def test_a_full_refresh_carries_the_columns_along(wide: Servers, writer: Connection) -> None:
    add(writer, "impressions", campaigns(writer)[0], 50)
    write(writer, "UPDATE impressions SET label = 'number ' || id")
    now = wide.source.now()
    run = Run("20261118-wide", "refresh", ("impressions",), True, until=now, started_at=now)
    wide.ledger.save_run(run)
    run = refresh.begin(wide.source, wide.sink, wide.ledger, wide.settings, [WIDE], run)
    name = refresh.shadow_name(run.run_id)
    load(wide, Window(ORIGIN, wide.source.now()), name)
    found = wide.sink.query("looking", f"SELECT event_id, label FROM {quoted(name)} ORDER BY event_id")
    assert found == [(i, f"number {i}") for i in range(1, 51)]


def test_chunks_of_wide_rows_end_where_the_rows_say_so(
    wide: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(writer, "impressions", campaigns(writer)[0], 3000)
    write(writer, "UPDATE impressions SET label = repeat('x', (id * 37 % 300)::int)")
    write(writer, "UPDATE impressions SET label = repeat('y', 3000000) WHERE id = 1500")
    window = Window(ORIGIN, wide.source.now())
    monkeypatch.setattr(source.WideChunks.__init__, "__defaults__", (100_000,))

    def cut() -> list[list[int]]:
        with wide.source.snapshot([WIDE]):
            return [part.event_id.tolist() for part in wide.source.read_events(WIDE, window, 700)]

    chunks = cut()
    assert sorted(i for chunk in chunks for i in chunk) == list(range(1, 3001))
    assert max(map(len, chunks)) <= 700
    assert len(chunks) > 3000 / 700
    for size in (4096, 70_001):
        monkeypatch.setattr(source, "READ_BYTES", size)
        assert cut() == chunks
    monkeypatch.setattr(Source, "_from_socket", Source._through_libpq)
    assert cut() == chunks


def test_text_of_a_database_in_another_encoding_arrives_as_utf8(servers: Servers, writer: Connection) -> None:
    name = f"latin_{servers.settings.sink_address.database}"
    administer(
        servers.settings.postgres_dsn,
        f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LOCALE_PROVIDER libc LC_COLLATE 'C' LC_CTYPE 'C'",
    )
    dsn = f"{servers.settings.postgres_dsn.rpartition('/')[0]}/{name}"
    try:
        administer(dsn, "CREATE TABLE impressions (id bigint, campaign_id bigint, created_at timestamptz, "
            "inserted_at timestamptz DEFAULT now(), label text)")  # fmt: skip
        administer(dsn, "INSERT INTO impressions VALUES (1, 1, now(), now(), U&'\\00fcber')")
        with Source(servers.settings.model_copy(update={"postgres_dsn": dsn})) as other:
            columns = read(other, replace(WIDE, extra=(Extra("label", "String"),)))
        assert columns.extra["label"].shown(0) == "über"
    finally:
        administer(servers.settings.postgres_dsn, f"DROP DATABASE {name} WITH (FORCE)")


def test_what_cannot_be_carried_is_said_at_once(servers: Servers, writer: Connection) -> None:
    for kind in ("Array(String)", "Decimal(76, 10)", "IPv4"):
        with pytest.raises(BadInput, match="cannot be synced"):
            Extra("column", kind)
    with pytest.raises(BadInput, match="cannot be read as jsonb"):
        Extra("column", "String", "jsonb")
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 3)
    stream = replace(WIDE, extra=(Extra("nowhere", "String"),))
    window = Window(ORIGIN, servers.source.now())
    with pytest.raises(SourceFailure, match="nowhere"):
        load(servers, window, stream=stream)
    write(writer, "ALTER TABLE impressions ADD nowhere text NOT NULL DEFAULT 'x'")
    with pytest.raises(SchemaMismatch, match="nowhere"):
        load(servers, window, stream=stream)
    servers.sink.command("widening", f"ALTER TABLE {EVENTS_TABLE} ADD COLUMN nowhere Int64")
    with pytest.raises(SchemaMismatch, match="nowhere"):
        load(servers, window, stream=stream)
