"""Servers that are slow: what comes again and again must not pile up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import pytest
import redis
from celery import Celery
from psycopg2.extensions import connection as Connection

from tests.integration.test_pipeline import add, campaigns
from worker import planner
from worker.celery import Servers, create_app
from worker.config import Settings
from worker.ledger import Run
from worker.tasks import pipeline as pipeline_tasks
from worker.tasks import sync as sync_tasks


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
    for module in (pipeline_tasks, sync_tasks):
        monkeypatch.setattr(module, "servers", lambda: servers)
    monkeypatch.setattr(pipeline_tasks.step.__class__, "_app", app)
    yield servers
    app.close()


def waiting(here: Servers, queue: str) -> int:
    with redis.Redis.from_url(here.settings.redis_url) as client:
        return int(client.llen(queue))


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


def test_a_failure_that_takes_long_rests_as_well(servers: Servers) -> None:
    with pytest.raises(RuntimeError), servers.store.thinned("failing", 0.05):
        threading.Event().wait(0.3)
        raise RuntimeError
    with servers.store.thinned("failing", 0.05) as ahead:
        assert not ahead


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
    with redis.Redis.from_url(here.settings.redis_url) as client:
        client.delete(f"retailmedia:turn:{name}")
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
