"""Asks the workers for a run and follows it to its end. Loads nothing itself: a run goes on without its follower."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from celery import Celery
from celery.result import AsyncResult
from kombu.exceptions import KombuError
from kombu.exceptions import OperationalError as BrokerError

from worker.celery import Servers
from worker.errors import RetailMediaError, Superseded, Unreachable
from worker.ledger import Run
from worker.source import Horizon, Source
from worker.streams import Stream
from worker.watermarks import WatermarkStore
from worker.windows import ORIGIN, Window

PIPELINE = "worker.tasks.pipeline.run"
REFRESH = "worker.tasks.refresh.full_refresh"
STEPS = {PIPELINE: "worker.tasks.pipeline.step", REFRESH: "worker.tasks.refresh.step"}
QUEUE = {PIPELINE: "realtime", REFRESH: "backfill"}
SERVED = {PIPELINE: ("realtime", "backfill"), REFRESH: ("backfill",)}
"""Queues whose messages a run waits for."""

START_WORKERS = "`retailmedia up` starts the workers with everything they need"

POLL_SECONDS = 0.2
ASK_AGAIN_SECONDS = 5.0
"""A run that has not moved for so long is pushed once more: its message may be lost, and a second one does no harm."""

HORIZON_SECONDS = 1.0
SILENCE_SECONDS = 20.0
"""A run that has not moved for so long makes us look whether any worker is left."""


@dataclass(frozen=True, slots=True)
class StreamProgress:
    """One stream of a run. `rows` is what was there to do when the run began, None where it was not counted.

    `seconds` is when it last moved, from the beginning of the run; `done` that nothing is left to do.
    """

    stream: Stream
    rows: int | None = None
    rows_done: int = 0
    windows_done: int = 0
    seconds: float = 0.0
    done: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """A run as it was last seen. `run` is None until a worker has taken it up; `held_by` says who makes it wait."""

    run_id: str
    run: Run | None
    streams: tuple[StreamProgress, ...]
    seconds: float
    held_by: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.run is not None and self.run.state != "running"


def answering(app: Celery[Any], seconds: float = 1.0) -> dict[str, set[str]]:
    """The workers that answer within that time, each with the queues it serves. Raises `Unreachable`."""
    try:
        found = app.control.inspect(timeout=seconds).active_queues() or {}
    except (KombuError, BrokerError, OSError) as error:
        raise Unreachable(f"The broker cannot be reached: {error}.") from None
    return {node: _names(queues) for node, queues in found.items()}


def _names(queues: object) -> set[str]:
    """The names of the queues a worker says it serves: an answer that came by the broker is input."""
    told = [queue.get("name") for queue in queues if isinstance(queue, dict)] if isinstance(queues, list) else []
    return {name for name in told if isinstance(name, str)}


def require_workers(app: Celery[Any], store: WatermarkStore, task: str) -> None:
    """Raises `Unreachable` unless somebody serves every queue the task needs. A busy machine is asked three times."""
    store.ping()
    lacking: list[str] = list(SERVED[task])
    found: dict[str, set[str]] = {}
    for seconds in (0.7, 1.5, 3.0):
        found = answering(app, seconds)
        served = set().union(*found.values())
        lacking = [queue for queue in SERVED[task] if queue not in served]
        if not lacking:
            return
    if not found:
        raise Unreachable(f"No worker answers, so nothing would be synced; {START_WORKERS}.")
    raise Unreachable(f"No worker serves the queue {' and the queue '.join(lacking)}; {START_WORKERS}.")


def ask(app: Celery[Any], task: str, run_id: str, streams: Sequence[str], *, metrics_update: bool) -> AsyncResult[Any]:
    """Sends the message that starts the run. A second one with the same id changes nothing."""
    kwargs = {"streams": list(streams), "metrics_update": metrics_update, "run_id": run_id}
    return _send(app, task, kwargs, QUEUE[task])


def _send(app: Celery[Any], task: str, kwargs: dict[str, Any], queue: str) -> AsyncResult[Any]:
    try:
        return app.send_task(task, kwargs=kwargs, queue=queue)
    except (KombuError, BrokerError, OSError) as error:
        raise Unreachable(f"The broker did not take the message: {error}.") from None


def follow(
    here: Servers,
    app: Celery[Any],
    task: str,
    run_id: str,
    streams: Sequence[Stream],
    *,
    metrics_update: bool,
    timeout: float | None = None,
) -> Iterator[Progress]:
    """Starts the run and yields what is seen of it, several times a second; the last one has `ended`.

    Raises `Unreachable` where no worker is left, `RetailMediaError` after `timeout` seconds; the run goes on then.
    """
    targets = here.ledger.live(streams)
    # Ticks load windows of the same rows meanwhile. Rows are done whoever loaded them, so the ledger is asked too.
    before = here.ledger.totals(targets.values()) if task == PIPELINE else None
    to_do = _count(here, streams, targets, anew=task == REFRESH)
    began = time.monotonic()
    asked = ask(app, task, run_id, [stream.name for stream in streams], metrics_update=metrics_update)
    seen = Progress(run_id, None, tuple(StreamProgress(stream) for stream in streams), 0.0)
    moved_at = pushed_at = looked_at = began
    while True:
        run = here.ledger.run(run_id)
        counts = here.store.progress(run_id)
        whole = dict(to_do)
        now = time.monotonic()
        if before is not None:
            after = here.ledger.totals(targets.values())
            for name, (rows, _, _) in after.items():
                loaded = rows - before.get(name, (0, 0, None))[0]
                if name in whole:
                    counts[f"{name}:rows_done"] = max(counts.get(f"{name}:rows_done", 0), loaded)
        ended = run is not None and run.state == "succeeded"
        progressed = tuple(_progressed(entry, whole, counts, now - began, ended) for entry in seen.streams)
        if run is None:
            _raise_refusal(asked)
        if progressed != seen.streams or run != seen.run:
            moved_at = now
        held_by = seen.held_by
        if run is not None and run.state == "running" and now - looked_at >= HORIZON_SECONDS:
            looked_at = now
            held_by = holding(here.source.horizon(), run)
        seen = Progress(run_id, run, progressed, now - began, "" if ended else held_by)
        yield seen
        if seen.ended:
            return
        if timeout is not None and now - began >= timeout:
            raise RetailMediaError(
                f"Run {run_id} has not ended after {timeout:g} s; it goes on, see `retailmedia status`."
            )
        if now - max(moved_at, pushed_at) >= ASK_AGAIN_SECONDS:
            pushed_at = now
            if run is None:
                asked = ask(app, task, run_id, [stream.name for stream in streams], metrics_update=metrics_update)
            else:
                _send(app, STEPS[task], {"run_id": run_id}, QUEUE[task])
            if now - moved_at >= SILENCE_SECONDS and not answering(app, 3.0):
                raise Unreachable(f"No worker answers any more; run {run_id} goes on once one does. {START_WORKERS}.")
        time.sleep(POLL_SECONDS)


def _count(here: Servers, streams: Sequence[Stream], targets: Mapping[str, UUID], *, anew: bool) -> Mapping[str, int]:
    """Rows there are to load by stream, filled in as they are counted; a stream without any is left out.

    Counted here, where somebody looks at them, and in the background: workers have better things to do.
    """
    found: dict[str, int] = {}
    events = [stream for stream in streams if stream.kind == "events"]
    coverage = {} if anew else here.ledger.coverage(events, dict(targets))
    begins = {stream.name: ORIGIN if anew else coverage[stream.name].watermark for stream in events}

    def count() -> None:
        with suppress(RetailMediaError), Source(here.settings) as source:
            now = source.now()
            for stream in events:
                if begins[stream.name] < now:
                    found[stream.name] = source.count(stream, Window(begins[stream.name], now))

    threading.Thread(target=count, name="counting", daemon=True).start()
    return found


def _progressed(
    entry: StreamProgress, whole: Mapping[str, int], counts: Mapping[str, int], seconds: float, ended: bool
) -> StreamProgress:
    name = entry.stream.name
    rows = whole.get(name, entry.rows)
    rows_done = counts.get(f"{name}:rows_done", 0)
    windows = counts.get(f"{name}:windows_done", 0)
    # A window that was tried again has counted its rows twice.
    rows_done = min(rows_done, rows) if rows is not None else rows_done
    done = ended or (rows is not None and rows_done >= rows > 0) or (rows is None and windows > 0)
    moved = (rows_done, windows) != (entry.rows_done, entry.windows_done)
    if moved:
        return StreamProgress(entry.stream, rows, rows_done, windows, seconds, done)
    return replace(entry, rows=rows, done=done)


def _raise_refusal(asked: AsyncResult[Any]) -> None:
    """Raises what the worker said if it refused the run."""
    if asked.state != "FAILURE":
        return
    error = asked.result
    if isinstance(error, RetailMediaError):
        raise error
    raise RetailMediaError(f"The worker could not start the run: {type(error).__name__}: {error}.")


def holding(horizon: Horizon, run: Run) -> str:
    """Who makes this run wait by holding the horizon back, for people; empty if nobody does."""
    if horizon.at is not None and horizon.at >= run.until:
        return ""
    for holder in horizon.holders:
        if holder.prepared or holder.since <= run.until:
            what = "prepared transaction" if holder.prepared else "transaction"
            told = f" ({holder.application})" if holder.application else ""
            who = holder.who.removeprefix("prepared ")
            return f"the {what} of {who}, user {holder.user}{told}, open for {holder.age.total_seconds():.0f} s"
    return ""


def require_success(last: Progress | None) -> Progress:
    """The run as it was last seen, succeeded. Raises `Superseded` or `RetailMediaError` with what the ledger says."""
    if last is None or last.run is None:
        raise RetailMediaError("The run never began.")
    run = last.run
    if run.state == "superseded":
        raise Superseded(f"Run {run.run_id} was superseded: {run.message}")
    if run.state != "succeeded":
        raise RetailMediaError(f"Run {run.run_id} {run.state}: {run.message or 'no reason was noted.'}")
    return last
