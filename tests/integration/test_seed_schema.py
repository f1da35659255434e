"""The source schema on a real PostgreSQL: from nothing, again, and from the original project's tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

from seed import schema, stats
from seed.connection import transaction
from worker.errors import SourceFailure, TransientSource

ORIGINAL_SCHEMA = """
CREATE TABLE advertiser (id serial PRIMARY KEY, name varchar(255) NOT NULL, updated_at timestamp, created_at timestamp DEFAULT now());
CREATE TABLE campaign (
    id serial PRIMARY KEY, name varchar(255) NOT NULL, bid numeric(10,2) NOT NULL, budget numeric(10,2) NOT NULL,
    start_date date, end_date date, advertiser_id integer REFERENCES advertiser (id), updated_at timestamp,
    created_at timestamp DEFAULT now()
);
CREATE TABLE impressions (id serial PRIMARY KEY, campaign_id integer REFERENCES campaign (id), created_at timestamp DEFAULT now());
CREATE TABLE clicks (id serial PRIMARY KEY, campaign_id integer REFERENCES campaign (id), created_at timestamp DEFAULT now());
"""

SHAPE = """
SELECT 'column', table_name, column_name, data_type || coalesce('(' || numeric_precision || ',' || numeric_scale || ')', ''),
       is_nullable, coalesce(column_default, '')
