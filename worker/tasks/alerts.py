"""Looks for what somebody should be told about.

Beat does it in a thread of its own: a worker cannot tell that none runs. `retailmedia alerts --tell` does the same from
anywhere else, such as another machine's cron.
"""

from __future__ import annotations

import threading
from contextlib import closing
from typing import Any

import structlog
from celery import Celery, signals

from worker import alerts, runs, standing
from worker.alerts import Signal
from worker.celery import QUEUES, Servers, app
from worker.config import load
from worker.errors import RetailMediaError, SinkFailure, Unreachable
from worker.streams import STREAMS

log = structlog.get_logger()

EVERY_SECONDS = 20.0
FIRST_AFTER_SECONDS = 45.0
"""After a start of everything at once, workers and first ticks get so long."""

LEASE_SECONDS = 60
REMIND_SECONDS = 3600.0
"""While ClickHouse, which remembers what was told, is gone, its absence is told so often."""


def look(here: Servers, celery: Celery[Any], *, tell: bool = True) -> list[str]:
    """Judges everything once, and tells what is due; returns the titles sent. While another does it, nothing."""
    send = alerts.sender(here.settings) if tell else None
    found: list[Signal] = []
    unknown: list[str] = []
    try:
        now = here.ledger.now()
        found += alerts.of_the_data(here.sink, here.settings, now)
    except SinkFailure as error:
        # Nothing can be remembered, so this is told by the hour.
        if send is not None and _first(here, "alert:clickhouse"):
            send("Error: server/clickhouse", str(error), "error")
            return ["Error: server/clickhouse"]
        raise
    try:
        overview = standing.overview(here.source, here.sink, here.ledger, here.store, list(STREAMS.values()))
        found += alerts.of_the_pipeline(overview, here.settings)
    except RetailMediaError as error:
        which = "redis" if isinstance(error, Unreachable) else "postgres"
        found.append(alerts.unreachable(which, error))
        unknown += ["freshness/", "windows/", "days", "horizon", "source/"]
    try:
        served = runs.answering(celery, 1.5) or runs.answering(celery, 3.0)
        found += alerts.of_the_workers(served, QUEUES, here.store.queue_depths(QUEUES), here.settings)
    except Unreachable as error:
        found.append(alerts.unreachable("redis", error))
        unknown += ["workers", "queue/"]
    lease = None
    try:
        lease = here.store.try_lease("alerts", LEASE_SECONDS)
        if lease is None:
            return []
    except Unreachable:
        # Rather told twice than not at all.
        log.warning("alerts.without_lease")
    try:
        return alerts.settle(here.sink, here.settings, found, send, unknown=unknown)
    finally:
        if lease is not None:
            lease.release()


def _first(here: Servers, name: str) -> bool:
    try:
        return here.store.once(name, REMIND_SECONDS)
    except Unreachable:
        return False


def watch(celery: Celery[Any], ended: threading.Event) -> None:
    """Looks again and again until `ended`."""
    wait = FIRST_AFTER_SECONDS
    while not ended.wait(wait):
        wait = EVERY_SECONDS
        try:
            with closing(Servers.open(load())) as here:
                for title in look(here, celery):
                    log.info("alerts.sent", title=title)
        except Exception as error:  # whatever it is, the next look may go better
            log.warning("alerts.look_failed", error=str(error), kind=type(error).__name__)


@signals.beat_init.connect(weak=False)
def _watch_beside_beat(**_: Any) -> None:
    threading.Thread(target=watch, args=(app, threading.Event()), name="alerts", daemon=True).start()
