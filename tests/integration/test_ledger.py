"""Watermarks: computed from the ledger, copied to Redis, rebuilt whenever the two disagree."""

from __future__ import annotations

import itertools
import threading
from datetime import timedelta

import pytest
import redis
import structlog
from psycopg2.extensions import connection as Connection

from tests.agreement import assert_agreement, sync
from tests.integration.test_pipeline import add, campaigns, write
from worker import planner
from worker.celery import Servers
from worker.ledger import CHECKPOINT_AFTER, Commit, Generation, effective
from worker.source import Snapshot
from worker.streams import EVENTS_TABLE, STREAMS
from worker.watermarks import Watermark
from worker.windows import MICROSECOND, ORIGIN, Window, to_micros

IMPRESSIONS = STREAMS["impressions"]


def at(micros: int) -> Window:
    return Window(ORIGIN + micros * MICROSECOND, ORIGIN + (micros + 1) * MICROSECOND)


def snapshot(system_id: int = 7, timeline: int = 1, xmax: int = 100) -> Snapshot:
    return Snapshot(system_id, timeline, xmax, 0, ORIGIN + timedelta(days=20_000))


def commit(servers: Servers, window: Window, taken: Snapshot, generation: int = 1) -> None:
    uuid = servers.ledger.live([IMPRESSIONS])[EVENTS_TABLE]
    servers.ledger.commit(
        IMPRESSIONS, uuid, window, run_id="", version=taken.version(generation), rows=1, quarantined=0,
        content_hash=0, snapshot=taken,
    )  # fmt: skip


def watermark(servers: Servers) -> int:
    found = planner.publish_watermarks(servers.ledger, servers.store, [IMPRESSIONS], servers.ledger.live([IMPRESSIONS]))
    return to_micros(found["impressions"].watermark)


def test_the_watermark_is_the_end_of_the_contiguous_run(servers: Servers) -> None:
    taken = snapshot()
    servers.ledger.generation(taken, failover_rewind=timedelta(hours=1))
    assert watermark(servers) == 0
    commit(servers, at(0), taken)
    commit(servers, at(2), taken)
    assert watermark(servers) == 1
    commit(servers, at(1), taken)
    assert watermark(servers) == 3
    copy = servers.store.watermark(IMPRESSIONS)
    assert copy is not None
    assert to_micros(copy.at) == 3


def test_a_checkpoint_changes_no_watermark_and_shortens_the_reading(servers: Servers) -> None:
    taken = snapshot()
    servers.ledger.generation(taken, failover_rewind=timedelta(hours=1))
    uuid = servers.ledger.live([IMPRESSIONS])[EVENTS_TABLE]
    rows = [
        ("impressions", uuid, at(n).lo, at(n).hi, "window", taken.version(1), 1, 7, 1)
        for n in range(CHECKPOINT_AFTER + 10)
        if n != 200
    ]
    columns = ("stream", "target_uuid", "lo", "hi", "kind", "version", "rows", "system_id", "timeline")
    servers.sink.insert_rows("sync_commits", columns, rows)
    assert watermark(servers) == 200
    assert watermark(servers) == 200
    commit(servers, at(200), taken)
    assert watermark(servers) == CHECKPOINT_AFTER + 10
    coverage = servers.ledger.coverage([IMPRESSIONS], servers.ledger.live([IMPRESSIONS]))["impressions"]
    assert to_micros(coverage.watermark) == CHECKPOINT_AFTER + 10
    assert watermark(servers) == CHECKPOINT_AFTER + 10
    assert servers.ledger.coverage([IMPRESSIONS], {EVENTS_TABLE: uuid})["impressions"].commits < CHECKPOINT_AFTER


def test_commits_for_a_table_that_is_not_live_do_not_count(servers: Servers) -> None:
    taken = snapshot()
    servers.ledger.generation(taken, failover_rewind=timedelta(hours=1))
    commit(servers, at(0), taken)
    assert watermark(servers) == 1
    servers.sink.command("replacing", "CREATE TABLE other AS ad_events")
    servers.sink.command("replacing", "EXCHANGE TABLES other AND ad_events")
    assert watermark(servers) == 0
    servers.sink.command("replacing", "EXCHANGE TABLES other AND ad_events")
    assert watermark(servers) == 1


