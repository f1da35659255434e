"""What to read next: the safe horizon, minus what the ledger has, minus what is in flight, cut into windows.

Level-triggered: each call starts from the ledger, so a call too many, two at once, or one after any crash all end in
the same place. Hands out nothing itself.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from worker import calendars, setbacks
from worker.config import Settings
from worker.failing import backoff
from worker.idshape import CAUSE, SAMPLE, refusal, shape_of
from worker.ledger import Coverage, Failure, Ledger
from worker.source import Horizon, Source
from worker.streams import STREAMS, Stream
from worker.watermarks import Observation, Watermark, WatermarkStore, parse_watermark
from worker.windows import MICROSECOND, ORIGIN, Window, cut, gaps, merged, to_micros

log = structlog.get_logger()

CATCH_UP = 3
"""Windows of backlog that still go with fresh data. What an outage left behind is no more than that, the watermark waits
for it, and the other queue may be full of a backfill."""

SPLIT_AFTER = 3
"""Failures of one window after which its halves are tried instead."""

WHOLE = (CAUSE, calendars.OTHER_ZONE)
"""Parts of errors that every half would end with, too."""

HOPELESS = 1_000_000
"""Failures of a window that no other try can help."""

NOTED_SECONDS, DENSE_SECONDS = 60.0, 600.0
"""How often it is noted that a stream's ids cannot be loaded, and how long ids that can are taken for that."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Windows of one stream to hand out for the table `target_uuid`, and what was seen while planning.

    `fresh` holds rows inserted moments ago, `backlog` older ones; they go to queues of their own, so that a backfill
    never delays fresh data. A backlog of a few windows counts as fresh, unless one keeps failing.
    `complete_through`: every row inserted before it is in the table (or, for a dimension, was when last read).
    """

    stream: Stream
    target_uuid: UUID
    fresh: tuple[Window, ...]
    backlog: tuple[Window, ...]
    watermark: datetime
    horizon: Horizon
    complete_through: datetime
    waiting: tuple[Failure, ...] = ()

    @property
    def windows(self) -> tuple[Window, ...]:
        """All windows, in order of time."""
        return tuple(sorted((*self.backlog, *self.fresh)))


def publish_watermarks(
    ledger: Ledger, store: WatermarkStore, streams: Sequence[Stream], targets: dict[str, UUID]
) -> dict[str, Coverage]:
    """Computes watermarks from the ledger, checkpoints it where it grew long, and copies them to Redis.

    A copy in Redis that says more than the ledger is reported and replaced, never believed.
    """
    # Read first: whoever publishes between this and our own publishing has seen at least as new a ledger.
    seen = {stream.name: store.raw_watermark(stream) for stream in streams}
    generations = ledger.generations()
    coverage = ledger.coverage(streams, targets, generations)
    number = generations[-1].number if generations else 0
    for stream in streams:
        uuid = targets[stream.target]
        found = coverage[stream.name]
        copy = parse_watermark(seen[stream.name])
        if seen[stream.name] and copy is None:
            log.error("watermark.unreadable", stream=stream.name)
        elif copy and copy.target_uuid == uuid and copy.generation == number and copy.at > found.watermark:
            log.error(
                "watermark.ahead_of_ledger",
                stream=stream.name,
                redis=copy.at.isoformat(),
                ledger=found.watermark.isoformat(),
            )
        if generations and found.wants_checkpoint:
            ledger.checkpoint(stream, uuid, found.watermark, generations[-1])
        store.publish(stream, Watermark(found.watermark, uuid, number), seen[stream.name])
    return coverage


def plan(
    source: Source,
    ledger: Ledger,
    store: WatermarkStore,
    settings: Settings,
    streams: Sequence[Stream],
    *,
    targets: dict[str, UUID] | None = None,
    limit: int | None = None,
    until: datetime | None = None,
    since: datetime = ORIGIN,
) -> list[Plan]:
    """Plans the streams up to one safe horizon. Raises `HorizonUnsafe`, `SourceWentBack`, `Unreachable` and transient
    errors.

    `targets` names the tables to fill, the live ones by default. With `until`, a dimension is read once: when the
    horizon has passed that, and not if that is in place already. While the horizon is held by a prepared transaction
    no window is planned. What failed rests before it is tried again, and is in `Plan.waiting` meanwhile; failures before
    `since`, by ClickHouse's clock, do not count for that.
    """
    setbacks.refuse(ledger)
    uuids = ledger.live(streams) if targets is None else targets
    live = targets is None
    seen = [observed.seen_at for stream in streams if live and (observed := store.observation(stream))]
    if live:
        # Whoever finds Redis emptied brings back every stream's watermark, not only what it plans itself.
        others = [one for one in STREAMS.values() if one not in streams]
        forgotten = others if store.lacks_watermarks(STREAMS.values()) else []
        coverage = publish_watermarks(ledger, store, [*streams, *forgotten], {**ledger.live(forgotten), **uuids})
    else:
        coverage = ledger.coverage(streams, uuids)
    horizon = source.horizon()
    if live:
        latest = max((coverage[stream.name].watermark for stream in streams), default=ORIGIN)
        setbacks.require_clock(source, ledger, settings, horizon.taken_at, latest, max(seen, default=None))
    plans = []
    for stream in streams:
        uuid = uuids[stream.target]
        covered = coverage[stream.name]
        planned = (
            plan_dimension(ledger, stream, uuid, covered, horizon, store, until, since)
            if stream.kind == "dimension"
            else plan_events(source, ledger, store, settings, stream, uuid, covered, horizon, limit, since)
        )
        plans.append(planned)
        if live:
            store.observe(
                stream,
                Observation(horizon.at, planned.complete_through, horizon.taken_at, held_by(horizon, settings)),
            )
    return plans


def plan_dimension(
    ledger: Ledger,
    stream: Stream,
    uuid: UUID,
    covered: Coverage,
    horizon: Horizon,
    store: WatermarkStore,
    until: datetime | None,
    since: datetime = ORIGIN,
) -> Plan:
    """A dimension is one window, from the origin to the horizon: it is read whole."""
    watermark = covered.watermark
    ready = horizon.at is not None and (until is None or watermark < until <= horizon.at)
    windows: tuple[Window, ...] = ()
    waiting: tuple[Failure, ...] = ()
    if ready and horizon.at is not None and not store.in_flight(stream, uuid):
        waiting = tuple(failure for failure in ledger.failures(stream, uuid, watermark, since) if waits(failure))
        windows = () if waiting else (Window(ORIGIN, horizon.at),)
    return Plan(stream, uuid, windows, (), watermark, horizon, watermark, waiting)


def plan_events(
    source: Source,
    ledger: Ledger,
    store: WatermarkStore,
    settings: Settings,
    stream: Stream,
    uuid: UUID,
    covered: Coverage,
    horizon: Horizon,
    limit: int | None = None,
    since: datetime = ORIGIN,
) -> Plan:
    """Windows for what lies between the watermark and the horizon, is not committed, and is not in flight."""
    watermark = covered.watermark
    if horizon.at is None or horizon.at <= watermark:
        return Plan(stream, uuid, (), (), watermark, horizon, watermark)
    open_range = Window(watermark, horizon.at)
    first = source.first_row(stream, open_range)
    if first is None:
        # Nothing below the safe horizon can appear any more, so the emptiness just seen is for good.
        return Plan(stream, uuid, (), (), watermark, horizon, horizon.at)

    if not covered.windows:
        told = scattered(source, store, stream, uuid)
        if told:
            window = Window(ORIGIN, first + MICROSECOND)
            if store.once(f"scattered:{stream.name}:{uuid}", NOTED_SECONDS):
                ledger.note_failure(stream, uuid, window, "", told)
            hopeless = Failure(window, HOPELESS, horizon.taken_at, told, horizon.taken_at, recent=HOPELESS)
            return Plan(stream, uuid, (), (), watermark, horizon, watermark, (hopeless,))

    failures = {failure.window: failure for failure in ledger.failures(stream, uuid, watermark, since)}
    taken = [*covered.windows, *store.in_flight(stream, uuid)]
    waiting: list[Failure] = []
    division = max(watermark, horizon.at - timedelta(seconds=settings.fresh_seconds))
    if first >= division:
        # Only fresh rows: the emptiness before them is part of their window, not one of its own.
        division = watermark
    budget = settings.window_limit if limit is None else limit

    def windows(lo: datetime, hi: datetime, end: datetime) -> tuple[Window, ...]:
        if lo >= hi:
            return ()
        return tuple(cut_range(source, settings, stream, Window(lo, hi), taken, failures, waiting, budget, end))

    fresh = windows(division, horizon.at, horizon.at)
    backlog = windows(watermark, division, horizon.at)
    # What fails again and again may take its whole time limit each time.
    troubled = any(failure.count >= SPLIT_AFTER for failure in failures.values())
    if len(backlog) <= CATCH_UP and not troubled:
        fresh, backlog = (*backlog, *fresh), ()
    return Plan(stream, uuid, fresh, backlog, watermark, horizon, watermark, tuple(waiting))


def scattered(source: Source, store: WatermarkStore, stream: Stream, uuid: UUID) -> str:
    """Why a stream of which nothing is loaded yet cannot be, by its newest ids; empty where it can.

    What was found good is not looked at again for a while: its first windows are under way.
    """
    key = f"dense:{stream.name}:{uuid}"
    if store.happened(key):
        return ""
    shape = shape_of(source.newest_ids(stream, SAMPLE))
    told = refusal(stream.name, shape) if shape else ""
    if not told:
        store.once(key, DENSE_SECONDS)
    return told


def cut_range(
    source: Source,
    settings: Settings,
    stream: Stream,
    within: Window,
    taken: Sequence[Window],
    failures: dict[Window, Failure],
    waiting: list[Failure],
    budget: int,
    end: datetime,
) -> list[Window]:
    """Up to `budget` windows of about `window_rows` rows for what of `within` is not taken.

    A range without rows becomes a window too where something behind it waits for the watermark to get there; `end` is
    the horizon.
    """
    windows: list[Window] = []
    tried = innermost(failures.values())
    starts = [failure.window.lo for failure in tried]
    for gap in gaps(within, taken):
        # Those that begin in the gap; `again` leaves out what reaches beyond it.
        inside = tried[bisect_left(starts, gap.lo) : bisect_left(starts, gap.hi)]
        for piece in again(gap, inside, waiting):
            if len(windows) >= budget:
                return windows
            if piece in failures:
                windows.append(piece)
                continue
            if source.first_row(stream, piece) is None:
                waited_for = any(window.lo >= piece.hi for window in taken) or (
                    piece.hi < end and source.first_row(stream, Window(piece.hi, end)) is not None
                )
                if waited_for:
                    windows.append(piece)
                continue
            wanted = budget - len(windows)
            edges = source.boundaries(stream, piece, settings.window_rows, wanted)
            if len(edges) == wanted:
                piece = Window(piece.lo, edges[-1])
            windows.extend(cut(piece, edges)[:wanted])
    return windows


def innermost(failures: Iterable[Failure]) -> list[Failure]:
    """Failures of windows within which no other failed, in order of time: of windows that failed and whose halves failed
    too, the halves say more.

    In one sweep, because where every load fails for hours there are tens of thousands.
    """
    result: list[Failure] = []
    least: datetime | None = None
    # From the back, so that whatever lies within a window was seen before it.
    for failure in sorted(failures, key=lambda one: (one.window.lo, -to_micros(one.window.hi)), reverse=True):
        if least is None or least > failure.window.hi:
            result.append(failure)
            least = failure.window.hi
    return result[::-1]


def again(gap: Window, failures: Sequence[Failure], waiting: list[Failure]) -> list[Window]:
    """The gap, parted so that windows that failed before are tried by themselves, later each time, and then halved.

    `failures` are the innermost ones. A failed window whose time has not come is put on `waiting` and left out.
    """
    troubled = [failure for failure in failures if gap.lo <= failure.window.lo and failure.window.hi <= gap.hi]
    if not troubled:
        return [gap]
    result = gaps_or_nothing(gap, [failure.window for failure in troubled])
    for failure in troubled:
        split = failure.count >= SPLIT_AFTER and not any(cause in failure.error for cause in WHOLE)
        halves = failure.window.halves() if split else None
        if halves:
            result.extend(halves)
        elif waits(failure):
            waiting.append(failure)
        else:
            result.append(failure.window)
    return sorted(result)


def gaps_or_nothing(within: Window, taken: Sequence[Window]) -> list[Window]:
    """`gaps`, where taking everything leaves an empty list."""
    covered = merged(taken)
    if covered and covered[0].lo <= within.lo and covered[0].hi >= within.hi:
        return []
    return gaps(within, covered)


def waits(failure: Failure) -> bool:
    """Whether it is too early to try again what failed. What has not failed since it was asked for is tried at once."""
    return failure.recent > 0 and failure.now < failure.last + backoff(failure.recent)


def complete(plans: Sequence[Plan], until: datetime) -> bool:
    """Whether everything inserted before `until` is in place for every planned stream."""
    return all(planned.complete_through >= until for planned in plans)


def held_by(horizon: Horizon, settings: Settings) -> str:
    """Who holds the horizon back for longer than the alert limit, for people; empty if nobody does."""
    limit = timedelta(seconds=settings.horizon_alert_seconds)
    for holder in horizon.holders:
        if holder.prepared or holder.age >= limit:
            return f"{holder.who} of {holder.user}, open for {int(holder.age.total_seconds())} s"
    return ""
