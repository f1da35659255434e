"""Full refresh: `celery call worker.tasks.refresh.full_refresh` starts one, `step` takes it further."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import structlog

from worker import pipeline, planner, refresh, setbacks
from worker.celery import Servers, app, servers
from worker.errors import SourceWentBack, Superseded
from worker.ledger import Run
from worker.retention import kept_since
from worker.streams import EVENT_STREAMS, EVENTS_TABLE, Stream
from worker.streams import stream as stream_of
from worker.tasks import arguments, turns
from worker.tasks.metrics import settle
from worker.tasks.pipeline import hopeless
from worker.tasks.sync import hand_out
from worker.windows import Window, to_micros

log = structlog.get_logger()

HEAP_SECONDS = 0.1
"""Steps of one run that follow each other closer than this are one."""


@app.task
def full_refresh(
    streams: list[str] | None = None, metrics_update: bool = True, run_id: str | None = None, **unknown: Any
) -> dict[str, Any]:
    """Loads these streams (default all) anew and swaps them in; readers see the old rows until then."""
    arguments.no_others("full_refresh", "streams, metrics_update and run_id", unknown)
    chosen, update = arguments.stream_list(streams), arguments.flag("metrics_update", metrics_update)
    asked = arguments.run_id(run_id)
    here = servers()
    now = here.source.now()
    name = asked or pipeline.new_run_id(to_micros(now))
    if here.ledger.run(name) is None:
        here.ledger.save_run(Run(name, "refresh", tuple(s.name for s in chosen), update, until=now, started_at=now))
    step.apply_async(kwargs={"run_id": name})
    return {"run_id": name, "streams": [stream.name for stream in chosen]}


@app.task
def step(run_id: str, turn: str | None = None, **unknown: Any) -> dict[str, Any]:
    """Takes a refresh as far as it goes now: shadow, windows, swap, metrics. Idempotent."""
    arguments.no_others("step", "run_id and turn", unknown)
    asked, mine = arguments.run_id(run_id), arguments.turn(turn)
    here = servers()
    if turns.overtaken(here, asked, mine):
        return {"run_id": asked, "state": "another message is at it"}
    # Each chord of windows sends one. Of those that waited in line one says it all, and one more looks again after it.
    with here.store.thinned(f"step:{asked}", HEAP_SECONDS) as ahead:
        if not ahead:
            turns.look_again(here, step, asked)
            return {"run_id": asked, "state": "another message was at it just now"}
        return {"run_id": asked, "state": _step(here, asked)}


def _step(here: Servers, run_id: str) -> str:
    found = here.ledger.run(run_id)
    if found is None or found.state != "running":
        return found.state if found else "unknown"
    with here.store.lease(f"run:{run_id}", turns.LEASE_SECONDS) as held:
        if held is None:
            turns.look_again(here, step, run_id, countdown=turns.HELD_SECONDS)
            return "another worker is at it"
        try:
            state = _advance(found)
        except Superseded as error:
            # Whoever lost the lease on the way may find that the run itself was swapped in by the next holder.
            current = here.ledger.run(run_id) or found
            if current.state != "running" or here.ledger.live(EVENT_STREAMS)[EVENTS_TABLE] == current.target_uuid:
                return "another worker is at it"
            here.ledger.end_run(found, "superseded", str(error))
            return "superseded"
        except SourceWentBack as error:
            here.ledger.end_run(found, "failed", str(error))
            return "failed"
    if state == "waiting":
        turns.look_again(here, step, run_id)
    return state


def _advance(run: Run) -> str:
    here = servers()
    streams = [stream_of(name) for name in run.streams]
    events = [stream for stream in streams if stream.kind == "events"]
    dimensions = [stream for stream in streams if stream.kind == "dimension"]
    setbacks.require_present(here.ledger, run)
    if events and run.target_uuid is None:
        if here.ledger.setback():
            # What it has shown is no measure for a clock that was set back; while nothing is loaded nobody notes more.
            here.store.forget_observations()
        run = refresh.begin(here.source, here.sink, here.ledger, here.settings, events, run)
    uuid = run.target_uuid
    follow_up = step.si(run_id=run.run_id)
    swapped = uuid is not None and here.ledger.live(events)[EVENTS_TABLE] == uuid
    if uuid is not None and not swapped:
        refresh.require_shadow(here.sink, here.ledger, run)

    plans = planner.plan(
        here.source, here.ledger, here.store, here.settings, dimensions, until=run.until, since=run.updated_at
    )
    handed = sum(hand_out(here, p, follow_up=follow_up, run_id=run.run_id, queue="backfill") for p in plans)
    if uuid is not None and not swapped:
        name = refresh.shadow_name(run.run_id)
        shadowed = planner.plan(
            here.source,
            here.ledger,
            here.store,
            here.settings,
            events,
            targets={EVENTS_TABLE: uuid},
            since=run.updated_at,
        )
        handed += sum(
            hand_out(here, p, follow_up=follow_up, run_id=run.run_id, table=name, queue="backfill") for p in shadowed
        )
        plans += shadowed
    if handed:
        return f"{handed} windows handed out"
    cause = hopeless(here, replace(run, metrics_update=False), plans)
    if cause:
        here.ledger.end_run(run, "failed", cause)
        return "failed"
    if not planner.complete(plans, run.until):
        return "waiting"

    if uuid is not None:

        def load(stream: Stream, window: Window) -> object:
            return pipeline.load_window(
                here.source,
                here.sink,
                here.ledger,
                here.settings,
                stream,
                window,
                table=refresh.shadow_name(run.run_id),
                uuid=uuid,
                run_id=run.run_id,
            )

        refresh.finish(
            here.sink,
            here.ledger,
            here.store,
            here.settings,
            run,
            load=load,
            now=lambda: datetime.now(UTC),
            wait=time.sleep,
            kept=kept_since(here.settings, here.source.now()),
        )
    if run.metrics_update and not settle(here, run.updated_at):
        cause = hopeless(here, run, ())
        if cause:
            here.ledger.end_run(run, "failed", cause)
            return "failed"
        return "waiting"
    here.ledger.end_run(run, "succeeded")
    return "succeeded"
