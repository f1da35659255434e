"""A dimension's row that cannot be loaded stops no other; a reading that shows too little is not believed."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from decimal import Decimal

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

import seed.schema
from tests.agreement import read_dimension
from tests.conftest import administer, in_database
from tests.integration.test_pipeline import campaigns, write
from worker.celery import Servers
from worker.config import Settings

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
