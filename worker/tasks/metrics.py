"""The callback that follows windows: the metrics of days that changed, then watermarks, which ticks publish as well.

And what looks at those metrics afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from worker import anomalies, metrics, observe, planner, standing
from worker.celery import Servers, app, servers
from worker.failing import DayFailure, failing_days, note_built_days
from worker.streams import EVENT_STREAMS
from worker.tasks import arguments, turns
from worker.windows import ORIGIN

DAYS_A_CALL = 93
"""Days one call rebuilds before it hands over to another, so that none comes near the time limit."""

HEAP_SECONDS = 0.1
"""Callbacks of the same streams that follow each other closer than this are one."""

RETRIED_AT_ONCE = 4
"""Days that failed before and are tried again in one call."""

CLOCK_SLACK = timedelta(seconds=60)
"""How long a mark may take from its time stamp until it can be read."""

REMEMBER_EVERY = timedelta(seconds=10)
"""How often it is remembered that no day waits while ticks find nothing to do."""


@app.task
def advance(streams: list[str] | None = None, **unknown: Any) -> dict[str, Any]:
    """Rebuilds the metrics of days that changed and recomputes watermarks from the ledger. Idempotent."""
    arguments.no_others("advance", "streams", unknown)
    chosen = arguments.stream_list(streams)
    here = servers()
    reprice = any(stream.kind == "dimension" for stream in chosen)
    name = f"advance:{','.join(stream.name for stream in chosen)}"
    # Of callbacks that waited in line, one says it all. What a later one would have found, a tick finds, but not what a
    # campaign's new version made wrong.
    with nullcontext(True) if reprice else here.store.thinned(name, HEAP_SECONDS) as ahead:
        if not ahead:
            return {"days": 0, "skipped": "another one was here just now"}
        # In this order: readers wait for the metrics, and the next tick publishes what this one did not come to.
        rebuilt = rebuild_dirty(here, reprice=reprice)
        planner.publish_watermarks(here.ledger, here.store, chosen, here.ledger.live(chosen))
        return {"days": rebuilt.days}


@app.task
def detect_anomalies(day: str | None = None, **unknown: Any) -> dict[str, Any]:
    """Judges the last whole days anew, or the one day named, as 2026-11-10. Idempotent."""
    arguments.no_others("detect_anomalies", "day", unknown)
    here = servers()
    now = here.ledger.now()
    days = [anomalies.whole_day(here.sink, here.settings, day, now)] if day is not None else []
    days = days or anomalies.days_to_judge(here.sink, here.settings, now)
    complete = standing.complete_through(here.source, here.ledger, EVENT_STREAMS)
    done = [anomalies.detect(here.sink, here.settings, one, complete) for one in days]
    return {
        "days": len(done),
        "found": sum(len(one.found) for one in done),
        "withdrawn": sum(one.withdrawn for one in done),
    }


@dataclass(frozen=True, slots=True)
class Rebuilding:
    """Days rebuilt, and whether none was left when they were last looked for."""

    days: int = 0
    settled: bool = False


def rebuild_dirty(
    here: Servers, *, reprice: bool = False, everything: bool = False, since: datetime | None = None
) -> Rebuilding:
    """Rebuilds days that changed; none while another worker is at it. Days that failed before come after all others,
    and only when they have rested; where a run waits that began at `since`, once at once.

    `reprice` also finds days that a campaign version or the pricing model made wrong; `everything` trusts no earlier
    check that found nothing to do.
    """
    if reprice:
        # Before the lease: where another worker holds it, the marks tell whoever waits that these days are not settled.
        outdated = metrics.outdated_days(here.sink, here.settings)
        # What failed was marked before it was tried first.
        failing = failing_days(here.sink) if outdated else {}
        here.ledger.mark_days(day for day in outdated if day not in failing)
    with here.store.lease("rebuild", turns.LEASE_SECONDS) as held:
        if held is None:
            return Rebuilding()
        rebuilt, tried, retried = 0, set[date](), False
        failing = failing_days(here.sink, since or ORIGIN)
        if everything and failing:
            # Days that do not wait were built, by who died before he noted it or by who began before they failed.
            built = failing.keys() - set(metrics.dirty_days(here.sink))
            note_built_days(here.sink, built)
            failing = {day: failure for day, failure in failing.items() if day not in built}
        marked_since = ORIGIN if everything else here.store.clean_since()
        while True:
            asked_at = here.ledger.now()
            days = metrics.dirty_days(here.sink, marked_since)
            if not days:
                here.store.set_clean_since(asked_at - CLOCK_SLACK)
                return Rebuilding(rebuilt, settled=True)
            chosen = [day for day in days if day not in failing and day not in tried]
            if not chosen and not retried:
                again = (failing[day] for day in days if day in failing)
                chosen, retried = _rested(again, for_run=since is not None), True
            if not chosen:
                return Rebuilding(rebuilt)
            if rebuilt + len(tried) >= DAYS_A_CALL:
                break
            begun = time.monotonic()
            done = metrics.rebuild(here.sink, here.settings, chosen[:DAYS_A_CALL])
            observe.note_rebuild(done.days, time.monotonic() - begun)
            rebuilt += done.days
            tried |= {day for day, _ in done.failed}
    advance.apply_async(queue="maintenance")
    return Rebuilding(rebuilt)


def _rested(failures: Iterable[DayFailure], *, for_run: bool) -> list[date]:
    """A few of these days that may be tried again, those first that have waited longest."""
    due = sorted((failure for failure in failures if failure.due(for_run=for_run)), key=lambda failure: failure.last)
    return [failure.day for failure in due[:RETRIED_AT_ONCE]]


def settle(here: Servers, since: datetime | None = None) -> bool:
    """Rebuilds days that changed or that a campaign version made wrong; whether none is left waiting.

    `since` is when the run began that waits for it, by ClickHouse's clock.
    """
    return rebuild_dirty(here, reprice=True, since=since).settled or settled(here)


def hopeless_day(here: Servers, since: datetime, times: int) -> str:
    """Why no run that began at `since` can succeed: a day that failed so often since then; empty if there is none."""
    for failure in failing_days(here.sink, since).values():
        if failure.recent >= times:
            return f"The metrics of {failure.day} cannot be built: {failure.error}"
    return ""


def settled(here: Servers) -> bool:
    """Whether no day waits to be rebuilt. Where no day was marked for a minute, that is one small question."""
    since = here.store.clean_since()
    marks, asked_at = metrics.marks_since(here.sink, since)
    if marks and metrics.dirty_days(here.sink, since):
        return False
    if asked_at - since > CLOCK_SLACK + REMEMBER_EVERY:
        here.store.set_clean_since(asked_at - CLOCK_SLACK)
    return True
