"""Servers that are slow: what comes again and again must not pile up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg2
import pytest
import redis
from celery import Celery
from psycopg2.extensions import connection as Connection

from tests.agreement import assert_agreement, sync
from tests.integration.test_pipeline import add, campaigns
from tests.processes import until
from worker import metrics, planner
from worker.celery import Servers, create_app
from worker.config import Settings
from worker.ledger import Run
from worker.streams import STREAMS
from worker.tasks import metrics as metrics_tasks
from worker.tasks import pipeline as pipeline_tasks
from worker.tasks import refresh as refresh_tasks
from worker.tasks import sync as sync_tasks
from worker.windows import ORIGIN, Window


@contextmanager
def transaction_open(settings: Settings) -> Iterator[None]:
    """A transaction of somebody else's, which holds the horizon back."""
    connection = psycopg2.connect(settings.postgres_dsn)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        yield
    finally:
        connection.close()


@pytest.fixture
def here(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Servers]:
    """Servers, tasks that find them, and a broker in which messages stay."""
    app: Celery[Any] = create_app(servers.settings)
    for module in (pipeline_tasks, refresh_tasks, sync_tasks, metrics_tasks):
        monkeypatch.setattr(module, "servers", lambda: servers)
    monkeypatch.setattr(pipeline_tasks.step.__class__, "_app", app)
    monkeypatch.setattr(refresh_tasks.step.__class__, "_app", app)
    yield servers
    app.close()


def waiting(here: Servers, queue: str) -> int:
    with redis.Redis.from_url(here.settings.redis_url) as client:
        return int(client.llen(queue))


def rest(here: Servers, name: str) -> None:
    """As after one of that name that took long."""
    with redis.Redis.from_url(here.settings.redis_url) as client:
        client.set(f"retailmedia:once:{name}", "1", px=60_000)


def forget(here: Servers, key: str) -> None:
    """Takes one key from Redis."""
    with redis.Redis.from_url(here.settings.redis_url) as client:
        client.delete(f"retailmedia:{key}")


def test_what_takes_long_rests_as_long(servers: Servers) -> None:
    with servers.store.thinned("slow", 0.05) as ahead:
        assert ahead
        threading.Event().wait(0.5)
    with servers.store.thinned("slow", 0.05) as ahead:
        assert not ahead
    with redis.Redis.from_url(servers.settings.redis_url) as client:
        assert 200 < client.pttl("retailmedia:once:slow") <= 600
    with servers.store.thinned("quick", 60):
        pass
    with redis.Redis.from_url(servers.settings.redis_url) as client:
        assert 50_000 < client.pttl("retailmedia:once:quick") <= 60_000


def test_a_failure_that_takes_long_does_not_rest(servers: Servers) -> None:
    def fail() -> None:
        with servers.store.thinned("failing", 0.05):
            threading.Event().wait(0.3)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with servers.store.thinned("failing", 0.05) as ahead:
        assert ahead


def test_of_callbacks_in_a_heap_one_does_the_work_and_a_tick_finds_the_rest(here: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 10)
    sync(here, metrics_update=False)
    assert metrics_tasks.advance(streams=["impressions"]) == {"days": 1}
    add(writer, "impressions", campaign, 5)
    sync(here, metrics_update=False)
    rest(here, "advance:impressions")
    for _ in range(5):
        assert metrics_tasks.advance(streams=["impressions"])["days"] == 0
    assert not metrics_tasks.settled(here)
    assert metrics_tasks.advance(streams=["impressions", "clicks"]) == {"days": 1}
    add(writer, "impressions", campaign, 5)
    sync(here, metrics_update=False)
    sync_tasks.plan(streams=["impressions"])
    assert metrics_tasks.settled(here)
    assert_agreement(writer, here)


def test_while_no_day_is_marked_nobody_asks_which_days_wait(
    here: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 10)
    sync(here)
    # Marked within the last minute: it is looked at, once found in order no more than that.
    assert metrics_tasks.settled(here)
    here.store.set_clean_since(here.ledger.now())

    def ask(*_: Any) -> Any:
        raise AssertionError("asked for days although none was marked")

    with monkeypatch.context() as patch:
        patch.setattr(metrics, "dirty_days", ask)
        assert metrics_tasks.settled(here)
    add(writer, "impressions", campaign, 5)
    sync(here, metrics_update=False)
    assert not metrics_tasks.settled(here)
    # Redis forgot, or nothing was rebuilt for an hour: the next that finds everything in order remembers it.
    metrics_tasks.rebuild_dirty(here)
    forget(here, "clean_since")
    assert here.store.clean_since() == ORIGIN
    assert metrics_tasks.settled(here)
    assert here.store.clean_since() > ORIGIN
    assert_agreement(writer, here)


