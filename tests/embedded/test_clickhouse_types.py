"""Every column type, through an INSERT's block walk and back out, with and without compression."""

from __future__ import annotations

import datetime as dt
import ipaddress
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from clickhouse_driver import Client
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.embedded.conftest import Connect

TEXT = st.text(st.characters(codec="utf-8"), max_size=300)
EASTERN = ZoneInfo("America/New_York")


def signed(bits: int) -> SearchStrategy[int]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def unsigned(bits: int) -> SearchStrategy[int]:
    return st.integers(0, 2**bits - 1)


def decimals(digits: int, places: int) -> SearchStrategy[Decimal]:
    limit = 10**digits - 1
    return st.integers(-limit, limit).map(lambda n: Decimal((n < 0, tuple(map(int, str(abs(n)))), -places)))


def moments(first: int, last: int, micro: bool) -> SearchStrategy[dt.datetime]:
    found = st.datetimes(dt.datetime(first, 1, 1), dt.datetime(last, 12, 31))  # noqa: DTZ001 - clickhouse-driver gives naive ones in the server's zone
    return found.map(lambda value: value.replace(microsecond=value.microsecond if micro else 0))


TYPES: dict[str, SearchStrategy[Any]] = {
    **{f"Int{bits}": signed(bits) for bits in (8, 16, 32, 64, 128, 256)},
    **{f"UInt{bits}": unsigned(bits) for bits in (8, 16, 32, 64, 128, 256)},
    "Float32": st.floats(width=32, allow_nan=False),
    "Float64": st.floats(allow_nan=False),
    "Bool": st.booleans(),
    "String": TEXT,
    "FixedString(7)": st.text("abc", min_size=7, max_size=7),
    "Date": st.dates(dt.date(1970, 1, 1), dt.date(2149, 6, 6)),
    "Date32": st.dates(dt.date(1900, 1, 1), dt.date(2299, 12, 31)),
    "DateTime": moments(1970, 2100, False),
    "DateTime('UTC')": moments(1970, 2100, False),
    "DateTime64(3)": moments(1900, 2200, False),
    "DateTime64(6, 'UTC')": moments(1970, 2200, True).map(lambda value: value.replace(tzinfo=dt.UTC)),
    "Decimal(9, 2)": decimals(9, 2),
    "Decimal(18, 6)": decimals(18, 6),
    "Decimal(38, 10)": decimals(38, 10),
    "Decimal(76, 20)": decimals(76, 20),
    "UUID": st.uuids(),
    "IPv4": st.ip_addresses(v=4),
    "IPv6": st.integers(2**64, 2**128 - 1).map(ipaddress.IPv6Address),
    "Enum8('a' = -1, 'it\\'s, (b)' = 2)": st.sampled_from(["a", "it's, (b)"]),
    "Enum16('x' = 1000, 'y' = -1000)": st.sampled_from(["x", "y"]),
    "Nullable(Int64)": st.none() | signed(64),
    "Nullable(String)": st.none() | TEXT,
    "Nullable(Decimal(10, 2))": st.none() | decimals(10, 2),
    "LowCardinality(String)": TEXT,
    "LowCardinality(Nullable(String))": st.none() | TEXT,
    "LowCardinality(FixedString(2))": st.sampled_from(["ab", "cd"]),
    "Array(Int32)": st.lists(signed(32), max_size=5),
    "Array(Array(String))": st.lists(st.lists(TEXT, max_size=3), max_size=3),
    "Array(LowCardinality(String))": st.lists(TEXT, max_size=3),
    "Array(Nullable(UUID))": st.lists(st.none() | st.uuids(), max_size=3),
    "Map(String, UInt64)": st.dictionaries(TEXT, unsigned(64), max_size=3),
    "Map(LowCardinality(String), Array(Int8))": st.dictionaries(TEXT, st.lists(signed(8), max_size=2), max_size=3),
    "Tuple(Int8, String)": st.tuples(signed(8), TEXT),
    "Tuple(a Int8, `b c` Nullable(String), d Array(Date))": st.tuples(
        signed(8), st.none() | TEXT, st.lists(st.dates(dt.date(1970, 1, 1), dt.date(2100, 1, 1)), max_size=2)
    ),
    "SimpleAggregateFunction(sum, UInt64)": unsigned(64),
}