def test_another_timeline_takes_the_watermark_back_by_the_margin(servers: Servers) -> None:
    first, promoted = snapshot(timeline=1), snapshot(timeline=2)
    end = first.taken_at + timedelta(hours=3)
    assert servers.ledger.generation(first, failover_rewind=timedelta(hours=1)) == 1
    commit(servers, Window(ORIGIN, end), first)
    assert watermark(servers) == to_micros(end)
    assert servers.ledger.generation(promoted, failover_rewind=timedelta(hours=1)) == 2
    assert servers.ledger.generation(promoted, failover_rewind=timedelta(hours=1)) == 2
    assert watermark(servers) == to_micros(first.taken_at - timedelta(hours=1))
    assert promoted.version(2) > first.version(1)


def test_another_system_starts_over(servers: Servers) -> None:
    first, other = snapshot(), snapshot(system_id=8)
    servers.ledger.generation(first, failover_rewind=timedelta(hours=1))
    commit(servers, Window(ORIGIN, first.taken_at), first)
    servers.ledger.generation(other, failover_rewind=timedelta(hours=1))
    assert watermark(servers) == 0


def test_an_old_generation_counts_only_as_far_as_every_later_one_lets_it() -> None:
    def limit(number: int, micros: int) -> Generation:
        return Generation(number, 1, number, ORIGIN + micros * MICROSECOND)

    commits = [Commit(Window(ORIGIN, at(9).hi), 1), Commit(at(20), 2), Commit(at(3), 3)]
    generations = [limit(1, 0), limit(2, 5), limit(3, 8)]
    assert effective(commits, generations) == [Window(ORIGIN, at(4).hi), at(3)]


def test_an_emptied_redis_has_the_right_watermarks_after_one_tick(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 100)
    sync(servers)
    streams = list(STREAMS.values())
    planner.publish_watermarks(servers.ledger, servers.store, streams, servers.ledger.live(streams))
    known = [servers.store.watermark(stream) for stream in streams]
    assert None not in known
    redis.Redis.from_url(servers.settings.redis_url).flushdb()
    assert [servers.store.watermark(stream) for stream in streams] == [None] * len(streams)
    # Ticks of events come every second, those of dimensions every minute.
    planner.plan(servers.source, servers.ledger, servers.store, servers.settings, [IMPRESSIONS])
    assert [servers.store.watermark(stream) for stream in streams] == known
    assert sync(servers, streams=[IMPRESSIONS]) == 0


@pytest.mark.parametrize("forged", ["ahead", "rubbish"])
def test_a_watermark_set_by_hand_is_noticed_and_not_believed(servers: Servers, writer: Connection, forged: str) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 100)
    uuid = servers.ledger.live([IMPRESSIONS])[EVENTS_TABLE]
    with servers.source.snapshot() as taken:
        generation = servers.ledger.generation(taken, failover_rewind=timedelta(hours=1))
    if forged == "ahead":
        future = Watermark(servers.source.now() + timedelta(days=30), uuid, generation)
        assert servers.store.publish(IMPRESSIONS, future, servers.store.raw_watermark(IMPRESSIONS))
    else:
        redis.Redis.from_url(servers.settings.redis_url).set("retailmedia:watermark:impressions", "tomorrow")
    with structlog.testing.capture_logs() as events:
        sync(servers)
    assert {event["event"] for event in events} & {"watermark.ahead_of_ledger", "watermark.unreadable"}
    assert_agreement(writer, servers)


def test_of_two_publishers_the_one_that_saw_an_older_copy_gives_way(servers: Servers) -> None:
    uuid = servers.ledger.live([IMPRESSIONS])[EVENTS_TABLE]
    seen = servers.store.raw_watermark(IMPRESSIONS)
    assert servers.store.publish(IMPRESSIONS, Watermark(at(5).lo, uuid, 1), seen)
    assert not servers.store.publish(IMPRESSIONS, Watermark(at(3).lo, uuid, 1), seen)
    kept = servers.store.watermark(IMPRESSIONS)
    assert kept is not None
    assert kept.at == at(5).lo


def test_a_lease_is_held_by_one_and_renewed(servers: Servers) -> None:
    with servers.store.lease("x", 0.3) as mine:
        assert mine is not None
        # Well past its length: only renewal keeps it.
        assert not mine.lost.wait(0.9)
        assert servers.store.try_lease("x", 1) is None
    with servers.store.lease("x", 1) as again:
        assert again is not None


