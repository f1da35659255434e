"""Planning ticks, windows, and the callback that follows them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

import structlog
from celery import chord, current_task, group

from worker import dimensions, observe, pipeline, planner
from worker.celery import Servers, app, servers
from worker.errors import RetailMediaError, SourceWentBack, Superseded
from worker.planner import Plan
from worker.streams import EVENTS_TABLE, Stream
from worker.tasks import arguments, turns
from worker.tasks.metrics import advance, rebuild_dirty, settled
from worker.watermarks import WatermarkStore
from worker.windows import Window

log = structlog.get_logger()

PROGRESS, PROGRESS_EVENT = "PROGRESS", "task-progress"
"""State of a task that is under way and has said how far it is, and the event by which Flower learns of it."""

HEAP_SECONDS = 0.5
"""Ticks of the same streams that follow each other closer than this are one."""


@app.task(ignore_result=True, send_events=False)
def plan(streams: list[str] | None = None, **unknown: Any) -> dict[str, Any] | None:
    """One tick: hands out the windows of these streams (default all) that lie below the safe horizon.

    Returns what it did, for Flower; None where there was nothing to do.
    """
    arguments.no_others("plan", "streams", unknown)
    chosen = arguments.stream_list(streams)
    here = servers()
    names = [stream.name for stream in chosen]
    name = f"plan:{','.join(names)}"
    # After an outage, or while servers are slow, ticks come in a heap, and one says it all.
    with here.store.thinned(name, HEAP_SECONDS) as ahead:
        if not ahead or here.store.gate_closed():
            return None
        # Two ticks at once would hand out the same windows; the lease saves the work, the ledger would bear it.
        with here.store.lease(name, turns.LEASE_SECONDS) as held:
            if held is None:
                return None
            try:
                plans = planner.plan(here.source, here.ledger, here.store, here.settings, chosen)
            except SourceWentBack as error:
                # Told by status, alerts and the rest until a person asks for a full refresh; what is loaded is counted.
                log.error("plan.refused", reason=str(error))
                plans = []
            handed = sum(
                hand_out(here, planned, follow_up=advance.si(streams=[planned.stream.name])) for planned in plans
            )
        days = 0 if handed or settled(here) else rebuild_dirty(here).days
        return {"windows": handed, "days": days} if handed or days else None


def hand_out(
    here: Servers,
    planned: Plan,
    *,
    follow_up: Any,
    run_id: str = "",
    table: str = EVENTS_TABLE,
    queue: str | None = None,
) -> int:
    """Sends the planned windows to the workers, each queue's as a chord of its own; returns how many.

    Those that another planner handed out meanwhile, whole or in part, are not sent.
    """
    stream = planned.stream
    count = 0
    for wanted, name in ((planned.fresh, "realtime"), (planned.backlog, "backfill")):
        target = queue or name
        windows = here.store.take_off(stream, planned.target_uuid, wanted, here.settings.lease_seconds, target)
        if windows:
            header = group(_signature(stream, window, planned.target_uuid, table, run_id, target) for window in windows)
            chord(header)(follow_up.set(queue=target))
            count += len(windows)
    return count


def _signature(stream: Stream, window: Window, uuid: UUID, table: str, run_id: str, queue: str) -> Any:
    extra = {"run_id": run_id} if run_id else {}
    if stream.kind == "dimension":
        return load_dimension.si(stream=stream.name, **extra).set(queue=queue)
    if table != EVENTS_TABLE:
        extra["table"] = table
    return load_window.si(stream=stream.name, **window.kwargs(), target=str(uuid), **extra).set(queue=queue)


@app.task
def load_window(
    stream: str, lo: str, hi: str, target: str, table: str = EVENTS_TABLE, run_id: str | None = None, **unknown: Any
) -> dict[str, Any]:
    """Loads one window of an event stream into the table known as `target`, and commits it."""
    arguments.no_others("load_window", "stream, lo, hi, target, table and run_id", unknown)
    chosen, window = arguments.event_stream(stream), arguments.window(lo, hi)
    uuid, name, run = arguments.uuid(target), arguments.target_table(table), arguments.run_id(run_id)
    return load(servers(), chosen, window, uuid, name, run)


def load(here: Servers, stream: Stream, window: Window, uuid: UUID, table: str, run_id: str) -> dict[str, Any]:
    """`pipeline.load_window` under the window's lease; a failure goes to the ledger."""
    with here.store.window_lease(stream, uuid, window, here.settings.lease_seconds, _queue()) as held:
        if held is None:
            return {"stream": stream.name, "skipped": "another worker is loading this window"}
        begun = time.monotonic()
        try:
            done = pipeline.load_window(
                here.source,
                here.sink,
                here.ledger,
                here.settings,
                stream,
                window,
                table=table,
                uuid=uuid,
                run_id=run_id,
                on_rows=_progress(here.store, run_id, stream),
            )
        except Superseded as error:
            # No failure: what is still lacking in the table that is live now, the next tick plans.
            log.info("window.superseded", stream=stream.name, reason=str(error))
            return {"stream": stream.name, "skipped": "the table was replaced meanwhile"}
        except RetailMediaError as error:
            observe.note_failed_window(stream.name, type(error).__name__)
            with _unnoted():
                here.ledger.note_failure(stream, uuid, window, run_id, str(error))
            raise
    if run_id:
        here.store.add_progress(run_id, stream, windows=1)
    if done.already:
        return {"stream": stream.name, "skipped": "already loaded"}
    observe.note_window(stream.name, done.loaded, done.quarantined, time.monotonic() - begun, done.sent)
    log.info("window.loaded", stream=stream.name, rows=done.loaded, quarantined=done.quarantined, days=done.days)
    result = {"stream": stream.name, "rows": done.loaded, "days": done.days}
    return {**result, "quarantined": done.quarantined} if done.quarantined else result


