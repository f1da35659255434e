"""What keeps everything converging when callbacks are lost, and what tidies up after processes that died."""

from __future__ import annotations

from datetime import date
from typing import Any

from worker import calendars, dimensions, metrics, planner, refresh, standing
from worker.celery import app, servers
from worker.failing import failing_days
from worker.streams import STREAMS
from worker.tasks import arguments, turns
from worker.tasks import pipeline as pipeline_tasks
from worker.tasks import refresh as refresh_tasks
from worker.tasks.metrics import rebuild_dirty
from worker.tasks.metrics import settled as metrics_settled

HEAP_SECONDS = 2.0
"""After an outage these tasks come in a heap: of those that follow each other closer than this, one is enough."""

ABANDONED_SECONDS = 900
"""Age from which a staging table belongs to nobody: three times the longest a task may run."""


@app.task(send_events=False)
def converge(**unknown: Any) -> dict[str, Any]:
    """Watermarks, metrics, and a push to every run that has not ended."""
    arguments.no_others("converge", "nothing", unknown)
    here = servers()
    with here.store.thinned("converge", HEAP_SECONDS) as ahead:
        if not ahead:
            return {"skipped": "another was just here"}
        streams = list(STREAMS.values())
        planner.publish_watermarks(here.ledger, here.store, streams, here.ledger.live(streams))
        days = rebuild_dirty(here).days
        runs = here.ledger.open_runs()
        for run in runs:
            pushed = refresh_tasks.step if run.kind == "refresh" else pipeline_tasks.step
            turns.look_again(here, pushed, run.run_id, queue="backfill" if run.kind == "refresh" else "realtime")
        return {"days": days, "runs": len(runs)}


@app.task(send_events=False)
def sweep(**unknown: Any) -> dict[str, Any]:
    """Looks at every day instead of the recent marks, and drops tables left by processes that died."""
    arguments.no_others("sweep", "nothing", unknown)
    here = servers()
    if not here.store.once("sweep", HEAP_SECONDS):
        return {"skipped": "another was just here"}
    calendars.keep_current(here.sink, here.ledger, here.settings)
    days = rebuild_dirty(here, reprice=True, everything=True).days
    # After the rebuild: what has arrived by now is in the days that become final, and is no restatement of them.
    # Campaigns among it: figures are not final before those are read that price them.
    complete = standing.complete_through(here.source, here.ledger, list(STREAMS.values()))
    failing = failing_days(here.sink)
    if metrics_settled(here) or (failing and set(metrics.dirty_days(here.sink)) <= failing.keys()):
        # A day that is final already has said its first figures, and keeps no other from becoming so.
        final = metrics.final_through(here.sink) or date.min
        first = min((day for day in failing if day > final), default=None)
        metrics.note_finality(here.sink, here.settings, complete, before=first)
    dropped = [
        *here.sink.drop_abandoned(metrics.STAGING, ABANDONED_SECONDS),
        *here.sink.drop_abandoned(dimensions.DIMENSION_STAGING, ABANDONED_SECONDS),
        *refresh.drop_abandoned(here.sink, here.ledger),
    ]
    return {"days": days, "dropped": len(dropped)}