FROM information_schema.columns WHERE table_schema = 'public'
UNION ALL SELECT 'index', tablename, indexname, indexdef, '', '' FROM pg_indexes WHERE schemaname = 'public'
UNION ALL SELECT 'trigger', tgrelid::regclass::text, tgname, pg_get_triggerdef(oid), '', '' FROM pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), '', ''
FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype IN ('p', 'f')
ORDER BY 1, 2, 3
"""


@pytest.fixture
def conn(postgres_dsn: str) -> Iterator[Connection]:
    with closing(psycopg2.connect(postgres_dsn)) as connection:
        yield connection


def rows(conn: Connection, query: str) -> list[tuple[Any, ...]]:
    with transaction(conn) as cursor:
        cursor.execute(query)
        return cursor.fetchall() if cursor.description else []


def value(conn: Connection, query: str) -> Any:
    return rows(conn, query)[0][0]


def test_created_twice_is_created_once(conn: Connection) -> None:
    assert not schema.ready(conn)
    assert schema.ensure(conn)
    first = rows(conn, SHAPE)
    assert schema.ready(conn)
    rows(conn, "INSERT INTO impressions DEFAULT VALUES")
    schema.create(conn)
    assert not schema.ensure(conn)
    assert rows(conn, SHAPE) == first
    assert value(conn, "SELECT count(*) FROM impressions") == 1


def test_columns_are_as_documented(conn: Connection) -> None:
    schema.create(conn)
    columns = {
        (table, name): (type_, nullable)
        for kind, table, name, type_, nullable, _ in rows(conn, SHAPE)
        if kind == "column"
    }
    zoned = "timestamp with time zone"
    assert columns == {
        ("advertiser", "id"): ("bigint(64,0)", "NO"),
        ("advertiser", "name"): ("character varying", "NO"),
        ("advertiser", "updated_at"): (zoned, "YES"),
        ("advertiser", "created_at"): (zoned, "NO"),
        ("campaign", "id"): ("bigint(64,0)", "NO"),
        ("campaign", "name"): ("character varying", "NO"),
        ("campaign", "bid"): ("numeric(10,2)", "NO"),
        ("campaign", "budget"): ("numeric(10,2)", "NO"),
        ("campaign", "start_date"): ("date", "YES"),
        ("campaign", "end_date"): ("date", "YES"),
        ("campaign", "advertiser_id"): ("bigint(64,0)", "YES"),
        ("campaign", "updated_at"): (zoned, "YES"),
        ("campaign", "created_at"): (zoned, "NO"),
        **{
            (table, name): (type_, nullable)
            for table in ("impressions", "clicks")
            for name, type_, nullable in (
                ("id", "bigint(64,0)", "NO"),
                ("campaign_id", "bigint(64,0)", "YES"),
                ("created_at", zoned, "NO"),
                ("inserted_at", zoned, "NO"),
            )
        },
    }


@pytest.mark.parametrize("table", ["impressions", "clicks"])
def test_a_window_is_read_in_index_order_without_sorting(conn: Connection, table: str) -> None:
    schema.create(conn)
    rows(conn, f"INSERT INTO {table} (created_at) SELECT now() FROM generate_series(1, 5000)")
    rows(conn, "SET enable_seqscan = off; SET enable_bitmapscan = off")
    plan = rows(
        conn,
        f"EXPLAIN SELECT * FROM {table} WHERE inserted_at >= '2020-01-01' AND inserted_at < '2020-01-02' ORDER BY inserted_at, id",
    )
    text = "\n".join(line for (line,) in plan)
    assert f"{table}_inserted_at_id_idx" in text
    assert "Sort" not in text


@pytest.mark.parametrize("table", ["impressions", "clicks"])
@pytest.mark.parametrize(
    "change", ["created_at = created_at - interval '1 day'", "campaign_id = campaign_id", "inserted_at = '2000-01-01'"]
)
def test_an_update_moves_inserted_at_to_its_transaction(conn: Connection, table: str, change: str) -> None:
    schema.create(conn)
    rows(conn, f"INSERT INTO {table} (created_at, inserted_at) VALUES (now(), '2001-01-01'), (now(), '2001-01-01')")
    with transaction(conn) as cursor:
        cursor.execute(f"UPDATE {table} SET {change} WHERE id = 1")
        cursor.execute(f"SELECT id, inserted_at = now(), inserted_at = '2001-01-01' FROM {table} ORDER BY id")
        assert cursor.fetchall() == [(1, True, False), (2, False, True)]


@pytest.mark.parametrize("table", ["advertiser", "campaign"])
def test_a_change_sets_updated_at_unless_the_statement_does(conn: Connection, table: str) -> None:
    schema.create(conn)
    columns, values = ("name", "'old'") if table == "advertiser" else ("name, bid, budget", "'old', 1, 10")
    rows(conn, f"INSERT INTO {table} ({columns}) VALUES ({values}), ({values})")
    assert rows(conn, f"SELECT updated_at FROM {table}") == [(None,), (None,)]
    with transaction(conn) as cursor:
        cursor.execute(f"UPDATE {table} SET name = 'new' WHERE id = 1")
        cursor.execute(f"UPDATE {table} SET name = 'new', updated_at = '2020-02-02 00:00Z' WHERE id = 2")
        cursor.execute(f"SELECT updated_at = now(), updated_at = '2020-02-02 00:00Z' FROM {table} ORDER BY id")
        assert cursor.fetchall() == [(True, False), (False, True)]


def test_a_campaign_with_events_stays_and_one_without_can_go(conn: Connection) -> None:
    schema.create(conn)
    rows(conn, "INSERT INTO campaign (name, bid, budget) VALUES ('shown', 1, 10), ('never shown', 1, 10)")
    rows(conn, "INSERT INTO impressions (campaign_id) VALUES (1)")
    with pytest.raises(SourceFailure, match="violates foreign key constraint") as failure, transaction(conn) as cursor:
        cursor.execute("DELETE FROM campaign WHERE id = 1")
    assert failure.value.sqlstate == "23503"
    rows(conn, "DELETE FROM campaign WHERE id = 2")
    assert rows(conn, "SELECT name FROM campaign") == [("shown",)]


def test_the_original_tables_are_brought_up_to_shape(postgres_dsn: str, conn: Connection) -> None:
    rows(conn, "SET TimeZone = 'Asia/Kolkata'")
    rows(conn, ORIGINAL_SCHEMA)
    rows(
        conn,
        "INSERT INTO advertiser (name, created_at) VALUES ('Acme', '2025-06-01 12:00');"
        "INSERT INTO campaign (name, bid, budget, advertiser_id) VALUES ('Launch', 0.75, 100, 1);"
        "INSERT INTO impressions (campaign_id, created_at) VALUES (1, '2025-06-01 12:00'), (NULL, NULL);"
        "INSERT INTO clicks (campaign_id, created_at) VALUES (1, '2025-06-01 12:01')",
    )
    assert not schema.ready(conn)
    schema.create(conn)
    assert schema.ready(conn)
    upgraded = rows(conn, SHAPE)
    schema.create(conn)
    assert rows(conn, SHAPE) == upgraded

    noon_in_kolkata = datetime(2025, 6, 1, 6, 30, tzinfo=UTC)
    assert value(conn, "SELECT created_at FROM advertiser") == noon_in_kolkata
    assert rows(conn, "SELECT id, campaign_id, created_at FROM impressions ORDER BY id") == [
        (1, 1, noon_in_kolkata),
        (2, None, None),
    ]
    assert value(conn, "SELECT count(*) FROM impressions WHERE inserted_at > now() - interval '1 minute'") == 2
    assert value(conn, "SELECT count(DISTINCT inserted_at) FROM impressions") == 1

    # As good as new: 64-bit ids with a sequence that can give them, the trigger, the index.
    rows(conn, "SELECT setval(pg_get_serial_sequence('clicks', 'id'), 5000000000)")
    rows(conn, "INSERT INTO clicks (campaign_id) VALUES (1)")
    assert value(conn, "SELECT max(id) FROM clicks") == 5_000_000_001
    rows(conn, "UPDATE clicks SET inserted_at = '2000-01-01'")
    assert value(conn, "SELECT min(inserted_at) > '2020-01-01' FROM clicks") is True
    assert value(conn, "SELECT to_regclass('clicks_inserted_at_id_idx') IS NOT NULL") is True
    types = {(table, name): type_ for kind, table, name, type_, *_ in upgraded if kind == "column"}
    assert {type_ for (_, name), type_ in types.items() if name.endswith("_at")} == {"timestamp with time zone"}
    assert {type_ for (_, name), type_ in types.items() if name in {"id", "campaign_id"}} == {"bigint(64,0)"}


def test_an_optional_inserted_at_becomes_a_required_one(conn: Connection) -> None:
    rows(conn, ORIGINAL_SCHEMA)
    rows(conn, "ALTER TABLE clicks ADD COLUMN inserted_at timestamptz")
    rows(conn, "INSERT INTO clicks (inserted_at) VALUES (NULL), ('2025-01-01 00:00Z')")
    schema.create(conn)
    rows(conn, "INSERT INTO clicks DEFAULT VALUES")
    assert rows(conn, "SELECT id, inserted_at > '2025-01-02' FROM clicks ORDER BY id") == [
        (1, True),
        (2, False),
        (3, True),
    ]
    with pytest.raises(SourceFailure, match="null value"):
        rows(conn, "INSERT INTO clicks (inserted_at) VALUES (NULL)")


def test_a_failed_upgrade_changes_nothing(conn: Connection) -> None:
    rows(conn, ORIGINAL_SCHEMA)
    rows(conn, "CREATE VIEW daily AS SELECT created_at::date FROM clicks")
    before = rows(conn, SHAPE)
    with pytest.raises(SourceFailure, match="used by a view"):
        schema.create(conn)
    assert rows(conn, SHAPE) == before


def test_reset_empties_the_tables_and_never_gives_an_id_twice(conn: Connection) -> None:
    schema.create(conn)
    rows(conn, "INSERT INTO advertiser (name) VALUES ('a')")
    rows(conn, "INSERT INTO campaign (name, bid, budget, advertiser_id) VALUES ('c', 1, 1, 1)")
    rows(conn, "INSERT INTO impressions (campaign_id) VALUES (1); INSERT INTO clicks (campaign_id) VALUES (1)")
    schema.reset(conn)
    found = stats.totals(conn, today=datetime.now(UTC).date())
    assert (found.advertisers, found.campaigns, found.impressions, found.clicks) == (0, 0, 0, 0)
    assert found.ctr is None
    rows(conn, "INSERT INTO advertiser (name) VALUES ('b')")
    assert value(conn, "SELECT id FROM advertiser") == 2


def test_reset_gives_way_to_a_reader(postgres_dsn: str, conn: Connection) -> None:
    schema.create(conn)
    with closing(psycopg2.connect(postgres_dsn)) as reader, transaction(reader) as cursor:
        cursor.execute("SELECT count(*) FROM clicks")
        rows(conn, "SET lock_timeout = '50ms'")
        with pytest.raises(TransientSource, match="another session holds a lock"):
            schema.reset(conn)


def test_totals_survive_times_python_cannot_hold(conn: Connection) -> None:
    schema.create(conn)
    rows(conn, "INSERT INTO impressions (created_at) VALUES ('infinity'), ('20000-01-01'), ('2026-01-02 03:04Z')")
    rows(conn, "INSERT INTO clicks (created_at) VALUES ('-infinity'), ('0044-03-15 BC')")
    found = stats.totals(conn, today=datetime(2026, 1, 3, tzinfo=UTC).date())
    assert (found.impressions, found.clicks) == (3, 2)
    assert found.first_event_at == found.last_event_at == datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    assert found.ctr == pytest.approx(2 / 3)


def test_totals_count_the_campaigns_of_the_day(conn: Connection) -> None:
    schema.create(conn)
    rows(
        conn,
        "INSERT INTO campaign (name, bid, budget, start_date, end_date) VALUES"
        " ('first day', 1, 10.25, '2026-03-11', '2026-03-31'), ('last day', 1, 20, '2026-03-01', '2026-03-11'),"
        " ('open', 1, 30, NULL, NULL), ('over', 1, 40, '2026-03-01', '2026-03-10'), ('to come', 1, 50, '2026-03-12', NULL)",
    )
    found = stats.totals(conn, today=datetime(2026, 3, 11, tzinfo=UTC).date())
    assert (found.campaigns, found.running_campaigns, str(found.budget)) == (5, 3, "150.25")
