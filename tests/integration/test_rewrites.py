"""Statements that rewrite or replace a source table while it is read: a reading is one consistent state, or none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

from tests.agreement import sync, target_events
from tests.integration.test_reconcile import fill, silently, write
from tests.integration.test_seals import declare_final
from worker import dimensions, pipeline, seals
from worker.celery import Servers
from worker.source import Source
from worker.streams import EVENTS_TABLE, STREAMS
from worker.tasks.reconcile import compare, replay_window
from worker.tasks.seals import seal_due
from worker.windows import ORIGIN, Window

IMPRESSIONS, CAMPAIGNS = STREAMS["impressions"], STREAMS["campaigns"]

REWRITES = {
    "a column with a volatile default": ["ALTER TABLE {table} ADD COLUMN device uuid DEFAULT gen_random_uuid()"],
    "another type": ["ALTER TABLE {table} ALTER COLUMN created_at TYPE timestamp USING created_at AT TIME ZONE 'UTC'"],
    "emptied and filled": [
        "CREATE TEMP TABLE kept AS SELECT * FROM {table}",
        "TRUNCATE {table}",
        "INSERT INTO {table} SELECT * FROM kept",
    ],
    "dropped and made anew": [
        "CREATE TABLE anew (LIKE {table} INCLUDING ALL)",
        "INSERT INTO anew SELECT * FROM {table}",
        "DROP TABLE {table}",
        "ALTER TABLE anew RENAME TO {table}",
    ],
    "unlogged": ["ALTER TABLE {table} SET UNLOGGED"],
    "unlogged and logged": ["ALTER TABLE {table} SET UNLOGGED", "ALTER TABLE {table} SET LOGGED"],
}


class Rewriting:
    """Runs statements in one transaction once a reading has its snapshot, and lets the reading go on when they have
    committed or are seen to wait."""

    def __init__(self, dsn: str, statements: Sequence[str], at: int = 1) -> None:
        self.dsn, self.statements, self.at = dsn, statements, at
        self.taken = 0
        self.done = threading.Event()
        self.error = ""
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        connection = psycopg2.connect(self.dsn, application_name="a migration")
        try:
            with connection, connection.cursor() as cursor:
                for statement in self.statements:
                    cursor.execute(statement)
        except psycopg2.Error as error:
            self.error = str(error)
        finally:
            connection.close()
            self.done.set()

    def strike(self) -> None:
        self.taken += 1
        if self.taken != self.at:
            return
        self.thread.start()
        watcher = psycopg2.connect(self.dsn)
        watcher.autocommit = True
        deadline = time.monotonic() + 20
        try:
            with watcher.cursor() as cursor:
                while not self.done.wait(0.02):
                    cursor.execute(
                        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'a migration' "
                        "AND datname = current_database() AND wait_event_type = 'Lock'"
                    )
                    if cursor.fetchone() == (1,):
                        return
                    assert time.monotonic() < deadline, "it neither ends nor waits"
        finally:
            watcher.close()

    def ended(self) -> None:
        assert self.taken >= self.at, "no snapshot was taken, so nothing was tried"
        assert self.done.wait(20)
        assert self.error == ""


@pytest.fixture
def rewriting(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str], int], Rewriting]:
    original = Source.snapshot

    def begin(statements: Sequence[str], at: int = 1) -> Rewriting:
        struck = Rewriting(servers.settings.source_dsn, statements, at)

        @contextmanager
        def snapshot(self: Source, *args: Any, **kwargs: Any) -> Iterator[Any]:
            with original(self, *args, **kwargs) as taken:
                struck.strike()
                yield taken

        monkeypatch.setattr(Source, "snapshot", snapshot)
        return struck

    return begin


@pytest.fixture
def unbound(writer: Connection) -> Connection:
    """The source filled, without foreign keys, which would forbid half of the statements."""
    fill(writer)
    for table in ("impressions", "clicks"):
        write(writer, f"ALTER TABLE {table} DROP CONSTRAINT {table}_campaign_id_fkey")
    return writer


def statements(kind: str, table: str) -> list[str]:
    return [statement.format(table=table) for statement in REWRITES[kind]]


kinds = pytest.mark.parametrize("kind", REWRITES)


def load(servers: Servers, window: Window) -> pipeline.Loaded:
    uuid = servers.ledger.live([IMPRESSIONS])[EVENTS_TABLE]
    return pipeline.load_window(
        servers.source, servers.sink, servers.ledger, servers.settings, IMPRESSIONS, window,
        table=EVENTS_TABLE, uuid=uuid,
    )  # fmt: skip


@kinds
def test_a_window_holds_every_row(servers: Servers, unbound: Connection, rewriting: Any, kind: str) -> None:
    count = write(unbound, "SELECT count(*) FROM impressions")[0][0]
    struck = rewriting(statements(kind, "impressions"))
    done = load(servers, Window(ORIGIN, servers.source.now()))
    struck.ended()
    assert done.extracted == count > 0
    assert len(target_events(servers)) == count


def test_a_window_holds_the_rows_of_a_partition_that_is_detached(
    servers: Servers, unbound: Connection, rewriting: Any
) -> None:
    write(unbound, "CREATE TABLE parted (LIKE impressions INCLUDING DEFAULTS) PARTITION BY RANGE (id)")
    write(unbound, "CREATE TABLE part_1 PARTITION OF parted FOR VALUES FROM (MINVALUE) TO (300)")
    write(unbound, "CREATE TABLE part_2 PARTITION OF parted FOR VALUES FROM (300) TO (MAXVALUE)")
    write(unbound, "INSERT INTO parted SELECT * FROM impressions")
    write(unbound, "DROP TABLE impressions")
    write(unbound, "ALTER TABLE parted RENAME TO impressions")
    count = write(unbound, "SELECT count(*) FROM impressions")[0][0]
    struck = rewriting(["ALTER TABLE impressions DETACH PARTITION part_1"])
    done = load(servers, Window(ORIGIN, servers.source.now()))
    struck.ended()
    assert done.extracted == count > 300


@kinds
def test_a_dimension_loses_nothing(servers: Servers, unbound: Connection, rewriting: Any, kind: str) -> None:
    sync(servers)
    count = write(unbound, "SELECT count(*) FROM campaign")[0][0]
    struck = rewriting(statements(kind, "campaign"))
    uuid = servers.ledger.live([CAMPAIGNS])[CAMPAIGNS.target]
    done = dimensions.load_dimension(
        servers.source, servers.sink, servers.ledger, servers.settings, CAMPAIGNS, uuid=uuid
    )
    struck.ended()
    assert done.extracted == count > 0
    gone = servers.sink.query("looking", "SELECT count() FROM campaign_dimension WHERE is_deleted")[0][0]
    assert gone == 0


@kinds
@pytest.mark.parametrize("at", [1, 2])
def test_reconciliation_takes_nothing_away(
    servers: Servers, unbound: Connection, rewriting: Any, kind: str, at: int
) -> None:
    sync(servers)
    # One row differs, so that it is looked at again in a second snapshot.
    silently(unbound, "UPDATE impressions SET campaign_id = 5 WHERE id = 6")
    struck = rewriting(statements(kind, "impressions"), at)
    found = compare(servers, IMPRESSIONS, heal=True)
    struck.ended()
    assert [(defect.event_id, defect.cause) for defect in found.defects] == [(6, "stale")]
    assert found.agrees


@kinds
def test_a_replay_buries_nothing(servers: Servers, unbound: Connection, rewriting: Any, kind: str) -> None:
    sync(servers)
    # The window's rows are read in one snapshot, and whether those it lacks are gone in the next.
    silently(unbound, "UPDATE impressions SET inserted_at = now() WHERE id = 6")
    everything = Window(ORIGIN, servers.source.now() - timedelta(microseconds=1))
    struck = rewriting(statements(kind, "impressions"), 2)
    done = replay_window(servers, IMPRESSIONS, Window(ORIGIN, everything.hi), dry_run=False)
    struck.ended()
    assert done.extra == 0
    assert len(target_events(servers)) == sum(
        write(unbound, f"SELECT count(*) FROM {table}")[0][0] for table in ("impressions", "clicks")
    )


@kinds
def test_a_day_is_sealed_with_all_its_rows(servers: Servers, unbound: Connection, rewriting: Any, kind: str) -> None:
    sync(servers)
    declare_final(servers)
    struck = rewriting(statements(kind, "clicks"))
    assert seal_due(servers) == {"sealed": 3, "renewed": 0}
    struck.ended()
    days = servers.sink.query("looking at seals", "SELECT DISTINCT date_id FROM day_seals ORDER BY 1")
    found = [seals.verify(servers.source, servers.sink, servers.ledger, servers.settings, day) for (day,) in days]
    assert len(found) == 3
    assert all(verdict.holds for verdict in found)