def test_of_many_messages_to_a_waiting_run_one_looks_again(here: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    with transaction_open(here.settings):
        add(writer, "impressions", campaign, 10)
        now = here.source.now()
        here.ledger.save_run(
            Run("20261125-000000-abcdef", "pipeline", ("impressions",), True, until=now, started_at=now)
        )
        for _ in range(8):
            assert pipeline_tasks.step(run_id="20261125-000000-abcdef")["state"] == "waiting"
        assert waiting(here, "realtime") == 1


def test_of_the_callbacks_of_a_refresh_in_a_heap_one_takes_it_further_and_one_looks_again(here: Servers) -> None:
    now, name = here.source.now(), "20261125-000000-fedcba"
    here.ledger.save_run(Run(name, "refresh", ("impressions",), True, until=now, started_at=now))
    rest(here, f"step:{name}")
    for _ in range(8):
        assert refresh_tasks.step(run_id=name)["state"] == "another message was at it just now"
    assert waiting(here, "backfill") == 1
    assert _target(here, name) is None
    forget(here, f"once:step:{name}")
    assert refresh_tasks.step(run_id=name)["state"] != "another message was at it just now"
    assert _target(here, name) is not None


@pytest.mark.parametrize(
    ("kind", "module", "queue"), [("pipeline", pipeline_tasks, "realtime"), ("refresh", refresh_tasks, "backfill")]
)
def test_a_run_whose_worker_may_be_dead_is_looked_at_again(here: Servers, kind: Any, module: Any, queue: str) -> None:
    """The message that comes back when a child dies finds its lease held, and no other may come for a while."""
    now, name = here.source.now(), "20261125-000000-fedcba"
    here.ledger.save_run(Run(name, kind, ("impressions",), True, until=now, started_at=now))
    with here.store.lease(f"run:{name}", 60) as held:
        assert held is not None
        assert module.step(run_id=name)["state"] == "another worker is at it"
        forget(here, f"once:step:{name}")
        assert module.step(run_id=name)["state"] == "another worker is at it"
        assert waiting(here, queue) == 1


def _target(here: Servers, run_id: str) -> UUID | None:
    found = here.ledger.run(run_id)
    assert found is not None
    return found.target_uuid


def test_a_message_that_comes_late_gives_way_to_the_one_that_took_its_place(here: Servers, writer: Connection) -> None:
    campaigns(writer)
    store, name = here.store, "step:20261125-000000-abcdef"
    with transaction_open(here.settings):
        now = here.source.now()
        here.ledger.save_run(
            Run("20261125-000000-abcdef", "pipeline", ("impressions",), True, until=now, started_at=now)
        )
        late = store.take_turn(name, 0.01)
        assert late is not None
        while (taken := store.take_turn(name, 60)) is None:
            pass
        told = pipeline_tasks.step(run_id="20261125-000000-abcdef", turn=late)
        assert told["state"] == "another message is at it"
        assert waiting(here, "realtime") == 0
        assert pipeline_tasks.step(run_id="20261125-000000-abcdef", turn=taken)["state"] == "waiting"
        assert waiting(here, "realtime") == 1
    # One that Redis forgot goes on.
    forget(here, f"turn:{name}")
    assert store.end_turn(name, late)


def test_a_tick_of_slow_servers_is_passed_over(here: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[int] = []
    whole = planner.plan

    def slow(*arguments: Any, **options: Any) -> Any:
        planned.append(1)
        threading.Event().wait(sync_tasks.HEAP_SECONDS + 0.7)
        return whole(*arguments, **options)

    monkeypatch.setattr(planner, "plan", slow)
    sync_tasks.plan(streams=["impressions"])
    sync_tasks.plan(streams=["impressions"])
    assert planned == [1]
    # Other streams do not wait for it.
    sync_tasks.plan(streams=["clicks"])
    assert planned == [1, 1]


IMPRESSIONS, TARGET = STREAMS["impressions"], UUID(int=7)


def windows(count: int) -> list[Window]:
    return [Window(ORIGIN + n * timedelta(hours=1), ORIGIN + (n + 1) * timedelta(hours=1)) for n in range(count)]


def flying(servers: Servers) -> list[Window]:
    return sorted(servers.store.in_flight(IMPRESSIONS, TARGET))


def test_windows_that_wait_longer_than_a_lease_are_not_given_up_while_their_queue_is_worked_on(
    servers: Servers,
) -> None:
    store, (first, second, third, fourth, fifth) = servers.store, windows(5)
    store.take_off(IMPRESSIONS, TARGET, [first, second, third, fourth, fifth], 0.3, "backfill")
    other = windows(6)[5]
    store.take_off(IMPRESSIONS, TARGET, [other], 0.3, "realtime")
    # The third is begun, so the messages of the two before it are lost; those behind it wait.
    with store.window_lease(IMPRESSIONS, TARGET, third, 0.3, "backfill") as held:
        assert held is not None
        until(lambda: len(flying(servers)) == 3, "what is lost is given up", 5)
        assert not held.lost.wait(0.9)
        assert flying(servers) == [third, fourth, fifth]
    with store.window_lease(IMPRESSIONS, TARGET, fifth, 0.3, "backfill"):
        until(lambda: flying(servers) == [fifth], "the fourth is given up, too", 5)
    assert flying(servers) == []


def test_what_waits_is_given_up_once_nobody_works_on_the_queue(servers: Servers) -> None:
    store, (first, second, third) = servers.store, windows(3)
    store.take_off(IMPRESSIONS, TARGET, [first, second, third], 0.3, "backfill")
    with store.window_lease(IMPRESSIONS, TARGET, first, 0.3, "backfill"):
        pass
    assert flying(servers) == [second, third]
    until(lambda: flying(servers) == [], "both are given up", 5)
    # Handed out once more, they wait once more.
    store.take_off(IMPRESSIONS, TARGET, [second, third], 0.3, "backfill")
    with store.window_lease(IMPRESSIONS, TARGET, second, 0.3, "backfill") as held:
        assert held is not None
        assert not held.lost.wait(0.6)
        assert flying(servers) == [second, third]
