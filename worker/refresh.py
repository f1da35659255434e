"""Full refresh: loads everything anew into a shadow of `ad_events` and puts it in place in one metadata operation.

Incremental loading goes on meanwhile, and readers see the old table until they see the new one. Where a refresh
stands is in the ledger, so each call of `step` carries on from there, whoever died in between:

1. create the shadow, then take a snapshot whose version the shadow carries: of two refreshes the newer wins;
2. streams that are not refreshed come along: their partitions are linked into the shadow with their commits;
3. load windows into the shadow, in parallel, committed for the shadow's uuid, until they reach the horizon;
4. close the gate for planners, let windows in flight land, load the last moments up to the live watermark;
5. drop older shadows, swap, drop what was live, mark all days.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from worker import calendars, setbacks
from worker.config import Settings
from worker.errors import BadInput, SchemaMismatch, Superseded
from worker.ledger import Coverage, Ledger, Run
from worker.mending import same_shape
from worker.retention import carry_along
from worker.sink import Sink, quoted
from worker.source import Source
from worker.sql import named
from worker.streams import EVENT_STREAMS, EVENTS_TABLE, Stream
from worker.watermarks import WatermarkStore
from worker.windows import Window, gaps, merged

log = structlog.get_logger()

SHADOW = "ad_events_shadow_"
GATE_SECONDS = 15.0
"""How long planners hold still for a refresh that says nothing more; whoever swaps closes the gate anew as it goes."""

LANDING_SECONDS = 30.0
"""How long windows in flight may take to land before the swap; later ones are read again for the new table."""


@dataclass(frozen=True, slots=True)
class Shadow:
    """A table being filled to replace `ad_events`; `version` is of the snapshot taken when it was created."""

    name: str
    uuid: UUID
    version: int


def shadow_name(run_id: str) -> str:
    """The shadow's table name. Raises `BadInput` for a run id that could not be one."""
    if not re.fullmatch(r"[0-9A-Za-z-]{1,40}", run_id):
        raise BadInput("A run id holds up to 40 letters, digits and dashes.")
    return f"{SHADOW}{run_id.replace('-', '_')}"


def shadows(sink: Sink) -> list[Shadow]:
    """Every shadow there is."""
    result = []
    for name, uuid, comment in sink.named("events", "shadows", {"database": sink.database}):
        version = re.search(r"version (\d+)", comment)
        result.append(Shadow(name, UUID(str(uuid)), int(version[1]) if version else 0))
    return result


def begin(source: Source, sink: Sink, ledger: Ledger, settings: Settings, streams: Sequence[Stream], run: Run) -> Run:
    """Creates the shadow and returns the run with its uuid and version; the run is saved last. Idempotent."""
    name = shadow_name(run.run_id)
    table = quoted(name)
    events = [stream for stream in streams if stream.kind == "events"]
    made = any(shadow.name == name for shadow in shadows(sink))
    if made and not same_shape(sink, name):
        # Left by an attempt that died before a migration; nothing was loaded into it.
        sink.command("dropping a shadow of an older shape", f"DROP TABLE IF EXISTS {table} SYNC")
        made = False
    if not made:
        sink.command(
            "creating the shadow table",
            named("events", "create_shadow").format(table=table),
            {"comment": "full refresh, version 0"},
        )
    # The snapshot is newer than the table, so every row the table will hold is at least as new as its version.
    version = setbacks.begin_anew(source, ledger, settings, events, ledger.live(events).values())
    sink.command(
        "naming the shadow's version",
        f"ALTER TABLE {table} MODIFY COMMENT %(comment)s",
        {"comment": f"full refresh, version {version}"},
    )
    uuid = sink.uuid(name)
    bring_along(sink, ledger, [stream for stream in EVENT_STREAMS if stream not in events], name, uuid)
    begun = replace(run, target_uuid=uuid, version=version)
    ledger.save_run(begun)
    log.info("refresh.begun", run_id=run.run_id, shadow=name, version=version)
    return begun


def require_shadow(sink: Sink, ledger: Ledger, run: Run) -> None:
    """Raises `Superseded` where the run's shadow is gone, and not because it went live."""
    name = shadow_name(run.run_id)
    if any(shadow.name == name and shadow.uuid == run.target_uuid for shadow in shadows(sink)):
        return
    if ledger.live(EVENT_STREAMS)[EVENTS_TABLE] != run.target_uuid:
        raise Superseded(f"The shadow table of run {run.run_id} is gone: a newer full refresh took over.")


def bring_along(sink: Sink, ledger: Ledger, streams: Sequence[Stream], shadow: str, uuid: UUID) -> None:
    """Links the partitions of streams that are not refreshed into the shadow, with their coverage so far."""
    if not streams:
        return
    targets = ledger.live(streams)
    generations = ledger.generations()
    # The watermark first: what is loaded after it is in the partitions or will be loaded into the shadow.
    coverage = ledger.coverage(streams, targets, generations)
    for stream in streams:
        parameters = {"database": sink.database, "table": EVENTS_TABLE, "prefix": f"('{stream.event_type}',"}
        for (partition,) in sink.named("events", "partitions", parameters):
            sink.command(
                "linking a partition",
                f"ALTER TABLE {quoted(shadow)} REPLACE PARTITION ID %(partition)s FROM {EVENTS_TABLE}",
                {"partition": partition},
            )
        if generations:
            ledger.checkpoint(stream, uuid, coverage[stream.name].watermark, generations[-1])