def test_a_window_in_flight_is_not_planned_again(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 10)
    (first,) = planner.plan(servers.source, servers.ledger, servers.store, servers.settings, [IMPRESSIONS])
    assert first.windows
    servers.store.take_off(IMPRESSIONS, first.target_uuid, first.windows, 60, "realtime")
    add(writer, "impressions", campaign, 10)
    (second,) = planner.plan(servers.source, servers.ledger, servers.store, servers.settings, [IMPRESSIONS])
    assert second.windows
    assert second.windows[0].lo == first.windows[-1].hi
    servers.store.take_off(IMPRESSIONS, first.target_uuid, first.windows, 0.001, "realtime")
    released = threading.Event()
    while servers.store.in_flight(IMPRESSIONS, first.target_uuid) and not released.wait(0.01):
        pass
    (third,) = planner.plan(servers.source, servers.ledger, servers.store, servers.settings, [IMPRESSIONS])
    assert third.windows[0].lo == ORIGIN


def test_a_backlog_is_cut_for_the_backfill_queue_and_fresh_rows_for_the_realtime_one(
    servers: Servers, writer: Connection
) -> None:
    (campaign, *_) = campaigns(writer)
    with writer.cursor() as cursor:
        cursor.execute(
            "INSERT INTO impressions (campaign_id, inserted_at) "
            "SELECT %s, now() - interval '1 day' + n * interval '1 s' FROM generate_series(1, 1000) AS n",
            (campaign,),
        )
    add(writer, "impressions", campaign, 10)
    small = servers.settings.model_copy(update={"window_rows": 100, "window_limit": 4})
    (planned,) = planner.plan(servers.source, servers.ledger, servers.store, small, [IMPRESSIONS])
    assert [servers.source.count(IMPRESSIONS, window) for window in planned.backlog] == [100] * 4
    assert sum(servers.source.count(IMPRESSIONS, window) for window in planned.fresh) == 10


def test_what_an_outage_left_behind_does_not_wait_behind_a_backfill(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    write(
        writer,
        "INSERT INTO impressions (campaign_id, inserted_at) "
        "SELECT %s, now() - interval '10 minutes' + n * interval '1 s' FROM generate_series(1, 299) AS n",
        campaign,
    )
    add(writer, "impressions", campaign, 10)
    small = servers.settings.model_copy(update={"window_rows": 100})
    (planned,) = planner.plan(servers.source, servers.ledger, servers.store, small, [IMPRESSIONS])
    assert planned.backlog == ()
    assert [servers.source.count(IMPRESSIONS, window) for window in planned.fresh] == [100, 100, 99, 10]
    assert planned.fresh[0].lo == ORIGIN
    assert all(a.hi == b.lo for a, b in itertools.pairwise(planned.fresh))
    for number in range(planner.SPLIT_AFTER):
        servers.ledger.note_failure(IMPRESSIONS, planned.target_uuid, planned.fresh[0], "", f"timeout {number}")
    (again,) = planner.plan(servers.source, servers.ledger, servers.store, small, [IMPRESSIONS])
    assert again.backlog, "a window that keeps failing does not hold up fresh data"
    assert sum(servers.source.count(IMPRESSIONS, window) for window in again.fresh) == 10


def test_a_window_that_keeps_failing_rests_and_is_then_halved(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    for _ in range(4):
        add(writer, "impressions", campaign, 10)
    (planned,) = planner.plan(servers.source, servers.ledger, servers.store, servers.settings, [IMPRESSIONS])
    (window,) = planned.windows
    note = servers.ledger.note_failure
    note(IMPRESSIONS, planned.target_uuid, window, "", "first")
    add(writer, "impressions", campaign, 10)
    (second,) = planner.plan(servers.source, servers.ledger, servers.store, servers.settings, [IMPRESSIONS])
    assert [failure.window for failure in second.waiting] == [window]
    assert all(piece.lo >= window.hi for piece in second.windows), "a stream goes on behind a window in trouble"
    note(IMPRESSIONS, planned.target_uuid, window, "", "second")
    note(IMPRESSIONS, planned.target_uuid, window, "", "third")
    (third,) = planner.plan(servers.source, servers.ledger, servers.store, servers.settings, [IMPRESSIONS])
    inside = [piece for piece in third.windows if piece.hi <= window.hi]
    assert len(inside) >= 2
    assert inside[0].lo == window.lo
    sync(servers)
    assert_agreement(writer, servers)
