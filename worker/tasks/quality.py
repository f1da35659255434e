"""Checks after rebuilds and at night, and released rows on their way out of quarantine."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import Any

import structlog

from worker import mending, pipeline, quality, quarantine, standing
from worker.celery import Servers, app, servers
from worker.errors import RetailMediaError, Superseded
from worker.quality import Scope
from worker.streams import EVENT_STREAMS, EVENTS_TABLE, Stream
from worker.tasks import arguments
from worker.tasks.metrics import rebuild_dirty
from worker.windows import Window, to_micros

log = structlog.get_logger()

HEAP_SECONDS = 2.0
NIGHT_SECONDS = 3600.0
"""Of nightly rounds that an outage piled up, one an hour is enough."""


def through(here: Servers) -> dict[str, datetime]:
    """For each event stream, the instant before which everything the source wrote is loaded."""
    return {stream.name: standing.complete_through(here.source, here.ledger, [stream]) for stream in EVENT_STREAMS}


def carry_out(here: Servers, scope: Scope, selected: list[quality.Check]) -> dict[str, Any]:
    """Runs the checks and tells how many came out how."""
    run_id = pipeline.new_run_id(to_micros(here.ledger.now()))
    states = [
        f"{found.check.severity} {found.state}" if found.state == "failed" else found.state
        for found in quality.run(here.source, here.sink, here.settings, selected, scope, through(here), run_id=run_id)
    ]
    return {"run_id": run_id, **{state: states.count(state) for state in sorted(set(states))}}


@app.task(send_events=False)
def changed(**unknown: Any) -> dict[str, Any]:
    """Checks the days that were rebuilt since the last time. Does nothing where none was."""
    arguments.no_others("changed", "nothing", unknown)
    here = servers()
    if not here.store.once("checks", here.settings.check_seconds):
        return {"skipped": "another was just here"}
    days = quality.changed(here.sink)
    if not days:
        return {"days": 0}
    selected = [check for check in quality.checks(here.settings) if not check.nightly]
    return {"days": len(days), **carry_out(here, Scope("rebuild", quality.ranges(days)), selected)}


@app.task
def nightly(**unknown: Any) -> dict[str, Any]:
    """Every check, over every day."""
    arguments.no_others("nightly", "nothing", unknown)
    here = servers()
    if not here.store.once("checks:nightly", NIGHT_SECONDS):
        return {"skipped": "another was just here"}
    return carry_out(here, Scope("nightly"), quality.checks(here.settings))


def load_released(here: Servers) -> dict[str, int]:
    """Loads rows that were released and are not loaded yet, and rebuilds their days. Idempotent."""
    done = {"windows": 0, "loaded": 0, "quarantined": 0, "failed": 0}
    uuid = here.ledger.live(EVENT_STREAMS)[EVENTS_TABLE]
    for stream, window, occasion in quarantine.pending(here.sink):
        try:
            found = _reload(here, stream, window, uuid, occasion)
        except RetailMediaError as error:
            # The next round tries again; the others need not wait for it.
            log.warning("quarantine.not_loaded", stream=stream.name, window=str(window), error=str(error))
            done["failed"] += 1
            continue
        if found is not None:
            done["windows"] += 1
            done["loaded"] += found.loaded
            done["quarantined"] += found.quarantined
    if done["windows"]:
        rebuild_dirty(here)
    return done


def _reload(here: Servers, stream: Stream, window: Window, uuid: Any, occasion: str) -> pipeline.Loaded | None:
    with here.store.window_lease(stream, uuid, window, here.settings.lease_seconds) as held:
        if held is None:
            return None
        found = _read_again(here, stream, window, EVENTS_TABLE, uuid, occasion)
    # The live table first: a row that is there stands as loaded, and a refresh begun meanwhile read the decision.
    for name, shadow in mending.event_tables(here.sink):
        if shadow != uuid:
            with suppress(Superseded):
                _read_again(here, stream, window, name, shadow, occasion)
    return found


def _read_again(here: Servers, stream: Stream, window: Window, table: str, uuid: Any, occasion: str) -> pipeline.Loaded:
    return pipeline.load_window(
        here.source, here.sink, here.ledger, here.settings, stream, window, table=table, uuid=uuid, again=occasion
    )


@app.task(send_events=False)
def release(**unknown: Any) -> dict[str, Any]:
    """Loads what people released from quarantine."""
    arguments.no_others("release", "nothing", unknown)
    here = servers()
    if not here.store.once("release", HEAP_SECONDS):
        return {"skipped": "another was just here"}
    return dict(load_released(here))
