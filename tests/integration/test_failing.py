"""A day that cannot be built, or a dimension that cannot be read, is noted, shown and tried again later; nothing else
waits for it, and a run ends with the cause."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import Any

import pytest
from celery import Celery
from psycopg2.extensions import connection as Connection

from tests.agreement import assert_agreement, sync
from tests.integration.test_checks import check
from tests.integration.test_pipeline import add, campaigns, write
from worker import alerts, doctor, metrics, planner, prometheus, report, screens, standing
from worker.celery import QUEUES, Servers, create_app
from worker.errors import SourceMismatch
from worker.failing import failing_days
from worker.ledger import Run
from worker.sql import named
from worker.streams import STREAMS
from worker.tasks import maintenance as maintenance_tasks
from worker.tasks import metrics as metrics_tasks
from worker.tasks import pipeline as pipeline_tasks
from worker.tasks import sync as sync_tasks
from worker.windows import ORIGIN, Window

DAYS = ("2026-11-10", "2026-11-11", "2026-11-12")
POISONED = date(2026, 11, 11)


@pytest.fixture
def here(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Servers]:
    """Servers, tasks that find them, and a broker in which messages stay."""
    app: Celery[Any] = create_app(servers.settings)
    for module in (pipeline_tasks, sync_tasks, metrics_tasks, maintenance_tasks):
        monkeypatch.setattr(module, "servers", lambda: servers)
    monkeypatch.setattr(pipeline_tasks.step.__class__, "_app", app)
    monkeypatch.setattr(maintenance_tasks, "HEAP_SECONDS", 0.001)
    yield servers
    app.close()


@contextmanager
def unbuildable(here: Servers, day: date) -> Iterator[None]:
    """ClickHouse takes no metrics of that day."""
    here.sink.command(
        "spoiling a day",
        "ALTER TABLE daily_campaign_performance ADD CONSTRAINT spoilt CHECK date_id != %(day)s",
        {"day": day},
    )
    try:
        yield
    finally:
        here.sink.command("mending it", "ALTER TABLE daily_campaign_performance DROP CONSTRAINT IF EXISTS spoilt")


def load(here: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    for day in DAYS:
        add(writer, "impressions", campaign, 5, at=f"{day}T08:00:00Z")
    sync(here, metrics_update=False)


def built(here: Servers) -> set[date]:
    rows = here.sink.query("looking", "SELECT DISTINCT date_id FROM daily_campaign_performance")
    return {day for (day,) in rows}


def test_a_day_that_cannot_be_built_keeps_no_other_waiting(here: Servers, writer: Connection) -> None:
    load(here, writer)
    with unbuildable(here, POISONED):
        assert metrics_tasks.advance() == {"days": 2}
        assert built(here) == {date.fromisoformat(day) for day in DAYS} - {POISONED}
        (failure,) = failing_days(here.sink).values()
        assert (failure.day, failure.count) == (POISONED, 1)
        assert "spoilt" in failure.error
        # Newer rows of other days are counted at once.
        add(writer, "impressions", 1, 5, at="2026-11-14T08:00:00Z")
        sync(here, metrics_update=False)
        assert metrics_tasks.rebuild_dirty(here).days == 1
    while not metrics_tasks.rebuild_dirty(here).settled:
        pass
    assert failing_days(here.sink) == {}
    assert_agreement(writer, here)


def test_ticks_do_not_hammer_a_day_that_fails(here: Servers, writer: Connection) -> None:
    load(here, writer)
    with unbuildable(here, POISONED):
        for _ in range(20):
            metrics_tasks.rebuild_dirty(here)
        (failure,) = failing_days(here.sink).values()
        # 1, 2, 4, 8 s apart.
        span = (failure.now - failure.first).total_seconds()
        assert failure.count <= 1 + [1, 3, 7, 15, 31, 63].index(next(s for s in (1, 3, 7, 15, 31, 63) if s > span))


def test_other_days_become_final(here: Servers, writer: Connection) -> None:
    load(here, writer)
    with unbuildable(here, POISONED):
        metrics_tasks.rebuild_dirty(here)
        maintenance_tasks.sweep()
        assert metrics.final_through(here.sink) == date(2026, 11, 10)


def test_no_day_is_final_before_campaigns_were_read(here: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "clicks", campaign, 5, at=f"{POISONED}T08:00:00Z")
    sync(here, streams=[STREAMS["impressions"], STREAMS["clicks"]], metrics_update=False)
    maintenance_tasks.sweep()
    assert built(here) == {POISONED}
    through = metrics.final_through(here.sink)
    assert through is None or through < POISONED
    sync(here, metrics_update=False)
    maintenance_tasks.sweep()
    through = metrics.final_through(here.sink)
    assert through is not None
    assert through > POISONED
    assert here.sink.query("looking", "SELECT count() FROM metric_restatements") == [(0,)]


def test_a_final_day_that_fails_keeps_no_other_from_becoming_final(here: Servers, writer: Connection) -> None:
    load(here, writer)
    metrics_tasks.rebuild_dirty(here)
    maintenance_tasks.sweep()
    (final,) = here.sink.query("looking", "SELECT max(final_through) FROM finality")[0]
    assert final > POISONED
    with unbuildable(here, POISONED):
        here.ledger.mark_days([POISONED])
        here.sink.command("forgetting", "TRUNCATE TABLE finality")
        here.sink.command("noting", named("metrics", "note_final_through"), {"day": POISONED})
        maintenance_tasks.sweep()
        assert set(failing_days(here.sink)) == {POISONED}
        assert metrics.final_through(here.sink) == final


def test_a_day_built_by_who_died_before_he_noted_it_fails_no_more(
    here: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(here, writer)
    with unbuildable(here, POISONED):
        metrics_tasks.rebuild_dirty(here)
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "note_built_days", lambda *_: None)
        metrics.rebuild(here.sink, here.settings, [POISONED])
    assert POISONED in built(here)
    maintenance_tasks.sweep()
    assert failing_days(here.sink) == {}
    # So it is priced anew, too.
    write(writer, "UPDATE campaign SET bid = 7")
    sync_tasks.load_dimension(stream="campaigns")
    maintenance_tasks.sweep()
    assert_agreement(writer, here)


def begin(here: Servers, run_id: str, *, metrics_update: bool = True) -> Run:
    now = here.source.now()
    here.ledger.save_run(Run(run_id, "pipeline", ("impressions", "clicks"), metrics_update, until=now, started_at=now))
    found = here.ledger.run(run_id)
    assert found is not None
    return found


def test_a_run_ends_with_the_day_that_cannot_be_built(here: Servers, writer: Connection) -> None:
    load(here, writer)
    with unbuildable(here, POISONED):
        for _ in range(7):
            metrics.rebuild(here.sink, here.settings, [POISONED])
        begin(here, "run-1")
        states = set()
        # What failed before the run does not end it; it is tried again at once.
        before = failing_days(here.sink)[POISONED].count
        states.add(pipeline_tasks.step(run_id="run-1")["state"])
        assert states == {"waiting"}
        assert failing_days(here.sink)[POISONED].count == before + 1
        for _ in range(pipeline_tasks.GIVE_UP_AFTER - 1):
            metrics.rebuild(here.sink, here.settings, [POISONED])
        assert pipeline_tasks.step(run_id="run-1")["state"] == "failed"
        found = here.ledger.run("run-1")
        assert found is not None
        assert found.message.startswith(f"The metrics of {POISONED} cannot be built: ")
        begin(here, "run-2", metrics_update=False)
        assert pipeline_tasks.step(run_id="run-2")["state"] == "succeeded"
    begin(here, "run-3")
    assert pipeline_tasks.step(run_id="run-3")["state"] == "succeeded"


CAMPAIGNS = STREAMS["campaigns"]


def planned(here: Servers, since: datetime = ORIGIN) -> planner.Plan:
    (found,) = planner.plan(here.source, here.ledger, here.store, here.settings, [CAMPAIGNS], since=since)
    return found


def fail_to_read(here: Servers, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(SourceMismatch):
            sync_tasks.load_dimension(stream="campaigns")


def test_a_dimension_that_cannot_be_read_rests_like_a_window(here: Servers, writer: Connection) -> None:
    campaigns(writer)
    sync(here)
    write(writer, "ALTER TABLE campaign RENAME bid TO price")
    fail_to_read(here, 6)
    found = planned(here)
    assert found.windows == ()
    (failure,) = found.waiting
    assert failure.count == 6
    assert "no column bid" in failure.error
    # What failed before a run began is tried at once for it.
    assert len(planned(here, since=here.ledger.now()).windows) == 1
    # Other dimensions are not held up by it, and once read it has failed no more.
    assert sync_tasks.load_dimension(stream="advertisers") == {"stream": "advertisers", "rows": 1}
    write(writer, "ALTER TABLE campaign RENAME price TO bid")
    assert sync_tasks.load_dimension(stream="campaigns") == {"stream": "campaigns", "rows": 3}
    assert len(planned(here).windows) == 1
    assert planned(here).waiting == ()


def test_a_failing_dimension_and_a_failing_day_are_shown_everywhere(here: Servers, writer: Connection) -> None:
    load(here, writer)
    write(writer, "ALTER TABLE campaign RENAME bid TO price")
    with unbuildable(here, POISONED):
        fail_to_read(here)
        for _ in range(3):
            metrics.rebuild(here.sink, here.settings, [POISONED])
        found = standing.overview(here.source, here.sink, here.ledger, here.store, list(STREAMS.values()))
        told = {signal.incident: signal.message for signal in alerts.of_the_pipeline(found, here.settings)}
        assert "campaigns cannot be read, tried 1 time since 20" in told["windows/campaigns"]
        assert "no column bid" in told["windows/campaigns"]
        assert told["days"].startswith(f"The metrics of {POISONED} cannot be built, tried 3 times since 20")
        shown = screens.status_json(found)
        (failing,) = shown["streams"]["campaigns"]["windows_failing"]
        assert failing["failures"] == 1
        assert failing["since"] <= here.ledger.now()
        assert [day["day"] for day in shown["days_failing"]] == [POISONED]
        text = prometheus.rendered(here).decode()
        assert 'retailmedia_windows_failing{stream="campaigns"} 1.0' in text
        assert "retailmedia_failing_days 1.0" in text
        page = report.build(here.sink, here.settings, found, [], now=datetime.now(UTC))
        assert "campaigns cannot be read, tried 1 time since" in page
        assert f"The metrics of {POISONED} cannot be built" in page
        wrong = {
            finding.what: finding.found
            for finding in doctor.examine(
                here.settings, now=lambda: datetime.now(UTC), workers=dict, queues=frozenset(QUEUES)
            )
            if finding.about == "sync"
        }
        assert wrong.keys() == {"campaigns", f"day {POISONED}"}
        assert "no column bid" in wrong["campaigns"]


def test_a_run_ends_with_the_dimension_that_cannot_be_read(here: Servers, writer: Connection) -> None:
    campaigns(writer)
    sync(here)
    write(writer, "ALTER TABLE campaign RENAME bid TO price")
    fail_to_read(here, 6)
    now = here.source.now()
    here.ledger.save_run(Run("run-1", "pipeline", ("campaigns",), True, until=now, started_at=now))
    run = here.ledger.run("run-1")
    assert run is not None
    assert pipeline_tasks.hopeless(here, run, [planned(here, since=run.updated_at)]) == ""
    fail_to_read(here, pipeline_tasks.GIVE_UP_AFTER)
    assert pipeline_tasks.step(run_id="run-1")["state"] == "failed"
    found = here.ledger.run("run-1")
    assert found is not None
    assert found.message.startswith("Table campaign has no column bid any more")


def test_every_row_read_is_loaded_or_set_aside(here: Servers, writer: Connection) -> None:
    write(writer, "ALTER TABLE campaign ALTER bid TYPE numeric")
    first, *_ = campaigns(writer)
    write(writer, "UPDATE campaign SET bid = 'Infinity' WHERE id = %s", first)
    assert sync_tasks.load_dimension(stream="campaigns") == {"stream": "campaigns", "rows": 2, "quarantined": 1}
    assert check(here, "conservation")["conservation"].state == "passed"
    here.sink.command(
        "spoiling the ledger", "ALTER TABLE sync_commits UPDATE rows = 3 WHERE 1", settings={"mutations_sync": 2}
    )
    assert check(here, "conservation")["conservation"].state == "failed"


def test_failures_of_one_cause_are_counted_one_by_one(here: Servers) -> None:
    stream = STREAMS["impressions"]
    uuid = here.ledger.live([stream])[stream.target]
    window = Window(ORIGIN, here.ledger.now())
    for _ in range(3):
        here.ledger.note_failure(stream, uuid, window, "", "the same each time")
    (failure,) = here.ledger.failures(stream, uuid, ORIGIN)
    assert failure.count == 3
