"""Versions are read off snapshots and never made up: what mends wins over all before and loses to all after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from psycopg2.extensions import connection as Connection

from tests.agreement import assert_agreement, rebuild, sync
from tests.integration.test_reconcile import NEWER, fill, look, pass_by, plant_row, silently, write
from tests.integration.test_replay import EVERYTHING, figures
from worker import reconcile
from worker.celery import Servers
from worker.config import Settings
from worker.source import Snapshot, Source
from worker.streams import EVENT_STREAMS, STREAMS
from worker.tasks.reconcile import compare, replay_window

IMPRESSIONS, CLICKS = STREAMS["impressions"], STREAMS["clicks"]


@contextmanager
def in_progress(settings: Settings, count: int) -> Iterator[list[Connection]]:
    """So many transactions that have taken a number and go on."""
    opened: list[Connection] = []
    try:
        for _ in range(count):
            connection = psycopg2.connect(settings.source_dsn)
            opened.append(connection)
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_current_xact_id()")
        yield opened
    finally:
        for connection in opened:
            connection.close()


def version(source: Source, *, newer: bool = False) -> int:
    with source.snapshot(newer=newer) as snapshot:
        return snapshot.version(1)


def test_a_newer_snapshot_is_newer_where_nothing_was_written(servers: Servers) -> None:
    before = version(servers.source)
    assert version(servers.source) == before
    seen = [version(servers.source, newer=True) for _ in range(3)]
    assert before < seen[0] < seen[1] < seen[2]
    assert version(servers.source) == seen[2]


@given(steps=st.lists(st.sampled_from(["begin", "commit", "roll back", "look", "pass"]), max_size=25))
@hypothesis_settings(max_examples=25)
def test_a_newer_snapshot_is_above_every_one_before(servers: Servers, steps: list[str]) -> None:
    """Whatever transactions come and go, of one snapshot to the next one fewer in progress included."""
    newest = version(servers.source)
    with in_progress(servers.settings, 3) as running:
        for step in steps:
            if step == "begin":
                connection = psycopg2.connect(servers.settings.source_dsn)
                running.append(connection)
                with connection.cursor() as cursor:
                    cursor.execute("SELECT pg_current_xact_id()")
            elif step in {"commit", "roll back"} and running:
                connection = running.pop()
                connection.commit() if step == "commit" else connection.rollback()
                connection.close()
            elif step == "look":
                found = version(servers.source)
                assert found >= newest
                newest = found
            else:
                found = version(servers.source, newer=True)
                assert found > newest
                newest = found


def test_one_transaction_fewer_is_one_version_more_with_other_data(
    servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a replay read must not take the place of what a tick reads one transaction later."""
    fill(writer, 100, 100)
    sync(servers)
    silently(writer, "UPDATE clicks SET campaign_id = 5 WHERE id = 7")
    read: list[int] = []
    snapshot_of = Source.snapshot
    other = Servers.open(servers.settings)
    with in_progress(servers.settings, 1) as (pending,):
        with pending.cursor() as cursor:
            cursor.execute(
                "UPDATE clicks SET campaign_id = 2, created_at = created_at + interval '2 days' WHERE id = 7"
            )

        @contextmanager
        def then_it_commits(self: Source, *arguments: Any, **options: Any) -> Iterator[Snapshot]:
            with snapshot_of(self, *arguments, **options) as found:
                yield found
            if self is servers.source and not read and options.get("newer"):
                read.append(found.version(1))
                # The replay has read its window; the transaction it did not see is over, and no other was begun.
                pending.commit()
                with snapshot_of(other.source) as next_one:
                    assert next_one.version(1) == read[0] + 1
                monkeypatch.setattr(Source, "snapshot", snapshot_of)
                sync(other, streams=[CLICKS], metrics_update=False)

        monkeypatch.setattr(Source, "snapshot", then_it_commits)
        replay_window(servers, CLICKS, EVERYTHING, dry_run=False)
    other.close()
    assert read
    sync(servers)
    rebuild(servers)
    assert_agreement(writer, servers)


def test_what_heals_does_not_outrank_a_reading_one_transaction_later(
    servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(writer, 100, 100)
    sync(servers)
    # A wrong row that was stored in the version which the comparison would read at, if it did not read at a newer one.
    silently(writer, "UPDATE clicks SET campaign_id = 5 WHERE id = 7")
    other = Servers.open(servers.settings)
    with in_progress(servers.settings, 1) as (pending,):
        with pending.cursor() as cursor:
            cursor.execute(
                "UPDATE clicks SET campaign_id = 2, created_at = created_at + interval '2 days' WHERE id = 7"
            )
        plant_row(servers, CLICKS, 7, campaign="1", version=str(version(servers.source)))
        written = reconcile.write

        def then_it_commits(*arguments: Any) -> None:
            pending.commit()
            sync(other, streams=[CLICKS], metrics_update=False)
            written(*arguments)

        monkeypatch.setattr(reconcile, "write", then_it_commits)
        compare(servers, CLICKS, heal=True)
    other.close()
    sync(servers)
    rebuild(servers)
    assert_agreement(writer, servers)


def test_what_claims_to_be_newer_than_the_source_is_told_and_left(servers: Servers, writer: Connection) -> None:
    fill(writer)
    sync(servers)
    plant_row(servers, IMPRESSIONS, 7, campaign="1", version=f"_version + {NEWER}")
    write(writer, "DELETE FROM impressions WHERE id = 8")
    stored = servers.sink.query("reading", "SELECT max(_version) FROM ad_events")
    result = look(servers, heal=True)
    assert {defect.event_id: (defect.ahead, defect.mended) for defect in result.defects} == {
        7: (True, False), 8: (False, True),
    }  # fmt: skip
    assert (result.ahead, result.agrees) == (1, False)
    replayed = replay_window(servers, IMPRESSIONS, EVERYTHING, dry_run=False)
    assert (figures(replayed), replayed.ahead) == ((0, 0, 0), 1)
    assert servers.sink.query("reading", "SELECT max(_version) FROM ad_events") == stored
    # Once the source is there, it is mended as any other.
    pass_by(writer)
    assert look(servers, heal=True).agrees
    assert_agreement(writer, servers)


def test_versions_stored_are_those_of_snapshots(servers: Servers, writer: Connection) -> None:
    fill(writer)
    sync(servers)
    for stream in EVENT_STREAMS:
        write(writer, f"DELETE FROM {stream.source_table} WHERE id <= 5")
        silently(writer, f"UPDATE {stream.source_table} SET campaign_id = 5 WHERE id BETWEEN 6 AND 9")
    taken: set[int] = set()
    snapshot_of = Source.snapshot

    @contextmanager
    def noted(self: Source, *arguments: Any, **options: Any) -> Iterator[Snapshot]:
        with snapshot_of(self, *arguments, **options) as found:
            taken.add(found.version(1))
            yield found

    stored = {row[0] for row in servers.sink.query("reading", "SELECT DISTINCT _version FROM ad_events")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Source, "snapshot", noted)
        assert compare(servers, IMPRESSIONS, heal=True).agrees
        assert replay_window(servers, CLICKS, EVERYTHING, dry_run=False).differs
    added = {row[0] for row in servers.sink.query("reading", "SELECT DISTINCT _version FROM ad_events")} - stored
    assert added
    assert added <= taken
    assert_agreement(writer, servers)
