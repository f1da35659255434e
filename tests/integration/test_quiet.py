"""Ticks that found nothing leave no trace in Flower; those that did something do."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from typing import Any

from psycopg2.extensions import connection as Connection

from tests.integration.test_pipeline import add, campaigns
from tests.processes import until, workers
from worker.celery import Servers, create_app
from worker.config import Settings
from worker.quiet import found_nothing

TICKS = {"worker.tasks.sync.plan", "worker.tasks.maintenance.converge"}


def test_a_tick_that_found_nothing_sends_no_event(settings: Settings, servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    app = create_app(settings)
    names: dict[str, str] = {}
    events: Counter[tuple[str, str]] = Counter()
    listening = threading.Event()
    ran = Counter[str]()

    def noticed(event: dict[str, Any]) -> None:
        if event["type"].startswith("task-"):
            names.setdefault(event["uuid"], event.get("name", ""))
            events[names[event["uuid"]], event["type"]] += 1

    def listen() -> None:
        with contextlib.suppress(Exception), app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": noticed})
            listening.set()
            receiver.capture(limit=None, timeout=120, wakeup=False)

    def ticks() -> int:
        from worker import observe

        counts = {e.labels["task"]: e.value for e in observe.sums(servers.store) if e.name == "tasks"}
        ran.update({name: int(counts.get(name, 0)) - ran[name] for name in TICKS})
        return sum(ran.values())

    threading.Thread(target=listen, daemon=True).start()
    assert listening.wait(10)
    with workers(settings, beat=True):
        # What there is at first is loaded, and the days it touches are settled.
        until(lambda: ticks() > 12, "ticks have run", 60)
        events.clear()
        before = ticks()
        until(lambda: ticks() > before + 12, "more ticks have run", 60)
        assert {name: count for name, count in events.items() if name[0] in TICKS or not name[0]} == {}
        add(writer, "impressions", campaign, 5)
        told = [("worker.tasks.sync.plan", f"task-{kind}") for kind in ("received", "started", "succeeded")]
        until(lambda: all(events[each] for each in told), f"a tick that did something is told of: {events}", 60)
        until(lambda: events["worker.tasks.sync.load_window", "task-succeeded"] >= 1, "what it handed out is, too", 30)
    app.close()


def test_what_counts_as_nothing() -> None:
    for nothing in ("None", "{}", "{'days': 0, 'runs': 0}", "{'skipped': 'another was just here'}", "{'days': []}"):
        assert found_nothing(nothing)
    for something in ("{'days': 1, 'runs': 0}", "1", "{'days': 0, 'runs': 1}", "[" * 500, "garbage", "<object>"):
        assert not found_nothing(something)
