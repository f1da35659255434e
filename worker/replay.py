"""Reads a window again into a table of its own, shows what differs from the live table, and brings that over.

Incremental loading goes on meanwhile. Rows are brought over with the version of their reading, which is greater than
that of everything stored before it, so whatever was loaded from a newer snapshot wins. An event is only taken away after
a newer snapshot was asked whether it is gone or has only moved out of the window; never one that is older than the
source keeps, and from a day that has a seal only if a person said so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import structlog

from worker import calendars, setbacks
from worker.config import Settings
from worker.errors import BadInput
from worker.ledger import Ledger
from worker.mending import write_everywhere
from worker.retention import is_sealed, kept_since, sealed_days
from worker.sink import Sink, quoted
from worker.source import Source
from worker.sql import chunks, named
from worker.streams import EVENTS_TABLE, Stream
from worker.windows import ORIGIN, Window, cut

log = structlog.get_logger()

SHADOW, PLAN = "replay_shadow_", "replay_plan_"
EARLIEST = datetime(1900, 1, 1, tzinfo=UTC)
"""Before every event that is loaded."""

IDS_AT_ONCE = 10_000
PIECES_AT_ONCE = 64
LARGE = {"max_query_size": 2**28}
BILLED = {"cpc": "click", "cpm": "impression", "cpi": "impression"}

Load = Callable[[Stream, Window, str, UUID], object]
"""Loads one window of a stream into the table of that name, known by that uuid, in a snapshot newer than all before."""


@dataclass(frozen=True, slots=True)
class DayEffect:
    """What a replay adds to (or takes from) a reporting day's events and spend."""

    day: date
    events: int
    spend: Decimal


@dataclass(frozen=True, slots=True)
class Replay:
    """What was read again, how it differed, and what that means for metrics. `applied` is whether it was brought over.

    Left alone: events older than the source keeps (`no_longer_kept`), those that would be taken from a day that has a
    seal (`withheld`), and those stored in a version that the source has not reached (`ahead`).
    """

    stream: Stream
    window: Window
    read: int
    missing: int
    extra: int
    stale: int
    effect: tuple[DayEffect, ...]
    applied: bool = False
    no_longer_kept: int = 0
    withheld: int = 0
    ahead: int = 0

    @property
    def differs(self) -> bool:
        """Whether anything differed."""
        return bool(self.missing or self.extra or self.stale)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A replay with its tables, which live as long as the context they were made in."""

    replay: Replay
    shadow: str
    plan: str
    gone: tuple[int, ...]
    version: int


def loaded_part(ledger: Ledger, stream: Stream, window: Window) -> Window:
    """The part of the window that was loaded before. Raises `BadInput` where none was: that is the pipeline's work."""
    watermark = ledger.coverage([stream], ledger.live([stream]))[stream.name].watermark
    if watermark <= max(window.lo, ORIGIN):
        raise BadInput(
            f"{stream.name} is loaded through {watermark.isoformat()}; there is nothing to replay after that."
        )
    return Window(window.lo, min(window.hi, watermark))


@contextmanager
def prepared(
    source: Source,
    sink: Sink,
    ledger: Ledger,
    settings: Settings,
    stream: Stream,
    window: Window,
    load: Load,
    *,
    sealed: bool = False,
) -> Iterator[Prepared]:
    """The window read again and compared; nothing is changed. Raises `BadInput` and what `load` raises.

    Unless `sealed`, no event is taken away from a day that has a seal.
    """
    window = loaded_part(ledger, stream, window)
    kept = kept_since(settings, source.now())
    with (
        sink.staging(SHADOW, named("replay", "create_shadow")) as shadow,
        sink.staging(PLAN, named("replay", "create_plan")) as plan,
    ):
        uuid = sink.uuid(shadow)
        for piece in _pieces(source, settings, stream, window):
            load(stream, piece, shadow, uuid)
        tables = {"shadow": quoted(shadow), "plan": quoted(plan), "live": quoted(EVENTS_TABLE)}
        parameters = {"event_type": stream.event_type, "lo": window.lo, "hi": window.hi, "since": kept or EARLIEST}
        sink.command("comparing a replay", named("replay", "plan").format(**tables), parameters, retry=False)
        newest = sink.query("reading versions", named("replay", "newest").format(**tables), parameters)[0][0]
        gone, withheld, version = _gone(source, sink, ledger, settings, stream, plan, sealed=sealed)
        ahead = 0
        if newest >= version:
            statement = named("replay", "ahead").format(**tables)
            ahead = int(sink.query("counting versions", statement, {**parameters, "version": version})[0][0])
            log.error("replay.ahead_of_the_source", stream=stream.name, events=ahead)
        counted: dict[str, int] = dict(sink.query("counting differences", named("replay", "causes").format(**tables)))
        read = sink.query("counting rows", f"SELECT count() FROM {tables['shadow']} FINAL")[0][0]  # noqa: S608
        found = Replay(
            stream,
            window,
            int(read),
            counted.get("missing", 0),
            counted.get("extra", 0),
            counted.get("stale", 0),
            _effect(sink, settings, stream, plan),
            no_longer_kept=counted.get("no longer kept", 0),
            withheld=withheld,
            ahead=ahead,
        )
        yield Prepared(found, shadow, plan, gone, version)