def _queue() -> str:
    """The queue by which the task under way came; empty outside a worker."""
    delivered = current_task.request.delivery_info if current_task else None
    return str((delivered or {}).get("routing_key") or "")


def _progress(store: WatermarkStore, run_id: str, stream: Stream) -> Any:
    so_far = 0

    def count(rows: int) -> None:
        nonlocal so_far
        so_far += rows
        show_progress(f"{so_far:,} rows of {stream.name}")
        if run_id:
            store.add_progress(run_id, stream, rows=rows)

    return count


def show_progress(told: str) -> None:
    """Says in Flower how far the task under way is, as its state and result. Nothing depends on its arrival.

    An event only, sent once: the result backend is patient, and a window must not wait for Redis to come back.
    """
    task = current_task
    if task and task.request.id and not task.request.called_directly:
        with suppress(Exception):
            task.send_event(PROGRESS_EVENT, retry=False, result=told)


@contextmanager
def _unnoted() -> Iterator[None]:
    try:
        yield
    except RetailMediaError as unnoted:
        # Usually the same server that failed the window. The next plan starts from what is committed anyway.
        log.warning("window.failure_not_noted", error=str(unnoted))


@app.task
def load_dimension(
    stream: str, run_id: str | None = None, accept_shrink: bool = False, **unknown: Any
) -> dict[str, Any]:
    """Reads a dimension whole and writes what changed. `accept_shrink` says, for this reading, that rows are gone on
    purpose, however many."""
    arguments.no_others("load_dimension", "stream, run_id and accept_shrink", unknown)
    chosen, run = arguments.dimension_stream(stream), arguments.run_id(run_id)
    return read_dimension(servers(), chosen, run, accept_shrink=arguments.flag("accept_shrink", accept_shrink))


def read_dimension(here: Servers, stream: Stream, run_id: str = "", *, accept_shrink: bool = False) -> dict[str, Any]:
    """`dimensions.load_dimension` under the dimension's lease; a failure goes to the ledger."""
    uuid = here.ledger.live([stream])[stream.target]
    with here.store.lease(f"dimension:{stream.name}", here.settings.lease_seconds) as held:
        if held is None:
            return {"stream": stream.name, "skipped": "another worker is loading it"}
        begun = time.monotonic()
        try:
            done = dimensions.load_dimension(
                here.source,
                here.sink,
                here.ledger,
                here.settings,
                stream,
                uuid=uuid,
                run_id=run_id,
                accept_shrink=accept_shrink,
            )
        except RetailMediaError as error:
            observe.note_failed_window(stream.name, type(error).__name__)
            with _unnoted():
                here.ledger.note_failed_reading(stream, uuid, run_id, str(error))
            raise
        finally:
            here.store.clear_flight(stream, uuid)
    observe.note_window(stream.name, done.loaded, done.quarantined, time.monotonic() - begun)
    if run_id:
        here.store.add_progress(run_id, stream, windows=1, rows=done.loaded)
    result = {"stream": stream.name, "rows": done.loaded}
    return {**result, "quarantined": done.quarantined} if done.quarantined else result
