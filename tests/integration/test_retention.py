"""What the source keeps for a while only stays here, and what was sealed is not taken from without a word by a person."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from psycopg2.extensions import connection as Connection

from tests.agreement import assert_agreement, rebuild, sync, target_events, target_performance
from tests.integration.test_reconcile import fill, silently, write
from tests.integration.test_refresh import complete_refresh, finish, started
from tests.integration.test_refresh import fill as fill_shadow
from tests.integration.test_replay import EVERYTHING, figures
from tests.integration.test_seals import declare_final
from worker import metrics, refresh, retention, seals
from worker.celery import Servers
from worker.streams import EVENT_STREAMS, EVENTS_TABLE, STREAMS
from worker.tasks.reconcile import compare, replay_window
from worker.tasks.seals import seal_due
from worker.windows import to_micros

IMPRESSIONS, CLICKS = STREAMS["impressions"], STREAMS["clicks"]
DAY = date(2026, 11, 15)
BEGIN, SECOND, THIRD = (datetime(2026, 11, 15 + n, tzinfo=UTC) for n in range(3))


def keeps_from(servers: Servers, since: datetime) -> None:
    """The source keeps events for whole days; `since` lies on the last of them."""
    days = (servers.source.now() - since) // timedelta(days=1)
    servers.settings = servers.settings.model_copy(update={"source_keeps_days": days})


def drop_at_the_source(writer: Connection, before: datetime) -> int:
    """What a retention job does; returns how many impressions are gone."""
    for table in ("impressions", "clicks"):
        gone = write(writer, f"DELETE FROM {table} WHERE created_at < %s RETURNING id", before)
        if table == "impressions":
            count = len(gone)
    return count


@pytest.fixture
def dropped(servers: Servers, writer: Connection) -> tuple[Servers, int]:
    """Three sealed days, of which the source has dropped the first; it promises to keep what happened from the third."""
    fill(writer)
    sync(servers)
    declare_final(servers)
    assert seal_due(servers)["sealed"] == 3
    count = drop_at_the_source(writer, SECOND)
    keeps_from(servers, THIRD)
    return servers, count


def restatements(servers: Servers) -> list[Any]:
    return servers.sink.query("reading", "SELECT * FROM metric_restatements")


def test_what_aged_out_at_the_source_is_no_difference(dropped: tuple[Servers, int]) -> None:
    servers, count = dropped
    before = target_events(servers), target_performance(servers)
    for heal in (False, True):
        result = compare(servers, IMPRESSIONS, heal=heal, sealed=heal)
        assert (result.agrees, result.defects, result.no_longer_kept) == (True, (), count)
        assert {day.day: day.no_longer_kept for day in result.days if day.no_longer_kept} == {DAY: count}
        assert {day.state for day in result.days} == {"equal"}
    for dry_run in (True, False):
        replayed = replay_window(servers, IMPRESSIONS, EVERYTHING, dry_run=dry_run, sealed=True)
        assert (figures(replayed), replayed.no_longer_kept, replayed.effect) == ((0, 0, 0), count, ())
    assert (target_events(servers), target_performance(servers)) == before
    assert restatements(servers) == []
    rows = servers.sink.query(
        "reading", "SELECT sum(no_longer_kept) FROM reconciliations FINAL GROUP BY run_id ORDER BY max(checked_at)"
    )
    assert rows == [(count,), (count,)]


def test_what_is_younger_is_still_compared(dropped: tuple[Servers, int], writer: Connection) -> None:
    servers, _ = dropped
    lost = write(writer, "SELECT id FROM impressions WHERE created_at >= '2026-11-18' ORDER BY id LIMIT 3")
    write(writer, "DELETE FROM impressions WHERE id = %s", lost[0][0])
    silently(writer, "UPDATE impressions SET campaign_id = 1 + campaign_id %% 5 WHERE id = %s", lost[1][0])
    # It moves from a day that is no longer asked about to one that is.
    moved = write(
        writer, "SELECT max(id) FROM impressions WHERE created_at < %s", datetime(2026, 11, 16, 20, tzinfo=UTC)
    )
    silently(writer, "UPDATE impressions SET created_at = '2026-11-18T05:00Z' WHERE id = %s", moved[0][0])
    found = compare(servers, IMPRESSIONS, heal=True)
    assert {d.event_id: d.cause for d in found.defects} == {
        lost[0][0]: "extra", lost[1][0]: "stale", moved[0][0]: "stale",
    }  # fmt: skip
    assert found.agrees


def test_an_event_written_long_ago_is_old_whenever_it_happened(servers: Servers, writer: Connection) -> None:
    fill(writer, 20, 20)
    silently(writer, "UPDATE impressions SET inserted_at = '2026-11-15T00:00Z' WHERE id <= 3")
    sync(servers)
    keeps_from(servers, THIRD)
    silently(writer, "UPDATE impressions SET created_at = '2026-11-20T00:00Z' WHERE id <= 3")
    compare(servers, IMPRESSIONS, heal=True)
    write(writer, "DELETE FROM impressions WHERE id <= 3")
    assert compare(servers, IMPRESSIONS, heal=True).agrees
    assert {row[1] for row in target_events(servers) if row[0] == "impression"} >= {1, 2, 3}


def test_the_edge_of_what_is_kept() -> None:
    kept = THIRD
    edge = to_micros(kept)
    assert not retention.aged_out(edge, edge, kept)
    assert retention.aged_out(edge - 1, edge, kept)
    assert retention.aged_out(edge, edge - 1, kept)
    assert retention.aged_out(None, edge - 1, kept)
    assert not retention.aged_out(0, 0, None)


def test_a_seal_beyond_what_the_source_keeps_is_checked_on_this_side(
    dropped: tuple[Servers, int], writer: Connection
) -> None:
    servers, _ = dropped
    verdict = seals.verify(servers.source, servers.sink, servers.ledger, servers.settings, DAY)
    assert verdict.holds
    assert {part.source for part in verdict.parts if part.name.startswith(("impressions", "clicks"))} == {None}
    assert any("keeps events for" in note for note in verdict.notes)
    # A late event restates it, and it is sealed anew with what is here.
    write(writer, "INSERT INTO clicks (id, campaign_id, created_at) VALUES (77777, 3, '2026-11-15T23:00:00Z')")
    sync(servers)
    assert seal_due(servers) == {"sealed": 1, "renewed": 1}
    assert seals.verify(servers.source, servers.sink, servers.ledger, servers.settings, DAY).holds
    servers.sink.command("losing", "ALTER TABLE ad_events DELETE WHERE event_id = 77777 SETTINGS mutations_sync = 2")
    assert not seals.verify(servers.source, servers.sink, servers.ledger, servers.settings, DAY).holds


def test_a_sealed_day_is_not_taken_from_without_a_word(servers: Servers, writer: Connection) -> None:
    fill(writer)
    sync(servers)
    declare_final(servers)
    seal_due(servers)
    count = drop_at_the_source(writer, SECOND)
    write(writer, "DELETE FROM impressions WHERE id = (SELECT max(id) FROM impressions)")
    before = target_performance(servers)
    result = compare(servers, IMPRESSIONS, heal=True)
    assert (result.withheld, result.agrees) == (count, False)
    assert sum(defect.mended for defect in result.defects) == 1
    assert {day.day: day.state for day in result.days}[DAY] == "mismatch"
    assert {row for row in before if row[0] == DAY} <= set(target_performance(servers))
    replayed = replay_window(servers, IMPRESSIONS, EVERYTHING, dry_run=False)
    assert (replayed.withheld, replayed.differs) == (count, False)
    assert restatements(servers) == []
    assert compare(servers, IMPRESSIONS, heal=True, sealed=True).agrees
    done = replay_window(servers, CLICKS, EVERYTHING, dry_run=False, sealed=True)
    assert done.extra > 0
    assert_agreement(writer, servers)
    assert {row[0] for row in servers.sink.query("reading", "SELECT date_id FROM metric_restatements")} == {DAY}


def test_a_full_refresh_keeps_what_the_source_no_longer_has(
    dropped: tuple[Servers, int], writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers, _ = dropped
    monkeypatch.setattr(retention, "ROWS_AT_ONCE", 7)
    # What is younger and gone was deleted, what is older and there was read anew.
    write(writer, "DELETE FROM impressions WHERE created_at >= '2026-11-18'")
    silently(writer, "UPDATE impressions SET campaign_id = 5 WHERE created_at < '2026-11-16T06:00Z'")
    before = {row[:2]: row for row in target_events(servers) if row[3] < to_micros(SECOND)}
    versions = dict(
        servers.sink.query("reading", "SELECT event_id, _version FROM ad_events FINAL WHERE created_at < '2026-11-16'")
    )
    run = started(servers, "kept")
    fill_shadow(servers, run)
    kept = retention.kept_since(servers.settings, servers.source.now())
    # An attempt that dies in the middle, and one that comes again.
    seen: list[Any] = []
    command = servers.sink.command

    def dies(doing: str, *arguments: Any, **options: Any) -> None:
        if doing.startswith("carrying"):
            seen.append(doing)
            if len(seen) == 3:
                raise RuntimeError("killed here")
        command(doing, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(servers.sink, "command", dies)
        with pytest.raises(RuntimeError):
            finish(servers, run, kept=kept)
    finish(servers, run, kept=kept)
    rebuild(servers)
    after = {row[:2]: row for row in target_events(servers)}
    assert {key: row for key, row in after.items() if row[3] < to_micros(SECOND)} == before
    assert not any(
        row[0] == "impression" and row[3] >= to_micros(datetime(2026, 11, 18, tzinfo=UTC)) for row in after.values()
    )
    read_anew = write(writer, "SELECT id, campaign_id FROM impressions")
    assert read_anew
    assert all(after["impression", event_id][2] == (campaign or 0) for event_id, campaign in read_anew)
    assert versions == dict(
        servers.sink.query("reading", "SELECT event_id, _version FROM ad_events FINAL WHERE created_at < '2026-11-16'")
    )
    stored = servers.sink.query("counting", "SELECT count(), uniqExact(event_type, event_id) FROM ad_events")[0]
    assert stored[0] == stored[1]


def test_what_was_taken_away_is_not_carried_along(servers: Servers, writer: Connection) -> None:
    fill(writer, 100, 100)
    sync(servers)
    drop_at_the_source(writer, SECOND)
    for stream in EVENT_STREAMS:
        assert compare(servers, stream, heal=True).agrees
    keeps_from(servers, THIRD)
    run = started(servers, "mended-before")
    fill_shadow(servers, run)
    finish(servers, run, kept=retention.kept_since(servers.settings, servers.source.now()))
    rebuild(servers)
    assert_agreement(writer, servers)


def test_without_the_setting_a_refresh_holds_what_the_source_has(servers: Servers, writer: Connection) -> None:
    fill(writer, 100, 100)
    sync(servers)
    drop_at_the_source(writer, SECOND)
    complete_refresh(servers, "plain")
    assert_agreement(writer, servers)
    assert refresh.shadows(servers.sink) == []
    assert servers.sink.uuid(EVENTS_TABLE)
    assert not metrics.dirty_days(servers.sink)


def test_the_same_event_stored_twice_is_no_difference(servers: Servers, writer: Connection) -> None:
    """As two windows of one version leave it."""
    fill(writer, 100, 100)
    sync(servers)
    servers.sink.command("holding merges", "SYSTEM STOP MERGES ad_events")
    servers.sink.command(
        "loading again",
        "INSERT INTO ad_events (event_type, event_id, campaign_id, created_at, inserted_at, _version) "
        "SELECT event_type, event_id, campaign_id, created_at, inserted_at, _version FROM ad_events "
        "SETTINGS insert_deduplicate = 0",
    )
    assert servers.sink.query("counting", "SELECT count() FROM ad_events") == [(400,)]
    servers.settings = servers.settings.model_copy(update={"reconcile_heal_limit": 10})
    for heal in (False, True):
        result = compare(servers, IMPRESSIONS, heal=heal)
        assert (result.agrees, result.too_many, result.defects) == (True, False, ())
    assert not replay_window(servers, IMPRESSIONS, EVERYTHING, dry_run=True).differs
    servers.sink.command("letting merges go", "SYSTEM START MERGES ad_events")
    assert_agreement(writer, servers)
