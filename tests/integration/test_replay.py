"""Windows read again: what differs is shown, and brought over amid whatever else is loaded."""

from __future__ import annotations

import threading
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from psycopg2.extensions import connection as Connection

from tests.agreement import assert_agreement, source_performance, sync, target_events, target_performance
from tests.integration.test_reconcile import NEWER, fill, lose, pass_by, plant_row, silently, write
from worker import metrics, replay
from worker.celery import Servers
from worker.config import PricingModel
from worker.errors import BadInput
from worker.streams import EVENT_STREAMS, EVENTS_TABLE, STREAMS
from worker.tasks.reconcile import compare, replay_window
from worker.windows import ORIGIN, Window

IMPRESSIONS, CLICKS = STREAMS["impressions"], STREAMS["clicks"]
EVERYTHING = Window(ORIGIN, datetime(2200, 1, 1, tzinfo=UTC))


def damage(servers: Servers, writer: Connection) -> None:
    """One event of each kind on 2026-11-15, for both streams."""
    for stream in EVENT_STREAMS:
        lose(servers, stream, [3])
        write(writer, f"DELETE FROM {stream.source_table} WHERE id = 4")
        silently(writer, f"UPDATE {stream.source_table} SET campaign_id = 5 WHERE id = 6")
        plant_row(servers, stream, 7, campaign="1", version="_version")


def figures(found: replay.Replay) -> tuple[int, int, int]:
    return found.missing, found.extra, found.stale


def test_what_differs_is_shown_and_then_brought_over(servers: Servers, writer: Connection) -> None:
    fill(writer)
    sync(servers)
    damage(servers, writer)
    before = target_events(servers), target_performance(servers)
    for stream in EVENT_STREAMS:
        shown = replay_window(servers, stream, EVERYTHING, dry_run=True)
        assert figures(shown) == (1, 1, 2)
        assert not shown.applied
    assert (target_events(servers), target_performance(servers)) == before
    for stream in EVENT_STREAMS:
        done = replay_window(servers, stream, EVERYTHING, dry_run=False)
        assert figures(done) == (1, 1, 2)
        assert done.applied
        again = replay_window(servers, stream, EVERYTHING, dry_run=False)
        assert not again.differs
    assert_agreement(writer, servers)
    assert not metrics.dirty_days(servers.sink)
    assert all(compare(servers, stream, heal=False).agrees for stream in EVENT_STREAMS)
    rows = servers.sink.query(
        "reading",
        "SELECT stream, toString(state), missing, extra, stale FROM replays WHERE missing > 0 ORDER BY noted_at",
    )
    assert rows == [
        (stream, state, 1, 1, 2)
        for stream, state in [
            ("impressions", "compared"), ("clicks", "compared"), ("impressions", "applying"), ("impressions", "applied"),
            ("clicks", "applying"), ("clicks", "applied"),
        ]
    ]  # fmt: skip
    assert servers.sink.query("looking", "SELECT name FROM system.tables WHERE startsWith(name, 'replay_')") == []


@pytest.mark.parametrize(
    ("model", "stream", "spend"),
    [("cpc", CLICKS, "0.64"), ("cpc", IMPRESSIONS, "0"), ("cpi", IMPRESSIONS, "0.64"), ("cpm", IMPRESSIONS, "0.00064")],
)
def test_the_effect_on_metrics_is_told(
    servers: Servers, writer: Connection, model: PricingModel, stream: Any, spend: str
) -> None:
    servers.settings = servers.settings.model_copy(update={"pricing_model": model})
    fill(writer)
    sync(servers)
    # Campaign 2 costs 0.64, campaigns 1 and 4 cost 0.47 and 0.98.
    lose(servers, stream, write(writer, f"SELECT array_agg(id) FROM {stream.source_table} WHERE id = 6")[0][0])
    campaign = write(writer, f"SELECT campaign_id FROM {stream.source_table} WHERE id = 6")[0][0]
    assert campaign == 2
    shown = replay_window(servers, stream, EVERYTHING, dry_run=True)
    assert [(e.day, e.events, e.spend) for e in shown.effect] == [(date(2026, 11, 15), 1, Decimal(spend))]


def test_only_the_window_is_read(servers: Servers, writer: Connection) -> None:
    fill(writer)
    sync(servers)
    middle = servers.source.now()
    write(writer, "INSERT INTO impressions (id, campaign_id, created_at) VALUES (99999, 1, '2026-11-16T10:00:00Z')")
    sync(servers)
    lose(servers, IMPRESSIONS, [1, 99999])
    late = Window(middle, EVERYTHING.hi)
    found = replay_window(servers, IMPRESSIONS, late, dry_run=False)
    assert (found.read, figures(found)) == (1, (1, 0, 0))
    early = replay_window(servers, IMPRESSIONS, Window(ORIGIN, middle), dry_run=False)
    assert (early.read, figures(early)) == (600, (1, 0, 0))
    assert_agreement(writer, servers)


def test_a_window_not_loaded_yet_is_refused(servers: Servers, writer: Connection) -> None:
    fill(writer)
    sync(servers)
    later = datetime.now(UTC) + timedelta(days=1)
    with pytest.raises(BadInput, match="nothing to replay"):
        replay_window(servers, IMPRESSIONS, Window(later, later + timedelta(hours=1)), dry_run=True)


