"""Comparisons of events in PostgreSQL and ClickHouse: recent days every hour, all days in turn, and by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from typing import Any
from uuid import UUID

import structlog

from worker import calendars, metrics, pipeline, reconcile, replay
from worker.celery import Servers, app, servers
from worker.errors import BadInput
from worker.ledger import Ledger
from worker.reconcile import Result
from worker.replay import Replay
from worker.streams import EVENT_STREAMS, Stream
from worker.tasks import arguments
from worker.windows import Window, to_micros

log = structlog.get_logger()

LEASE_SECONDS = 60
"""Held, and renewed, while a stream is compared: a second comparison at once would only cost time."""

ABANDONED_SECONDS = 86_400
"""Age from which a table of a replay belongs to nobody. By hand a replay may take hours."""


def compare(
    here: Servers, stream: Stream, within: Window = reconcile.EVER, *, heal: bool, sealed: bool = False
) -> Result:
    """Compares one stream, and where rows were mended rebuilds the metrics of their days and writes down the end.

    `sealed`: a person wants events taken away also from days that have a seal.
    """
    if heal:
        _take_up_unfinished(here)
    run_id = pipeline.new_run_id(to_micros(here.source.now()))
    result = reconcile.reconcile(
        here.source, here.sink, here.ledger, here.settings, stream, within, heal=heal, run_id=run_id, sealed=sealed
    )
    if result.rebuild:
        metrics.rebuild_all(here.sink, here.settings, sorted(result.rebuild))
        reconcile.conclude(here.sink, here.ledger, here.settings, run_id, result)
    return result


def _take_up_unfinished(here: Servers) -> None:
    """Rebuilds the days of what was begun by somebody who died before he had rebuilt them."""
    mending, replayed = reconcile.unfinished_days(here.sink), replay.unfinished_days(here.sink)
    days = sorted({*mending, *replayed})
    if days:
        here.ledger.mark_days(days)
        metrics.rebuild_all(here.sink, here.settings, days)
        reconcile.finish_unfinished(here.sink, mending)
        if replayed:
            replay.finish_unfinished(here.sink)
        log.warning("reconcile.taken_up", days=len(days))


class _Aside(Ledger):
    """The ledger for rows loaded into a table nobody reads: no day changes by them."""

    def mark_days(self, days: Iterable[date], again: Iterable[date] = ()) -> None:
        """Marks none."""


def replay_window(here: Servers, stream: Stream, window: Window, *, dry_run: bool, sealed: bool = False) -> Replay:
    """Reads a window of a stream again; unless `dry_run`, brings over what differs and rebuilds the days it touches.

    `sealed`: a person wants events taken away also from days that have a seal.
    """
    run_id = pipeline.new_run_id(to_micros(here.source.now()))
    aside = _Aside(here.sink)

    def load(stream: Stream, piece: Window, table: str, uuid: UUID) -> None:
        pipeline.load_window(
            here.source,
            here.sink,
            aside,
            here.settings,
            stream,
            piece,
            table=table,
            uuid=uuid,
            run_id=run_id,
            newer=True,
        )

    with replay.prepared(
        here.source, here.sink, here.ledger, here.settings, stream, window, load, sealed=sealed
    ) as ready:
        if dry_run:
            replay.note_compared(here.sink, run_id, ready.replay)
            return ready.replay
        done = replay.apply(here.sink, here.ledger, run_id, ready)
    if done.differs:
        metrics.rebuild_all(here.sink, here.settings, [effect.day for effect in done.effect])
    replay.conclude(here.sink, run_id, done)
    return done


def _leased(here: Servers, stream: Stream, windows: Sequence[Window], *, heal: bool) -> dict[str, Any]:
    with here.store.lease(f"reconcile:{stream.name}", LEASE_SECONDS) as held:
        if held is None:
            return {"skipped": "another worker compares it"}
        found = [compare(here, stream, within, heal=heal) for within in windows]
    return summary(found)


def summary(found: Sequence[Result]) -> dict[str, Any]:
    """What comparisons of a stream found, in few words."""
    defects = [defect for result in found for defect in result.defects]
    left = {
        "left_on_sealed_days": sum(result.withheld for result in found),
        "ahead_of_the_source": sum(result.ahead for result in found),
        "no_longer_kept_at_the_source": sum(result.no_longer_kept for result in found),
    }
    return {
        "days": sum(len(result.days) for result in found),
        "agrees": all(result.agrees for result in found),
        "found": len(defects),
        "mended": sum(defect.mended for defect in defects),
        **{name: count for name, count in left.items() if count},
    }


def runs_of_days(days: Sequence[date]) -> list[tuple[date, date]]:
    """First and last of each run of days without a gap."""
    found: list[tuple[date, date]] = []
    for day in sorted(set(days)):
        if found and day - found[-1][1] == timedelta(days=1):
            found[-1] = (found[-1][0], day)
        else:
            found.append((day, day))
    return found


@app.task
def recent(heal: bool = True, **unknown: Any) -> dict[str, Any]:
    """Compares the latest days, and what is dated later, of every event stream."""
    arguments.no_others("recent", "heal", unknown)
    mends = arguments.flag("heal", heal)
    here = servers()
    settings = here.settings
    calendar = calendars.in_force(here.sink, settings)
    today = calendar.day_of(here.ledger.now())
    within = reconcile.days_within(today - timedelta(days=settings.reconcile_recent_days - 1), None, calendar)
    return {stream.name: _leased(here, stream, [within], heal=mends) for stream in EVENT_STREAMS}


@app.task
def rotate(heal: bool = True, **unknown: Any) -> dict[str, Any]:
    """Compares, of every event stream, the days that were not compared for longest."""
    arguments.no_others("rotate", "heal", unknown)
    mends = arguments.flag("heal", heal)
    here = servers()
    for prefix in (replay.SHADOW, replay.PLAN):
        here.sink.drop_abandoned(prefix, ABANDONED_SECONDS)
    found = {}
    for stream in EVENT_STREAMS:
        days = reconcile.rotation(here.sink, here.settings, stream)
        calendar = calendars.in_force(here.sink, here.settings)
        windows = [reconcile.days_within(first, last, calendar) for first, last in runs_of_days(days)]
        found[stream.name] = _leased(here, stream, windows, heal=mends)
    return found


@app.task
def run(
    first: str | None = None,
    last: str | None = None,
    streams: list[str] | None = None,
    heal: bool = True,
    **unknown: Any,
) -> dict[str, Any]:
    """Compares these days (default all) of these event streams (default all)."""
    arguments.no_others("run", "first, last, streams and heal", unknown)
    mends = arguments.flag("heal", heal)
    chosen = [arguments.event_stream(name) for name in streams or []] or list(EVENT_STREAMS)
    here = servers()
    within = reconcile.days_within(
        _day("first", first), _day("last", last), calendars.in_force(here.sink, here.settings)
    )
    return {stream.name: _leased(here, stream, [within], heal=mends) for stream in chosen}


def _day(name: str, value: object) -> date | None:
    if value is None:
        return None
    try:
        return date.fromisoformat(str(value))
    except ValueError:
        raise BadInput(f"{name} is a day such as 2026-11-17, not {value!r:.80}.") from None