@pytest.fixture(scope="module")
def clients(address: dict[str, Any]) -> Iterator[list[Client]]:
    database = f"types_{uuid.uuid4().hex[:8]}"
    Client(**address).execute(f"CREATE DATABASE {database}")
    found = [Client(**address, database=database, compression=how) for how in (False, "lz4")]
    yield found
    found[0].execute(f"DROP DATABASE {database} SYNC")
    for client in found:
        client.disconnect()


@pytest.mark.parametrize("kind", TYPES)
def test_a_type_comes_back_as_it_went_in(clients: list[Client], kind: str) -> None:
    clients[0].execute("DROP TABLE IF EXISTS t SYNC")
    clients[0].execute(f"CREATE TABLE t (n UInt64, v {kind}, s String) ENGINE = Memory")

    # A column follows the one under test: a block whose end was found wrongly would not parse.
    @given(st.lists(TYPES[kind], min_size=1, max_size=30))
    def check(values: list[Any]) -> None:
        for client in clients:
            client.execute("TRUNCATE TABLE t")
            client.execute("INSERT INTO t VALUES", [(n, value, str(n)) for n, value in enumerate(values)])
            rows = client.execute("SELECT n, v, s FROM t ORDER BY n")
            assert [row[1] for row in rows] == values
            assert [row[2] for row in rows] == [str(n) for n in range(len(values))]

    check()


def test_a_zone_of_a_columns_own(client: Client) -> None:
    client.execute("CREATE TABLE t (v DateTime64(3, 'America/New_York')) ENGINE = Memory")
    moment = dt.datetime(2026, 7, 1, 12, 30, 0, 5000, tzinfo=EASTERN)
    client.execute("INSERT INTO t VALUES", [(moment,)])
    assert client.execute("SELECT v, toUnixTimestamp64Milli(v) FROM t") == [
        (moment, int(moment.timestamp() * 1000)),
    ]


def test_long_strings_and_many_rows(connect: Connect) -> None:
    values = ["x" * length for length in (0, 1, 127, 128, 16_383, 16_384, 2_200_000)] * 3 + ["y"] * 70_000
    for compression in (False, "lz4"):
        client = connect(compression=compression)
        client.execute("CREATE OR REPLACE TABLE t (v String, w LowCardinality(String)) ENGINE = Memory")
        client.execute("INSERT INTO t VALUES", [values, [value[:5] for value in values]], columnar=True)
        assert client.execute("SELECT v, w FROM t", columnar=True) == [
            tuple(values),
            tuple(value[:5] for value in values),
        ]


def test_numpy_types(connect: Connect) -> None:
    client = connect(settings={"use_numpy": True}, compression="lz4")
    client.execute(
        "CREATE TABLE t (i Int64, f Float64, d Date, m DateTime64(6, 'UTC'), s LowCardinality(String), n Nullable(Int64))"
        " ENGINE = MergeTree ORDER BY i"
    )
    count = 1000
    i = np.arange(count)
    columns = [
        i,
        i / 7,
        np.datetime64("2026-01-01") + (i % 300).astype("timedelta64[D]"),
        (np.datetime64("2026-01-01T00:00:00", "ns") + (i * 1_001_000).astype("timedelta64[ns]")),
        np.array([f"s{n % 9}" for n in i], dtype=object),
        np.array([None if n % 3 == 0 else int(n) for n in i], dtype=object),
    ]
    client.execute("INSERT INTO t VALUES", columns, columnar=True)
    found = client.execute(
        "SELECT i, f, d, toUnixTimestamp64Micro(m), s, ifNull(n, -1) FROM t ORDER BY i", columnar=True
    )
    assert (found[0] == i).all()
    assert (found[1] == i / 7).all()
    assert (found[2].astype("datetime64[D]") == columns[2]).all()
    assert (found[3] == columns[3].astype("datetime64[us]").astype(np.int64)).all()
    assert list(found[4]) == list(columns[4])
    assert list(found[5]) == [-1 if n % 3 == 0 else n for n in i]


def test_types_the_walk_does_not_know_come_out(client: Client) -> None:
    assert client.execute("SELECT CAST(ipaddr AS IPv4) FROM (SELECT '1.2.3.4' AS ipaddr)") == [
        (ipaddress.IPv4Address("1.2.3.4"),)
    ]
    assert client.execute("SELECT finalizeAggregation(x) FROM (SELECT sumState(number) AS x FROM numbers(10))") == [
        (45,)
    ]
