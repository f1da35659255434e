"""A pipeline run: everything inserted before it was asked for is loaded, and the metrics follow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import structlog

from worker import pipeline, planner
from worker.celery import Servers, app, servers
from worker.errors import SourceWentBack
from worker.ledger import Run
from worker.planner import Plan
from worker.streams import stream as stream_of
from worker.tasks import arguments, turns
from worker.tasks.metrics import hopeless_day, settle
from worker.tasks.sync import hand_out
from worker.windows import to_micros

log = structlog.get_logger()

GIVE_UP_AFTER = 5
"""Failures of one window, dimension or day since a run began after which it says that it failed. Ticks go on trying."""


def hopeless(here: Servers, run: Run, plans: Iterable[Plan]) -> str:
    """Why this run cannot succeed: what failed too often since it began; empty while nothing did."""
    for planned in plans:
        for failure in planned.waiting:
            if failure.recent >= GIVE_UP_AFTER:
                return failure.error
    return hopeless_day(here, run.updated_at, GIVE_UP_AFTER) if run.metrics_update else ""


@app.task
def run(
    streams: list[str] | None = None, metrics_update: bool = True, run_id: str | None = None, **unknown: Any
) -> dict[str, Any]:
    """Starts a run over these streams (default all) and hands out its first windows."""
    arguments.no_others("run", "streams, metrics_update and run_id", unknown)
    chosen, update = arguments.stream_list(streams), arguments.flag("metrics_update", metrics_update)
    asked = arguments.run_id(run_id)
    here = servers()
    now = here.source.now()
    name = asked or pipeline.new_run_id(to_micros(now))
    if here.ledger.run(name) is None:
        here.ledger.save_run(Run(name, "pipeline", tuple(s.name for s in chosen), update, until=now, started_at=now))
    step.apply_async(kwargs={"run_id": name}, queue="realtime")
    return {"run_id": name, "streams": [stream.name for stream in chosen]}


@app.task
def step(run_id: str, turn: str | None = None, **unknown: Any) -> dict[str, Any]:
    """Takes a run as far as it goes now: hands out windows, waits, or ends it. Idempotent."""
    arguments.no_others("step", "run_id and turn", unknown)
    asked, mine = arguments.run_id(run_id), arguments.turn(turn)
    here = servers()
    if turns.overtaken(here, asked, mine):
        return {"run_id": run_id, "state": "another message is at it"}
    found = here.ledger.run(asked)
    if found is None or found.state != "running":
        return {"run_id": run_id, "state": found.state if found else "unknown"}
    streams = [stream_of(name) for name in found.streams]
    with here.store.lease(f"run:{run_id}", turns.LEASE_SECONDS) as held:
        if held is None:
            turns.look_again(here, step, run_id, countdown=turns.HELD_SECONDS, queue="realtime")
            return {"run_id": run_id, "state": "another worker is at it"}
        plans = []
        try:
            if not here.store.gate_closed():
                plans = planner.plan(
                    here.source,
                    here.ledger,
                    here.store,
                    here.settings,
                    streams,
                    until=found.until,
                    since=found.updated_at,
                )
        except SourceWentBack as error:
            here.ledger.end_run(found, "failed", str(error))
            return {"run_id": run_id, "state": "failed"}
        handed = sum(hand_out(here, planned, follow_up=step.si(run_id=run_id), run_id=run_id) for planned in plans)
        if handed:
            return {"run_id": run_id, "windows": handed}
        loaded = bool(plans) and planner.complete(plans, found.until)
        if loaded and (not found.metrics_update or settle(here, found.updated_at)):
            here.ledger.end_run(found, "succeeded")
            return {"run_id": run_id, "state": "succeeded"}
        cause = hopeless(here, found, plans)
        if cause:
            here.ledger.end_run(found, "failed", cause)
            return {"run_id": run_id, "state": "failed"}
    turns.look_again(here, step, run_id, queue="realtime")
    return {"run_id": run_id, "state": "waiting"}
