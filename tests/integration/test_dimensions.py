"""A dimension's row that cannot be loaded stops no other; a reading that shows too little is not believed."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from decimal import Decimal

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

import seed.schema
from tests.agreement import read_dimension
from tests.conftest import administer, in_database
from tests.integration.test_pipeline import campaigns, write
from worker import alerts, pipeline, quarantine
from worker.celery import Servers
from worker.config import Settings
from worker.errors import BadInput, DimensionShrank, SourceFailure, SourceMismatch
from worker.streams import EVENTS_TABLE, STREAMS, Extra
from worker.windows import ORIGIN, Window

BIDS = "SELECT campaign_id, bid_amount FROM campaign_dimension WHERE NOT is_deleted ORDER BY campaign_id"


def bids(servers: Servers) -> dict[int, Decimal]:
    return dict(servers.sink.query("looking", BIDS))


POISON = {
    "an infinite bid": "UPDATE campaign SET bid = 'Infinity' WHERE id = %s",
    "a bid below minus infinity's neighbours": "UPDATE campaign SET bid = '-Infinity' WHERE id = %s",
    "a budget of 1e17": "UPDATE campaign SET budget = 1e17 WHERE id = %s",
}


@pytest.mark.parametrize("poison", POISON)
def test_a_row_that_cannot_be_loaded_stops_no_other(servers: Servers, writer: Connection, poison: str) -> None:
    write(writer, "ALTER TABLE campaign ALTER bid TYPE numeric, ALTER budget TYPE numeric")
    _, second, third = campaigns(writer)
    read_dimension(servers, "campaigns")
    before = bids(servers)
    write(writer, POISON[poison], second)
    write(writer, "UPDATE campaign SET bid = 7 WHERE id = %s", third)
    read_dimension(servers, "campaigns")
    assert bids(servers) == {**before, third: Decimal(7)}


def test_money_is_read(servers: Servers, writer: Connection) -> None:
    first, *_ = campaigns(writer)
    write(writer, "UPDATE campaign SET bid = 1234.5 WHERE id = %s", first)
    write(writer, "ALTER TABLE campaign ALTER bid TYPE money")
    read_dimension(servers, "campaigns")
    assert bids(servers)[first] == Decimal("1234.50")


@pytest.fixture
def ascii_servers(settings: Settings) -> Iterator[Servers]:
    """A source whose database knows of no encoding, so that text may hold any bytes."""
    name = f"t{uuid.uuid4().hex[:12]}"
    administer(
        settings.postgres_dsn,
        f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0",
    )
    dsn = in_database(settings.postgres_dsn, name)
    connection = psycopg2.connect(dsn)
    seed.schema.create(connection)
    connection.close()
    opened = Servers.open(settings.model_copy(update={"postgres_dsn": dsn}))
    yield opened
    opened.close()
    administer(settings.postgres_dsn, f"DROP DATABASE {name} WITH (FORCE)")


def test_bytes_that_are_not_utf8_stop_no_other_row(ascii_servers: Servers) -> None:
    connection = psycopg2.connect(ascii_servers.settings.postgres_dsn)
    connection.autocommit = True
    first, second, third = campaigns(connection)
    write(connection, r"UPDATE campaign SET name = E'caf\303\251' WHERE id = %s", first)
    write(connection, r"UPDATE campaign SET name = E'caf\351' WHERE id = %s", second)
    connection.close()
    read_dimension(ascii_servers, "campaigns")
    found = ascii_servers.sink.query(
        "looking", "SELECT campaign_id, campaign_name FROM campaign_dimension ORDER BY campaign_id"
    )
    assert found == [(first, "café"), (third, "campaign 3")]


def test_an_emptied_table_is_not_believed(servers: Servers, writer: Connection) -> None:
    campaigns(writer)
    read_dimension(servers, "campaigns")
    before = bids(servers)
    write(writer, "TRUNCATE campaign CASCADE")
    with pytest.raises(Exception, match="0 of the 3"):
        read_dimension(servers, "campaigns")
    assert bids(servers) == before


def quarantined(servers: Servers) -> list[tuple[int, str, str]]:
    return [(held.event_id, held.state, held.rule) for held in quarantine.rows(servers.sink)]


def committed(servers: Servers) -> tuple[int, int, int]:
    """Extracted, loaded and quarantined of the newest reading of campaigns."""
    rows = servers.sink.query(
        "looking",
        "SELECT extracted, rows, quarantined FROM sync_commits WHERE stream = 'campaigns' ORDER BY hi DESC LIMIT 1",
    )
    return rows[0]


def test_a_row_set_aside_keeps_its_last_version_and_comes_back_by_itself(servers: Servers, writer: Connection) -> None:
    write(writer, "ALTER TABLE campaign ALTER bid TYPE numeric")
    first, second, _ = campaigns(writer)
    read_dimension(servers, "campaigns")
    before = bids(servers)
    assert committed(servers) == (3, 3, 0)
    write(writer, "UPDATE campaign SET bid = 'Infinity' WHERE id = %s", second)
    for _ in range(3):
        assert read_dimension(servers, "campaigns").quarantined == 1
    assert bids(servers) == before
    assert committed(servers) == (3, 2, 1)
    assert quarantined(servers) == [(second, "held", "bid cannot be loaded: 'Infinity' is no amount")]
    assert quarantine.counts(servers.sink) == {"campaigns": {"held": 1}}
    found = servers.sink.query("looking", "SELECT count() FROM quarantined_dimension_rows")
    assert found == [(1,)], "a reading that finds nothing new writes nothing"
    # Back to what it was: nothing is written to the dimension, and yet the row is out of quarantine.
    write(writer, "UPDATE campaign SET bid = %s WHERE id = %s", before[second], second)
    read_dimension(servers, "campaigns")
    assert bids(servers) == before
    assert [row[:2] for row in quarantined(servers)] == [(second, "loaded")]
    assert committed(servers) == (3, 3, 0)
    # Gone at the source, it is gone here.
    write(writer, "UPDATE campaign SET bid = 'NaN' WHERE id = %s", first)
    write(writer, "UPDATE campaign SET bid = '-Infinity' WHERE id = %s", second)
    read_dimension(servers, "campaigns")
    assert bids(servers) == before
    assert (first, "held", "bid cannot be loaded: 'NaN' is no amount") in quarantined(servers)
    write(writer, "UPDATE campaign SET bid = %s WHERE id = %s", before[first], first)
    write(writer, "DELETE FROM campaign WHERE id = %s", second)
    read_dimension(servers, "campaigns")
    assert second not in bids(servers)
    assert [row[:2] for row in quarantined(servers)] == [(first, "loaded")]


def test_nobody_releases_what_cannot_be_loaded_and_a_discarded_row_is_not_told_of(
    servers: Servers, writer: Connection
) -> None:
    write(writer, "ALTER TABLE campaign ALTER budget TYPE numeric")
    first, *_ = campaigns(writer)
    write(writer, "UPDATE campaign SET budget = 1e17 WHERE id = %s", first)
    read_dimension(servers, "campaigns")
    now = servers.ledger.now()
    (held,) = quarantine.rows(servers.sink)
    (signal,) = alerts.of_the_data(servers.sink, servers.settings, now)
    assert signal.incident == "quarantine/campaigns"
    assert (
        f"Row {first} of campaigns stays as it was loaded last, if ever: budget cannot be loaded: '100000000000000000' does"
        in (signal.message)
    )
    with pytest.raises(BadInput, match="correct it at the source"):
        quarantine.decide(servers.sink, [held], "release", "")
    quarantine.decide(servers.sink, [held], "discard", "known")
    read_dimension(servers, "campaigns")
    assert [row[1] for row in quarantined(servers)] == ["discarded"]
    assert alerts.of_the_data(servers.sink, servers.settings, now) == []
    # Another content is judged anew.
    write(writer, "UPDATE campaign SET budget = 2e17 WHERE id = %s", first)
    read_dimension(servers, "campaigns")
    assert [row[1] for row in quarantined(servers)] == ["held"]
    assert len(alerts.of_the_data(servers.sink, servers.settings, now)) == 1


def test_id_0_is_no_campaign(servers: Servers, writer: Connection) -> None:
    campaigns(writer)
    write(writer, "INSERT INTO campaign (id, name, bid, budget) VALUES (0, 'none', 15, 1)")
    read_dimension(servers, "campaigns")
    assert 0 not in bids(servers)
    assert quarantined(servers) == [(0, "held", "id cannot be loaded: 0 stands for no campaign")]


TYPES = {
    "ids of text": ("ALTER TABLE campaign ALTER id DROP IDENTITY; ALTER TABLE campaign ALTER id TYPE text", "x7"),
    "ids of numeric": (
        "ALTER TABLE campaign ALTER id DROP IDENTITY; ALTER TABLE campaign ALTER id TYPE numeric",
        "0.5",
    ),
    "large ids": (
        "ALTER TABLE campaign ALTER id DROP IDENTITY; ALTER TABLE campaign ALTER id TYPE numeric",
        "9223372036854775808",
    ),
}


@pytest.mark.parametrize("kind", TYPES)
def test_ids_of_other_types(servers: Servers, writer: Connection, kind: str) -> None:
    statement, poison = TYPES[kind]
    ids = campaigns(writer)
    for table in ("impressions", "clicks"):
        write(writer, f"ALTER TABLE {table} DROP CONSTRAINT {table}_campaign_id_fkey")
    write(writer, statement)
    read_dimension(servers, "campaigns")
    write(writer, "INSERT INTO campaign (id, name, bid, budget) VALUES (%s, 'odd', 1, 1)", poison)
    read_dimension(servers, "campaigns")
    assert sorted(bids(servers)) == ids
    (held,) = quarantined(servers)
    assert held[0] == 0
    assert held[2].startswith(f"id cannot be loaded: '{poison}' is ")


def test_two_rows_of_one_id(servers: Servers, writer: Connection) -> None:
    ids = campaigns(writer)
    write(writer, "ALTER TABLE campaign DROP CONSTRAINT campaign_pkey CASCADE")
    write(writer, "INSERT INTO campaign (id, name, bid, budget) VALUES (%s, 'again', 9, 1)", ids[0])
    read_dimension(servers, "campaigns")
    assert committed(servers) == (4, 3, 1)
    assert sorted(bids(servers)) == ids


def test_odd_values_mean_what_they_did(servers: Servers, writer: Connection) -> None:
    write(writer, "ALTER TABLE campaign ALTER bid TYPE double precision, ALTER budget TYPE double precision")
    write(writer, "ALTER TABLE campaign ALTER name TYPE text")
    first, second, third = campaigns(writer)
    write(
        writer,
        "UPDATE campaign SET bid = 0.1::float8 + 0.2::float8, budget = 5, start_date = '0044-03-15 BC', "
        "end_date = 'infinity', updated_at = 'infinity', created_at = '0044-03-15 12:00:00 BC', name = %s WHERE id = %s",
        "a\tb\n\x01\\N" + "€" * 400_000,
        first,
    )
    write(
        writer,
        "UPDATE campaign SET start_date = '-infinity', end_date = '20000-01-01', updated_at = '20000-01-01', "
        "created_at = '-infinity' WHERE id = %s",
        second,
    )
    write(writer, "UPDATE campaign SET bid = '-Infinity' WHERE id = %s", third)
    assert read_dimension(servers, "campaigns").quarantined == 1
    found = servers.sink.query(
        "looking",
        "SELECT campaign_id, bid_amount, budget_amount, start_date, end_date, created_at, updated_at, "
        "length(campaign_name) FROM campaign_history ORDER BY campaign_id",
    )
    edges = (date(1900, 1, 1), date(2299, 12, 31), None, None)
    assert found[0] == (first, Decimal("0.30"), Decimal(5), *edges, 7 + 1_200_000)
    assert found[1][3:7] == edges


def test_an_advertiser_that_cannot_be_loaded_stops_no_other(ascii_servers: Servers) -> None:
    connection = psycopg2.connect(ascii_servers.settings.postgres_dsn)
    connection.autocommit = True
    write(connection, "INSERT INTO advertiser (name) VALUES ('one'), (E'tw\\366'), ('three')")
    connection.close()
    done = read_dimension(ascii_servers, "advertisers")
    assert (done.extracted, done.loaded, done.quarantined) == (3, 2, 1)
    assert quarantined(ascii_servers) == [(2, "held", "name cannot be loaded: b'tw\\xf6' is not UTF-8")]


UNREADABLE = {
    "renamed": ("ALTER TABLE campaign RENAME bid TO price", "Table campaign has no column bid any more"),
    "dropped": ("ALTER TABLE campaign DROP end_date", "Table campaign has no column end_date any more"),
    "of another type": (
        "ALTER TABLE campaign ALTER bid TYPE jsonb USING to_jsonb(bid)",
        "Column bid of table campaign is of type jsonb, which cannot be read as an amount of money",
    ),
    "an array": (
        "ALTER TABLE campaign ALTER name TYPE text[] USING ARRAY[name]",
        "Column name of table campaign is of type text[], which cannot be read as text",
    ),
    "no table": ("ALTER TABLE campaign RENAME TO offers", "Table campaign does not exist at the source"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_column_that_cannot_be_read_is_named(servers: Servers, writer: Connection, kind: str) -> None:
    statement, told = UNREADABLE[kind]
    campaigns(writer)
    read_dimension(servers, "campaigns")
    before = bids(servers)
    write(writer, statement)
    with pytest.raises((SourceMismatch, SourceFailure)) as raised:
        read_dimension(servers, "campaigns")
    assert str(raised.value).startswith(told)
    assert bids(servers) == before


def test_what_shrinks_too_much_is_believed_once_a_person_says_so(servers: Servers, writer: Connection) -> None:
    ids = campaigns(writer, 4)
    read_dimension(servers, "campaigns")
    write(writer, "DELETE FROM campaign WHERE id > %s", ids[1])
    read_dimension(servers, "campaigns")  # half of them
    assert sorted(bids(servers)) == ids[:2]
    write(writer, "DELETE FROM campaign")
    for _ in range(2):
        with pytest.raises(DimensionShrank, match="0 of the 2 campaigns"):
            read_dimension(servers, "campaigns")
    assert sorted(bids(servers)) == ids[:2]
    read_dimension(servers, "campaigns", accept_shrink=True)
    assert bids(servers) == {}
    more = campaigns(writer, 3)
    read_dimension(servers, "campaigns")
    write(writer, "DELETE FROM campaign WHERE id > %s", more[0])
    with pytest.raises(DimensionShrank, match="1 of the 3 campaigns"):
        read_dimension(servers, "campaigns")
    servers.settings = servers.settings.model_copy(update={"dimension_max_shrink_percent": 100})
    read_dimension(servers, "campaigns")
    write(writer, "DELETE FROM campaign")
    read_dimension(servers, "campaigns")
    assert bids(servers) == {}


def test_an_events_text_that_is_not_utf8_stops_no_other_event(ascii_servers: Servers) -> None:
    here = ascii_servers
    stream = replace(STREAMS["impressions"], extra=(Extra("label", "Nullable(String)"),))
    connection = psycopg2.connect(here.settings.postgres_dsn)
    connection.autocommit = True
    write(connection, "ALTER TABLE impressions ADD label text")
    write(
        connection,
        r"INSERT INTO impressions (created_at, label) VALUES (now(), E'caf\303\251'), (now(), E'caf\351'), (now(), NULL)",
    )
    connection.close()
    here.sink.command("widening", "ALTER TABLE ad_events ADD COLUMN label Nullable(String)")
    done = pipeline.load_window(
        here.source,
        here.sink,
        here.ledger,
        here.settings,
        stream,
        Window(ORIGIN, here.source.now()),
        table=EVENTS_TABLE,
        uuid=here.sink.uuid(EVENTS_TABLE),
    )
    assert (done.extracted, done.loaded, done.quarantined) == (3, 2, 1)
    found = here.sink.query("looking", "SELECT event_id, label FROM ad_events FINAL ORDER BY event_id")
    assert found == [(1, "café"), (3, None)]
    assert quarantined(here) == [(2, "held", "label is not UTF-8")]
