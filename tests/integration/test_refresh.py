"""Full refresh: readers never see fewer rows, the newest wins, and whoever dies is carried on from."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

import pytest
from psycopg2.extensions import connection as Connection

from tests.agreement import assert_agreement, rebuild, sync, target_events
from tests.integration.test_pipeline import add, campaigns, write
from worker import metrics, pipeline, planner, refresh
from worker.celery import Servers
from worker.errors import Superseded
from worker.ledger import Run
from worker.streams import EVENT_STREAMS, EVENTS_TABLE, STREAMS, Stream
from worker.tasks.sync import load
from worker.windows import ORIGIN, Window


def started(servers: Servers, run_id: str, streams: list[Stream] | None = None) -> Run:
    chosen = streams or list(EVENT_STREAMS)
    now = servers.source.now()
    run = Run(run_id, "refresh", tuple(s.name for s in chosen), True, until=now, started_at=now)
    servers.ledger.save_run(run)
    return refresh.begin(servers.source, servers.sink, servers.ledger, servers.settings, chosen, run)


def load_into(servers: Servers, run: Run, stream: Stream, window: Window) -> object:
    assert run.target_uuid is not None
    return pipeline.load_window(
        servers.source, servers.sink, servers.ledger, servers.settings, stream, window,
        table=refresh.shadow_name(run.run_id), uuid=run.target_uuid, run_id=run.run_id,
    )  # fmt: skip


def fill(servers: Servers, run: Run) -> None:
    assert run.target_uuid is not None
    targets = {EVENTS_TABLE: run.target_uuid}
    streams = [STREAMS[name] for name in run.streams]
    while True:
        plans = planner.plan(servers.source, servers.ledger, servers.store, servers.settings, streams, targets=targets)
        for planned in plans:
            for window in planned.windows:
                load_into(servers, run, planned.stream, window)
        if planner.complete(plans, run.until):
            return


def finish(servers: Servers, run: Run, *, kept: datetime | None = None) -> None:
    refresh.finish(
        servers.sink, servers.ledger, servers.store, servers.settings, run,
        load=lambda stream, window: load_into(servers, run, stream, window),
        now=lambda: datetime.now(UTC), wait=lambda _: None, kept=kept,
    )  # fmt: skip


def complete_refresh(servers: Servers, run_id: str, streams: list[Stream] | None = None) -> None:
    run = started(servers, run_id, streams)
    fill(servers, run)
    finish(servers, run)
    rebuild(servers)


def test_two_refreshes_in_a_row_change_nothing(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 200)
    add(writer, "clicks", campaign, 20)
    sync(servers)
    before = target_events(servers)
    for number in (1, 2):
        complete_refresh(servers, f"again-{number}")
        assert target_events(servers) == before
        assert_agreement(writer, servers)
    assert refresh.shadows(servers.sink) == []
    assert sync(servers, streams=list(EVENT_STREAMS)) == 0


def test_filling_a_shadow_rebuilds_no_metrics(servers: Servers, writer: Connection) -> None:
    """Nothing readers see has changed before the swap, and a refresh of a year would rebuild each day many times."""
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 50)
    add(writer, "clicks", campaign, 5, at="2026-10-01T00:00:00Z")
    sync(servers)
    assert metrics.dirty_days(servers.sink) == []
    run = started(servers, "unseen")
    write(writer, "UPDATE clicks SET created_at = '2026-10-02T00:00:00Z'")
    fill(servers, run)
    assert metrics.dirty_days(servers.sink) == []
    finish(servers, run)
    assert {str(day) for day in metrics.dirty_days(servers.sink)} >= {"2026-10-01", "2026-10-02"}
    rebuild(servers)
    assert_agreement(writer, servers)


def test_rows_deleted_at_the_source_are_gone_after_a_refresh(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 50)
    add(writer, "impressions", campaign, 5, at="2026-10-01T00:00:00Z")
    sync(servers)
    write(writer, "DELETE FROM impressions WHERE created_at < '2026-11-01' OR id <= 10")
    complete_refresh(servers, "after-delete")
    assert_agreement(writer, servers)


def test_a_stream_that_is_not_refreshed_comes_along(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 100)
    add(writer, "clicks", campaign, 30)
    sync(servers)
    run = started(servers, "impressions-only", [STREAMS["impressions"]])
    add(writer, "clicks", campaign, 7)
    add(writer, "impressions", campaign, 7)
    sync(servers, streams=list(EVENT_STREAMS))
    fill(servers, run)
    finish(servers, run)
    rebuild(servers)
    assert_agreement(writer, servers)
    assert sync(servers, streams=list(EVENT_STREAMS)) == 0


def test_readers_never_see_fewer_rows(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 3000)
    add(writer, "clicks", campaign, 300)
    sync(servers)
    seen: list[tuple[int, int]] = []
    stop = threading.Event()

    def read() -> None:
        with Servers.open(servers.settings).sink as sink:
            while not stop.is_set():
                events = sink.query("polling", "SELECT count() FROM ad_events FINAL")[0][0]
                counted = sink.query(
                    "polling", "SELECT sum(impressions_count + clicks_count) FROM daily_campaign_performance"
                )[0][0]
                seen.append((events, counted))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(3):
            run = started(servers, f"polled-{number}")
            add(writer, "impressions", campaign, 100)
            sync(servers, streams=list(EVENT_STREAMS))
            fill(servers, run)
            add(writer, "clicks", campaign, 10)
            sync(servers, streams=list(EVENT_STREAMS))
            finish(servers, run)
            rebuild(servers)
    finally:
        stop.set()
        reader.join()
    assert len(seen) > 3
    for column in (0, 1):
        values = [pair[column] for pair in seen]
        assert values == sorted(values), "a reader saw fewer rows than before"
    assert_agreement(writer, servers)


def test_the_swap_of_an_overtaken_refresh_fails_and_changes_nothing(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 50)
    sync(servers)
    old = started(servers, "zombie")
    fill(servers, old)
    write(writer, "DELETE FROM impressions WHERE id <= 10")
    new = started(servers, "newer")
    fill(servers, new)
    finish(servers, new)
    rebuild(servers)
    live = servers.sink.uuid(EVENTS_TABLE)
    with pytest.raises(Superseded):
        finish(servers, old)
    assert servers.sink.uuid(EVENTS_TABLE) == live
    assert_agreement(writer, servers)


@pytest.mark.parametrize("step", ["_drop_older", "swap", "_finished"])
def test_a_refresh_that_dies_while_swapping_is_carried_on(
    servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 50)
    sync(servers)
    run = started(servers, "dies")
    fill(servers, run)

    def die(*_: Any, **__: Any) -> None:
        raise RuntimeError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(refresh, step, die)
        with pytest.raises(RuntimeError):
            finish(servers, run)
    assert not servers.store.gate_closed()
    finish(servers, run)
    rebuild(servers)
    assert servers.sink.uuid(EVENTS_TABLE) == run.target_uuid
    assert refresh.shadows(servers.sink) == []
    assert_agreement(writer, servers)


def test_planners_do_not_hold_still_for_a_refresh_that_swapped_and_was_killed(
    servers: Servers, writer: Connection
) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 50)
    sync(servers)
    run = started(servers, "killed")
    fill(servers, run)
    assert run.target_uuid is not None
    servers.store.close_gate(refresh.GATE_SECONDS)
    refresh.swap(servers.sink, refresh.shadow_name(run.run_id), run.target_uuid)
    finish(servers, run)
    assert not servers.store.gate_closed()
    rebuild(servers)
    assert_agreement(writer, servers)


def test_a_window_that_lands_under_a_name_swapped_away_is_not_committed(servers: Servers, writer: Connection) -> None:
    """It would be committed for the table that is live now, and its rows be in the one that is about to be dropped."""
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 100)
    sync(servers)
    run = started(servers, "in-flight")
    fill(servers, run)
    assert run.target_uuid is not None
    before = servers.ledger.coverage(EVENT_STREAMS, {EVENTS_TABLE: run.target_uuid})["impressions"].watermark
    add(writer, "impressions", campaign, 7)
    (planned,) = planner.plan(
        servers.source, servers.ledger, servers.store, servers.settings, [STREAMS["impressions"]],
        targets={EVENTS_TABLE: run.target_uuid},
    )  # fmt: skip
    refresh.swap(servers.sink, refresh.shadow_name(run.run_id), run.target_uuid)
    assert planned.windows
    for window in planned.windows:
        with pytest.raises(Superseded, match="nothing was committed"):
            load_into(servers, run, planned.stream, window)
    after = servers.ledger.coverage(EVENT_STREAMS, servers.ledger.live(EVENT_STREAMS))["impressions"].watermark
    assert after == before
    finish(servers, run)
    sync(servers)
    assert_agreement(writer, servers)


def test_a_window_loaded_for_a_table_that_was_replaced_is_no_failure(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 10)
    sync(servers)
    replaced = servers.ledger.live(EVENT_STREAMS)[EVENTS_TABLE]
    complete_refresh(servers, "takes-over")
    add(writer, "impressions", campaign, 3)
    impressions = STREAMS["impressions"]
    window = Window(servers.ledger.coverage([impressions], {EVENTS_TABLE: replaced})["impressions"].watermark,
                    servers.source.now())  # fmt: skip
    assert "replaced" in load(servers, impressions, window, replaced, EVENTS_TABLE, "")["skipped"]
    assert servers.ledger.failures(impressions, replaced, window.lo) == []
    sync(servers)
    assert_agreement(writer, servers)


def passed_over(servers: Servers, run: Run) -> None:
    """A window handed out for the shadow of a run that is overtaken is left alone, and that is no failure."""
    assert run.target_uuid is not None
    impressions, window = STREAMS["impressions"], Window(ORIGIN, servers.source.now())
    done = load(servers, impressions, window, run.target_uuid, refresh.shadow_name(run.run_id), run.run_id)
    assert "replaced" in done["skipped"]
    assert servers.ledger.failures(impressions, run.target_uuid, window.lo) == []


def test_windows_of_a_refresh_that_was_overtaken_read_nothing(
    servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of them may wait in line, before everything the newer one hands out."""
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 10)
    old = started(servers, "overtaken")
    complete_refresh(servers, "overtakes")

    def read(*_: Any, **__: Any) -> Any:
        raise AssertionError("read for a table that is gone")

    with monkeypatch.context() as patch:
        patch.setattr(servers.source, "read_events", read)
        passed_over(servers, old)
    assert_agreement(writer, servers)


def test_a_shadow_that_is_dropped_while_a_window_is_read_for_it_is_no_failure(
    servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 10)
    old = started(servers, "dropped")
    read_events = servers.source.read_events

    def overtaken(*arguments: Any, **options: Any) -> Any:
        monkeypatch.undo()
        # Another worker's, with a session of its own: in this one a snapshot is open.
        other = Servers.open(servers.settings)
        complete_refresh(other, "drops")
        other.close()
        return read_events(*arguments, **options)

    monkeypatch.setattr(servers.source, "read_events", overtaken)
    passed_over(servers, old)
    assert_agreement(writer, servers)


def test_a_shadow_whose_run_ended_is_dropped_and_one_in_use_is_not(servers: Servers, writer: Connection) -> None:
    campaigns(writer)
    run = started(servers, "in-use")
    servers.sink.command("leaving a shadow", "CREATE TABLE ad_events_shadow_lost AS ad_events")
    assert refresh.drop_abandoned(servers.sink, servers.ledger) == ["ad_events_shadow_lost"]
    servers.ledger.end_run(run, "failed")
    assert refresh.drop_abandoned(servers.sink, servers.ledger) == ["ad_events_shadow_in_use"]