def _pieces(source: Source, settings: Settings, stream: Stream, window: Window) -> Iterator[Window]:
    """The window in pieces of about as many rows as windows have."""
    rest: Window | None = window
    while rest is not None:
        edges = source.boundaries(stream, rest, settings.window_rows, PIECES_AT_ONCE)
        pieces = cut(rest, edges)
        more = len(edges) == PIECES_AT_ONCE
        yield from pieces[:-1] if more else pieces
        rest = pieces[-1] if more else None


def _gone(
    source: Source, sink: Sink, ledger: Ledger, settings: Settings, stream: Stream, plan: str, *, sealed: bool
) -> tuple[tuple[int, ...], int, int]:
    """Events of the plan that the source no longer has, confirmed there; how many more those are that lie on days with a
    seal, unless `sealed`; and the version of the snapshot that said so."""
    rows = sink.query("listing suspects", named("replay", "suspects").format(plan=quoted(plan)))
    suspects = [int(event_id) for event_id, _ in rows]
    days = sealed_days(sink) if rows and not sealed else {}
    on_sealed = {int(event_id) for event_id, at in rows if is_sealed(days, at)} if days else set()
    gone: list[int] = []
    live = ledger.live([stream]).values()
    with setbacks.reading(source, ledger, settings, [stream], live, newer=True) as read:
        version = read.version
        for some in chunks(suspects, IDS_AT_ONCE):
            found = source.in_snapshot("looking for deleted rows", "replay", "present", stream, {"ids": some})
            there = {event_id for (event_id,) in found}
            gone += [event_id for event_id in some if event_id not in there]
    withheld = sum(event_id in on_sealed for event_id in gone)
    gone = [event_id for event_id in gone if event_id not in on_sealed]
    for some in chunks(gone, IDS_AT_ONCE):
        parameters = {"ids": tuple(some)}
        statement = named("replay", "confirm").format(plan=quoted(plan))
        sink.command("confirming deletions", statement, parameters, settings=LARGE, retry=False)
    return tuple(gone), withheld, version


def _effect(sink: Sink, settings: Settings, stream: Stream, plan: str) -> tuple[DayEffect, ...]:
    calendar = calendars.in_force(sink, settings)
    hours = sink.query("listing hours", named("replay", "hours_changed").format(plan=quoted(plan)))
    days = sorted({calendar.day_of_micros(at) for ends in hours for at in ends})
    if not days:
        return ()
    parameters: dict[str, Any] = {
        **calendars.cut(calendar, days),
        "divisor": 1000 if settings.pricing_model == "cpm" else 1,
    }
    statement = named("replay", "effect").format(plan=quoted(plan))
    billed = BILLED[settings.pricing_model] == stream.event_type
    return tuple(
        DayEffect(day, int(events), spend if billed else Decimal(0))
        for day, events, spend in sink.query("pricing differences", statement, parameters, settings=LARGE)
    )


def apply(sink: Sink, ledger: Ledger, run_id: str, ready: Prepared) -> Replay:
    """Brings the differences over, into shadows too, and marks their days; the caller rebuilds them and calls `conclude`."""
    found = ready.replay
    stream = found.stream
    days = [effect.day for effect in found.effect]
    _note(sink, run_id, found, "applying" if found.differs else "applied")
    if not found.differs:
        return replace(found, applied=True)
    ledger.mark_days(days)
    tables = {"shadow": quoted(ready.shadow), "plan": quoted(ready.plan)}
    names = ("event_type", "event_id", "campaign_id", "created_at", "inserted_at", "_deleted")
    columns = ", ".join(quoted(name) for name in (*names, *(extra.name for extra in stream.extra)))
    parameters = {"event_type": stream.event_type}

    # Not retried: what an unknown outcome left is seen and mended by doing the replay again.
    def bring_over(table: str) -> None:
        statement = named("replay", "apply").format(columns=columns, target=quoted(table), **tables)
        sink.command("applying a replay", statement, parameters, retry=False)
        bury = named("replay", "bury").format(target=quoted(table), **tables)
        for some in chunks(ready.gone, IDS_AT_ONCE):
            buried = {**parameters, "ids": tuple(some), "version": ready.version}
            sink.command("burying deleted events", bury, buried, settings=LARGE, retry=False)

    write_everywhere(sink, bring_over)
    ledger.mark_days(days)
    log.info("replayed", stream=stream.name, missing=found.missing, extra=found.extra, stale=found.stale)
    return replace(found, applied=True)


def note_compared(sink: Sink, run_id: str, found: Replay) -> None:
    """Writes down a replay that changed nothing."""
    _note(sink, run_id, found, "compared")


def conclude(sink: Sink, run_id: str, found: Replay) -> None:
    """Writes down that the replay is over; call it once the metrics of its days are rebuilt."""
    if found.differs:
        _note(sink, run_id, found, "applied")


def _note(sink: Sink, run_id: str, found: Replay, state: str) -> None:
    columns = ("run_id", "stream", "lo", "hi", "state", "missing", "extra", "stale", "days")
    days = [effect.day for effect in found.effect]
    lo, hi = found.window.lo, found.window.hi
    row = (run_id, found.stream.name, lo, hi, state, found.missing, found.extra, found.stale, days)
    sink.insert_rows("replays", columns, [row])


def unfinished_days(sink: Sink) -> list[date]:
    """Days that were being changed by a replay that did not live to say that their metrics were rebuilt."""
    return [day for (day,) in sink.named("replay", "unfinished")]


def finish_unfinished(sink: Sink) -> None:
    """Closes those; call it once their metrics are rebuilt."""
    sink.command("closing replays", named("replay", "finish_unfinished"), retry=False)
