"""Two planners at once: no window is handed out that another one, however cut, already covers."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg2.extensions import connection as Connection

from tests.agreement import assert_agreement, rebuild
from tests.integration.test_reconcile import fill, write
from tests.processes import until
from worker import planner
from worker.celery import Servers
from worker.streams import STREAMS
from worker.tasks import sync as sync_tasks
from worker.tasks.metrics import advance
from worker.windows import ORIGIN, Window

IMPRESSIONS, CLICKS, TARGET = STREAMS["impressions"], STREAMS["clicks"], UUID(int=7)


def window(lo: int, hi: int) -> Window:
    return Window(ORIGIN + lo * timedelta(hours=1), ORIGIN + hi * timedelta(hours=1))


def taken(
    servers: Servers, *windows: Window, seconds: float = 60, uuid: UUID = TARGET, stream: Any = None
) -> list[Window]:
    return servers.store.take_off(stream or IMPRESSIONS, uuid, windows, seconds, "backfill")


def test_only_what_overlaps_nothing_in_flight_is_taken(servers: Servers) -> None:
    assert taken(servers, window(0, 2), window(2, 3)) == [window(0, 2), window(2, 3)]
    assert taken(servers, window(0, 2), window(1, 4), window(3, 5), window(4, 6)) == [window(3, 5)]
    assert sorted(servers.store.in_flight(IMPRESSIONS, TARGET)) == [window(0, 2), window(2, 3), window(3, 5)]
    # Of other tables and streams nothing is known here.
    assert taken(servers, window(0, 9), uuid=UUID(int=8)) == [window(0, 9)]
    assert taken(servers, window(0, 9), stream=CLICKS) == [window(0, 9)]
    servers.store.land(IMPRESSIONS, TARGET, window(0, 2))
    assert taken(servers, window(0, 1)) == [window(0, 1)]
    assert taken(servers) == []


def test_what_waited_for_longer_than_its_lease_is_handed_out_again(servers: Servers) -> None:
    assert taken(servers, window(0, 2), seconds=0.2)
    assert taken(servers, window(0, 1)) == []
    until(lambda: bool(taken(servers, window(0, 1))), "it is given up", 5)
    assert servers.store.in_flight(IMPRESSIONS, TARGET) == [window(0, 1)]


@given(asked=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6)), max_size=12))
def test_windows_in_flight_never_overlap(servers: Servers, asked: list[tuple[int, int]]) -> None:
    servers.store.clear_flight(IMPRESSIONS, TARGET)
    for lo, length in asked:
        wanted = window(lo, lo + length)
        before = servers.store.in_flight(IMPRESSIONS, TARGET)
        free = not any(wanted.overlaps(other) for other in before)
        assert taken(servers, wanted) == ([wanted] if free else [])
        assert len(servers.store.in_flight(IMPRESSIONS, TARGET)) == len(before) + free


def test_a_tick_and_a_step_that_plan_at_once_hand_out_each_row_once(
    servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both see nothing loaded and nothing in flight, and the horizon of each is another."""
    fill(writer, 300, 100)
    sent: list[tuple[str, Window]] = []

    def send(stream: Any, window: Window, *_: Any) -> Any:
        sent.append((stream.name, window))
        return sync_tasks.load_window.si(stream=stream.name, **window.kwargs(), target=str(TARGET))

    class Chord:
        def __call__(self, body: Any) -> None:
            """Sends nothing: what was handed out is looked at here."""

    monkeypatch.setattr(sync_tasks, "_signature", send)
    monkeypatch.setattr(sync_tasks, "chord", lambda header: list(header.tasks) and Chord())
    gate = threading.Barrier(2)

    def plan_and_hand_out(more: bool) -> None:
        here = Servers.open(servers.settings)
        try:
            if more:
                write(writer, "INSERT INTO impressions (id, campaign_id, created_at) VALUES (777, 1, '2026-11-17')")
            plans = planner.plan(here.source, here.ledger, here.store, here.settings, [IMPRESSIONS, CLICKS])
            gate.wait(30)
            for planned in plans:
                sync_tasks.hand_out(here, planned, follow_up=advance.si(streams=[planned.stream.name]))
        finally:
            here.close()

    threads = [threading.Thread(target=plan_and_hand_out, args=(more,)) for more in (False, True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("impressions", "clicks"):
        windows = [found for stream, found in sent if stream == name]
        assert windows
        assert not any(a.overlaps(b) for n, a in enumerate(windows) for b in windows[n + 1 :])
    servers.store.release_all()
    from tests.agreement import sync

    sync(servers)
    rebuild(servers)
    assert_agreement(writer, servers)
