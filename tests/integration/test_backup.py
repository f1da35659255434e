"""ClickHouse restored from its own BACKUP, whole, while the source went on."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from psycopg2.extensions import connection as Connection

from tests.agreement import assert_agreement, sync
from tests.integration.test_pipeline import add, campaigns, write
from worker.celery import Servers
from worker.sink import Sink, quoted
from worker.streams import EVENTS_TABLE, STREAMS
from worker.windows import ORIGIN

BACKUP = "Disk('backups', '{name}.tar.gz')"
SAID = "SELECT date_id, campaign_id, said_at, impressions_count, cause FROM daily_campaign_history ORDER BY ALL"


def backed_up(servers: Servers) -> str:
    """Makes a backup of the whole database; returns where."""
    place = BACKUP.format(name=uuid4().hex)
    servers.sink.command("backing up", f"BACKUP DATABASE {quoted(servers.sink.database)} TO {place}")
    return place


def restore(servers: Servers, place: str) -> None:
    """Drops the database, as if its disk were lost, and restores it."""
    name = quoted(servers.sink.database)
    servers.sink.close()
    with Sink(servers.settings, database="default") as bare:
        bare.command("losing everything", f"DROP DATABASE {name} SYNC")
        bare.command("restoring", f"RESTORE DATABASE {name} FROM {place}")


def rows(servers: Servers, statement: str) -> list[tuple[Any, ...]]:
    return servers.sink.query("looking", statement)


def test_a_restored_database_agrees_with_the_source_after_one_sync(servers: Servers, writer: Connection) -> None:
    first, second, *_ = campaigns(writer)
    add(writer, "impressions", first, 500)
    add(writer, "clicks", first, 50)
    sync(servers)
    place = backed_up(servers)
    said = rows(servers, SAID)

    # What comes after the backup: new rows, and rows that move to another campaign and day.
    add(writer, "impressions", second, 300, at="2026-11-20T10:00:00Z")
    write(
        writer,
        "UPDATE impressions SET campaign_id = %s, created_at = created_at - interval '3 days' WHERE id %% 7 = 0",
        second,
    )
    sync(servers)
    assert_agreement(writer, servers)

    restore(servers, place)
    assert rows(servers, "SELECT count() FROM ad_events FINAL") == [(550,)]
    assert rows(servers, SAID) == said
    sync(servers)
    assert_agreement(writer, servers)
    # What was said before the backup is remembered.
    assert set(said) <= set(rows(servers, SAID))


def test_a_restored_table_is_another_one_to_the_ledger_so_nothing_is_taken_for_loaded(
    servers: Servers, writer: Connection
) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 100)
    sync(servers)
    before = servers.ledger.live([STREAMS["impressions"]])[EVENTS_TABLE]
    place = backed_up(servers)
    add(writer, "impressions", campaign, 100)
    sync(servers)

    # Of the table alone, the ledger staying as it is: it speaks of rows that the older table does not hold.
    servers.sink.command("losing the table", f"DROP TABLE {EVENTS_TABLE} SYNC")
    servers.sink.command(
        "restoring the table", f"RESTORE TABLE {quoted(servers.sink.database)}.{EVENTS_TABLE} FROM {place}"
    )
    live = servers.ledger.live([STREAMS["impressions"]])[EVENTS_TABLE]
    assert live != before
    assert servers.ledger.coverage([STREAMS["impressions"]], {EVENTS_TABLE: live})["impressions"].watermark == ORIGIN
    sync(servers)
    assert_agreement(writer, servers)