def behind(ledger: Ledger, shadow: UUID) -> dict[str, list[Window]]:
    """What the live table has, and the shadow not yet, by stream."""
    generations = ledger.generations()
    live = ledger.coverage(EVENT_STREAMS, ledger.live(EVENT_STREAMS), generations)
    ours = ledger.coverage(EVENT_STREAMS, {EVENTS_TABLE: shadow}, generations)
    return {stream.name: missing(live[stream.name], ours[stream.name]) for stream in EVENT_STREAMS}


def missing(live: Coverage, ours: Coverage) -> list[Window]:
    """Windows of `live` that `ours` does not hold."""
    return merged(gap for window in live.windows for gap in gaps(window, ours.windows))


def finish(
    sink: Sink,
    ledger: Ledger,
    store: WatermarkStore,
    settings: Settings,
    run: Run,
    *,
    load: Callable[[Stream, Window], object],
    now: Callable[[], datetime],
    wait: Callable[[float], None],
    kept: datetime | None = None,
) -> Run:
    """Catches up with the live table and swaps. `load` loads one window into the shadow.

    Of events that happened or were written before `kept`, those the source no longer has come along. Planners are asked
    to hand out nothing while the tables are made equal; should this process die, for `GATE_SECONDS` more. `now` and
    `wait` are the caller's clock. Raises `Superseded` if a newer refresh dropped the shadow, or if the live table was
    altered meanwhile.
    """
    if run.target_uuid is None:
        raise BadInput(f"Run {run.run_id} has no shadow table.")
    name = shadow_name(run.run_id)
    live = ledger.live(EVENT_STREAMS)
    if live[EVENTS_TABLE] == run.target_uuid:
        # Swapped by an earlier attempt that did not live to say so, nor to open the gate.
        store.open_gate()
        return _finished(sink, ledger, settings, run, name)
    require_shadow(sink, ledger, run)
    require_shape(sink, name)
    for stream in EVENT_STREAMS:
        if stream.name in run.streams:
            carry_along(sink, stream, quoted(name), kept)
    try:
        store.close_gate(GATE_SECONDS)
        deadline = now() + timedelta(seconds=LANDING_SECONDS)
        while any(store.in_flight(stream, live[EVENTS_TABLE]) for stream in EVENT_STREAMS) and now() < deadline:
            store.close_gate(GATE_SECONDS)
            wait(0.05)
        for _ in range(3):
            lacking = behind(ledger, run.target_uuid)
            if not any(lacking.values()):
                break
            for stream in EVENT_STREAMS:
                for window in lacking[stream.name]:
                    store.close_gate(GATE_SECONDS)
                    load(stream, window)
        store.close_gate(GATE_SECONDS)
        _drop_older(sink, run)
        require_shape(sink, name)
        swap(sink, name, run.target_uuid)
    finally:
        store.open_gate()
    return _finished(sink, ledger, settings, run, name)


def require_shape(sink: Sink, name: str) -> None:
    """Raises `Superseded` where a migration altered `ad_events` and not the shadow, which would bring the old shape back."""
    if not same_shape(sink, name):
        raise Superseded(
            f"{EVENTS_TABLE} was altered while {name} was filled with its earlier columns, so nothing was swapped; ask for "
            "another full refresh."
        )


def swap(sink: Sink, name: str, uuid: UUID) -> None:
    """Exchanges the shadow with `ad_events`. Raises `Superseded` if the shadow is not the table it was."""
    try:
        if sink.uuid(name) != uuid:
            raise Superseded(f"{name} is no longer the table that was filled; nothing was swapped.")
        # Never retried: after an unknown outcome a second exchange would undo the first. The next step looks again.
        sink.command("swapping", f"EXCHANGE TABLES {quoted(name)} AND {EVENTS_TABLE}", retry=False)
    except SchemaMismatch as error:
        raise Superseded(f"{name} is gone: a newer full refresh took over.") from error


def _drop_older(sink: Sink, run: Run) -> None:
    for shadow in shadows(sink):
        if shadow.uuid != run.target_uuid and shadow.version <= run.version:
            log.info("refresh.dropped_older", shadow=shadow.name)
            sink.command("dropping an older shadow", f"DROP TABLE IF EXISTS {quoted(shadow.name)} SYNC")


def _finished(sink: Sink, ledger: Ledger, settings: Settings, run: Run, name: str) -> Run:
    # Under the shadow's name now lies what was live. It goes last: once it is gone the days are known to be marked,
    # and a step that comes again must not mark them again, or they would never be settled.
    if any(shadow.name == name and shadow.uuid != run.target_uuid for shadow in shadows(sink)):
        ledger.mark_all_days(calendars.in_force(sink, settings))
        sink.command("dropping the replaced table", f"DROP TABLE IF EXISTS {quoted(name)} SYNC")
        log.info("refresh.swapped", run_id=run.run_id)
    return run


def drop_abandoned(sink: Sink, ledger: Ledger) -> list[str]:
    """Drops shadows of runs that ended; returns their names."""
    # In this order: a run is written down before it makes its shadow.
    found = shadows(sink)
    open_names = {shadow_name(run.run_id) for run in ledger.open_runs() if run.kind == "refresh"}
    dropped = []
    for shadow in found:
        if shadow.name not in open_names:
            sink.command("dropping an abandoned shadow", f"DROP TABLE IF EXISTS {quoted(shadow.name)} SYNC")
            dropped.append(shadow.name)
    return dropped
