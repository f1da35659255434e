"""A day that cannot be built is noted and tried again later; nothing else waits for it, and a run ends with the cause."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any

import pytest
from celery import Celery
from psycopg2.extensions import connection as Connection

from tests.agreement import assert_agreement, sync
from tests.integration.test_pipeline import add, campaigns
from worker import metrics
from worker.celery import Servers, create_app
from worker.failing import failing_days
from worker.ledger import Run
from worker.tasks import maintenance as maintenance_tasks
from worker.tasks import metrics as metrics_tasks
from worker.tasks import pipeline as pipeline_tasks
from worker.tasks import sync as sync_tasks

DAYS = ("2026-11-10", "2026-11-11", "2026-11-12")
POISONED = date(2026, 11, 11)


@pytest.fixture
def here(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Servers]:
    """Servers, tasks that find them, and a broker in which messages stay."""
    app: Celery[Any] = create_app(servers.settings)
    for module in (pipeline_tasks, sync_tasks, metrics_tasks, maintenance_tasks):
        monkeypatch.setattr(module, "servers", lambda: servers)
    monkeypatch.setattr(pipeline_tasks.step.__class__, "_app", app)
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