def test_what_ticks_load_meanwhile_wins(servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(writer)
    sync(servers)
    other = Servers.open(servers.settings)
    plan = replay._pieces
    said = threading.Event()

    def pieces(*arguments: Any) -> Any:
        yield from plan(*arguments)
        # The window was read; before it is compared, some of it changes, and a tick loads a part of that.
        if not said.is_set():
            said.set()
            write(writer, "UPDATE impressions SET campaign_id = 4 WHERE id BETWEEN 1 AND 20")
            write(writer, "DELETE FROM impressions WHERE id BETWEEN 30 AND 40")
            sync(other)
            write(
                writer, "UPDATE impressions SET created_at = created_at + interval '2 days' WHERE id BETWEEN 10 AND 25"
            )

    monkeypatch.setattr(replay, "_pieces", pieces)
    try:
        done = replay_window(servers, IMPRESSIONS, EVERYTHING, dry_run=False)
    finally:
        other.close()
    assert said.is_set()
    assert figures(done) == (0, 0, 0)
    # Those deleted after they were read are found by the next.
    assert figures(replay_window(servers, IMPRESSIONS, EVERYTHING, dry_run=False)) == (0, 11, 0)
    sync(servers)
    assert_agreement(writer, servers)


def test_rows_that_moved_out_of_the_window_are_left_to_the_ticks(servers: Servers, writer: Connection) -> None:
    fill(writer)
    sync(servers)
    write(writer, "UPDATE impressions SET campaign_id = 4 WHERE id <= 20")
    done = replay_window(servers, IMPRESSIONS, EVERYTHING, dry_run=False)
    assert (done.read, figures(done)) == (580, (0, 0, 0))
    assert len(target_events(servers)) == 800
    sync(servers)
    assert_agreement(writer, servers)


def test_many_rows_come_over_in_pieces(servers: Servers, writer: Connection) -> None:
    fill(writer, 5000, 10)
    sync(servers)
    servers.settings = servers.settings.model_copy(update={"window_rows": 300, "chunk_rows": 100})
    write(writer, "UPDATE impressions SET campaign_id = campaign_id WHERE id % 3 = 0")
    sync(servers)
    lose(servers, IMPRESSIONS, list(range(1, 2501)))
    done = replay_window(servers, IMPRESSIONS, EVERYTHING, dry_run=False)
    assert (done.read, figures(done)) == (5000, (2500, 0, 0))
    assert_agreement(writer, servers)


def test_an_event_that_must_be_quarantined_goes_there(servers: Servers, writer: Connection) -> None:
    fill(writer)
    sync(servers)
    silently(writer, "UPDATE impressions SET created_at = 'infinity' WHERE id = 9")
    done = replay_window(servers, IMPRESSIONS, EVERYTHING, dry_run=False)
    assert figures(done) == (0, 1, 0)
    assert servers.sink.query("reading", "SELECT event_id FROM quarantined_events FINAL") == [(9,)]
    assert len(target_events(servers)) == 799
    assert compare(servers, IMPRESSIONS, heal=False).agrees


def test_a_row_that_claims_to_be_newer_is_left_alone(servers: Servers, writer: Connection) -> None:
    fill(writer)
    sync(servers)
    plant_row(servers, IMPRESSIONS, 7, campaign="1", version=f"_version + {NEWER}")
    left = replay_window(servers, IMPRESSIONS, EVERYTHING, dry_run=False)
    assert (left.differs, left.ahead) == (False, 1)
    # Once the source's snapshots are above it, it is a stale row like any other.
    pass_by(writer)
    assert figures(replay_window(servers, IMPRESSIONS, EVERYTHING, dry_run=False)) == (0, 0, 1)
    assert_agreement(writer, servers)


def test_what_comes_over_outranks_a_row_of_the_same_version(servers: Servers, writer: Connection) -> None:
    fill(writer)
    sync(servers)
    with servers.source.snapshot() as snapshot:
        version = snapshot.version(1)
    servers.sink.command("holding merges", "SYSTEM STOP MERGES ad_events")
    # Nothing is written at the source, so the reading of the replay has the version of this row.
    plant_row(servers, IMPRESSIONS, 7, campaign="campaign_id + 1", version=str(version))
    assert figures(replay_window(servers, IMPRESSIONS, EVERYTHING, dry_run=False)) == (0, 0, 1)
    assert compare(servers, IMPRESSIONS, heal=False).agrees
    servers.sink.command("letting merges go", "SYSTEM START MERGES ad_events")
    assert_agreement(writer, servers)


def test_days_of_a_replay_that_died_are_rebuilt(
    servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(writer)
    sync(servers)
    lose(servers, IMPRESSIONS, [1])
    metrics.rebuild(servers.sink, servers.settings, [date(2026, 11, 15)])

    class Died(BaseException):
        pass

    def die(*_: Any, **__: Any) -> None:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(metrics, "rebuild", die)
        with pytest.raises(Died):
            replay_window(servers, IMPRESSIONS, EVERYTHING, dry_run=False)
    servers.sink.command("forgetting", "TRUNCATE TABLE day_marks")
    assert target_performance(servers) != source_performance(writer)
    assert compare(servers, IMPRESSIONS, heal=True).agrees
    assert target_performance(servers) == source_performance(writer)
    assert replay.unfinished_days(servers.sink) == []


def test_a_final_day_is_restated_by_a_replay(servers: Servers, writer: Connection) -> None:
    fill(writer)
    lost = write(writer, "SELECT id, campaign_id, created_at FROM impressions WHERE id = 1")[0]
    sync(servers)
    lose(servers, IMPRESSIONS, [lost[0]])
    metrics.rebuild(servers.sink, servers.settings, [lost[2].date()])
    metrics.note_finality(servers.sink, servers.settings, datetime(2026, 12, 31, tzinfo=UTC))
    assert replay_window(servers, IMPRESSIONS, EVERYTHING, dry_run=False).missing == 1
    rows = servers.sink.query("reading", "SELECT date_id, campaign_id, column_name, cause FROM metric_restatements")
    assert rows == [(lost[2].date(), lost[1], "impressions_count", "replay")]
    assert servers.sink.uuid(EVENTS_TABLE)
