"""Compares events in PostgreSQL and ClickHouse inside each database, finds the rows that differ, and mends them.

Both sides add up the same numbers by quarter of an hour, over rows inserted before one safe horizon: the watermark, up
to which everything is loaded. Where the sums differ, ranges of ids are compared, then smaller ones, then the rows of
those. What differs so far may only be moving: a row updated since, a deletion on its way. So every suspect is looked at
again, in ClickHouse first and then in a newer snapshot of PostgreSQL, and only what no later event can explain is a
defect. Ids are bisected, not campaigns: a row whose campaign is wrong stands in two campaigns and in one range of ids.
What mends a defect carries the version of the newer snapshot, which is greater than any stored before.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any, Literal

import numpy as np
import structlog

from worker import calendars, setbacks
from worker.calendar import Calendar
from worker.columns import EARLIEST, LATEST, Column
from worker.config import Settings
from worker.errors import BadInput
from worker.ledger import Ledger
from worker.mending import write_everywhere
from worker.retention import Sealed, aged_out, is_sealed, kept_since, sealed_days
from worker.sink import Sink, quoted
from worker.source import Source
from worker.sql import chunks, named
from worker.streams import EVENTS_TABLE, Stream
from worker.windows import ORIGIN, Window, format_instant, from_micros

log = structlog.get_logger()

Cause = Literal["missing", "extra", "stale", "duplicate"]
State = Literal["equal", "mended", "mending", "mismatch"]

CAUSES: tuple[Cause, ...] = ("missing", "extra", "stale", "duplicate")
EVER = Window(from_micros(EARLIEST), from_micros(LATEST))
"""Times at which an event that can be loaded can have happened."""

QUARTER_MICROS = 900_000_000
QUARTERS_TO_1970 = 2_454_432
"""Quarters of an hour from 1900, where places are counted from, to 1970."""

RANGE_BITS, PIECE_BITS = 12, 6
"""Ids of a range, and of a piece of one, as powers of two."""

SEARCHED = 200_000
"""Suspects looked for at most: many are only rows updated meanwhile, which the limit on mending must not count."""

AT_ONCE = 2000
"""Ranges named in one statement."""

CROWDED_AT_ONCE = 250
"""Ranges whose events are grouped in one statement: a million ids, so that memory stays small."""

ROWS_AT_ONCE = 5000
"""Suspects looked at in one snapshot."""

SAMPLE_ROWS = 20
MODULUS = 2**64
LARGE = {"max_query_size": 2**28}

Sums = tuple[int, int, int, int]
"""Rows, sum of ids, sum of campaigns, sum of the mixed numbers; the sums modulo 2^64."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event on one side; times in microseconds since 1970 UTC, `created_at` None where it cannot be loaded."""

    campaign_id: int
    created_at: int | None
    inserted_at: int


@dataclass(frozen=True, slots=True)
class Defect:
    """One event that differs, and why. `version` is of the snapshot that showed `source`.

    `ahead`: what is stored claims to be newer than that snapshot, which on one primary cannot be, so nothing written now
    would take its place. `withheld`: it would be taken from a day that has a seal, and nobody asked for that.
    """

    event_id: int
    cause: Cause
    source: Event | None
    target: Event | None
    version: int
    mended: bool = False
    ahead: bool = False
    withheld: bool = False

    def days(self, calendar: Calendar) -> set[date]:
        """Reporting days the event happened on, by either side."""
        times = [event.created_at for event in (self.source, self.target) if event is not None]
        return {calendar.day_of_micros(time) for time in times if time is not None}


@dataclass(frozen=True, slots=True)
class DayResult:
    """How a reporting day of a stream compares. Rows and hashes are as first seen, before anything was mended.

    They leave out events older than the source keeps; `no_longer_kept` is how many of those it has no more.
    """

    day: date
    source_rows: int
    target_rows: int
    source_hash: int
    target_hash: int
    state: State
    causes: dict[Cause, int]
    mended: int = 0
    no_longer_kept: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """How a stream compares. `complete` is whether every row that differs was found, `too_many` that none was mended
    because more differ than the limit allows. `rebuild` are days whose metrics must be rebuilt now.
    """

    stream: Stream
    horizon: datetime | None
    days: tuple[DayResult, ...]
    defects: tuple[Defect, ...]
    complete: bool = True
    too_many: bool = False
    rebuild: frozenset[date] = frozenset()

    @property
    def agrees(self) -> bool:
        """Whether both sides hold the same now."""
        return all(day.state in {"equal", "mended"} for day in self.days) and self.complete

    @property
    def ahead(self) -> int:
        """Events that differ and are stored in a version that the source has not reached."""
        return sum(defect.ahead for defect in self.defects)

    @property
    def withheld(self) -> int:
        """Events that the source no longer has and that were left, because their day has a seal."""
        return sum(defect.withheld for defect in self.defects)

    @property
    def no_longer_kept(self) -> int:
        """Events older than the source keeps, which it no longer has: no difference."""
        return sum(day.no_longer_kept for day in self.days)


@dataclass(frozen=True, slots=True)
class _Comparison:
    """One stream, times of events, and one horizon: what all statements of a comparison have in common."""

    source: Source
    sink: Sink
    stream: Stream
    within: Window
    parameters: dict[str, Any]
    kept: datetime | None = None

    def ours(self, name: str, doing: str, **more: Any) -> list[tuple[Any, ...]]:
        return self.source.in_snapshot(
            doing,
            "reconcile",
            f"source_{name}",
            self.stream,
            {"kept": self.kept or "-infinity", **self.parameters, **more},
            mixed=named("reconcile", "source_mixed"),
        )

    def theirs(self, name: str, doing: str, **more: Any) -> list[tuple[Any, ...]]:
        statement = named("reconcile", f"target_{name}").format(
            table=quoted(EVENTS_TABLE), mixed=named("reconcile", "target_mixed")
        )
        parameters = {"kept": self.kept or EVER.lo, **self.parameters, **more}
        return self.sink.query(doing, statement, parameters, settings=LARGE)

    def kept_from(self, lo: datetime) -> datetime:
        """That instant, or the one before which the source keeps no events."""
        return max(lo, self.kept or lo)


def days_within(first: date | None, last: date | None, calendar: Calendar) -> Window:
    """The instants of these reporting days, both inclusive; unbounded on the side that is None. Raises `BadInput`."""
    if first is not None and last is not None and last < first:
        raise BadInput(f"The last day, {last}, lies before the first, {first}.")
    try:
        lo = EVER.lo if first is None else max(EVER.lo, calendar.bounds(first).lo)
        hi = EVER.hi if last is None else min(EVER.hi, calendar.bounds(last).hi)
    except (OverflowError, ValueError):
        raise BadInput("Days lie between 1900-01-02 and 2299-12-29.") from None
    if lo == hi and first is not None and first == last:
        raise BadInput(f"There is no {first} in {calendar.zone}: its clocks left that day out.")
    if lo >= hi:
        raise BadInput("Days lie between 1900-01-02 and 2299-12-29.")
    return Window(lo, hi)


def sums(row: Sequence[Any]) -> Sums:
    """A row of counts and sums as both sides can be compared by."""
    return int(row[0]), int(row[1]) % MODULUS, int(row[2]) % MODULUS, int(row[3]) % MODULUS


def differing(ours: Iterable[Sequence[Any]], theirs: Iterable[Sequence[Any]]) -> list[int]:
    """Places at which the sums of two sides differ, in order."""
    left = {int(row[0]): sums(row[1:]) for row in ours}
    right = {int(row[0]): sums(row[1:]) for row in theirs}
    return sorted(place for place in left.keys() | right.keys() if left.get(place) != right.get(place))


def quarter_start(place: int) -> datetime:
    """When the quarter of an hour of that place begins, UTC."""
    return from_micros((place - QUARTERS_TO_1970) * QUARTER_MICROS)


def watermark(ledger: Ledger, stream: Stream) -> datetime:
    """The instant before which everything the source wrote is in the live table."""
    return ledger.coverage([stream], ledger.live([stream]))[stream.name].watermark


def held_ids(sink: Sink, stream: Stream) -> list[int]:
    """Events kept out of ClickHouse on purpose."""
    statement = named("reconcile", "held").format(table=quoted(EVENTS_TABLE))
    parameters = {"event_type": stream.event_type, "stream": stream.name}
    return [int(event_id) for (event_id,) in sink.query("looking for quarantined events", statement, parameters)]


def reconcile(
    source: Source,
    sink: Sink,
    ledger: Ledger,
    settings: Settings,
    stream: Stream,
    within: Window = EVER,
    *,
    heal: bool,
    run_id: str,
    sealed: bool = False,
) -> Result:
    """Compares a stream's events that happened `within`, mends what differs if `heal`, and writes down each day.

    Unless a person asked for it (`sealed`), no event is taken away from a day that has a seal. The metrics of the days in
    `Result.rebuild` are the caller's to rebuild; they are marked. Raises `TransientSource` and `TransientSink`; what was
    mended by then stays mended.
    """
    horizon = watermark(ledger, stream)
    if horizon <= ORIGIN:
        return Result(stream, None, (), ())
    calendar = calendars.in_force(sink, settings)
    held = held_ids(sink, stream)
    parameters = {"horizon": horizon, "lo": within.lo, "hi": within.hi, "held": held, "event_type": stream.event_type}
    limit = settings.reconcile_heal_limit
    with source.snapshot([stream]) as snapshot:
        kept = kept_since(settings, snapshot.taken_at)
        compared = _Comparison(source, sink, stream, within, parameters, kept)
        ours, ours_old = young_and_old(compared.ours("quarters", "adding up events"))
        theirs, theirs_old = young_and_old(compared.theirs("quarters", "adding up events"))
        places = differing(ours, theirs)
        summed = _summed(compared, calendar, ours, theirs)
        suspects, complete = _suspects(compared, places) if places else ([], True)
    suspects += _repeated(sink, stream, within, limit)
    defects = _judged(source, sink, ledger, settings, stream, sorted(set(suspects)), horizon, set(held), kept)
    asked = {day for place in places for day in _days_of_quarter(calendar, place)}
    defects = [defect for defect in defects if _inside(defect, within)]
    if not sealed and any(defect.cause == "extra" for defect in defects):
        defects = _without_sealed(defects, sealed_days(sink))
    able = [defect for defect in defects if not defect.ahead and not defect.withheld]
    too_many = len(able) > limit or not complete
    rebuild: set[date] = set()
    gone = _no_longer_kept(ours_old, theirs_old, calendar)
    results = _day_results(*summed, defects, calendar, complete=complete, doubtful=asked, gone=gone)
    if heal and able and not too_many:
        rebuild = {day for defect in able for day in defect.days(calendar)}
        _save(ledger, stream, run_id, horizon, results, defects, calendar, state="mending")
        defects = _mended(source, sink, ledger, settings, stream, defects, horizon, set(held), rebuild, kept)
        results = _day_results(*summed, defects, calendar, complete=complete, doubtful=asked, gone=gone)
    result = Result(stream, horizon, tuple(results), tuple(defects), complete, heal and too_many, frozenset(rebuild))
    if not rebuild:
        _save(ledger, stream, run_id, horizon, results, defects, calendar)
    log.info("reconciled", stream=stream.name, days=len(results), defects=len(defects), agrees=result.agrees)
    if result.ahead:
        log.error("reconcile.ahead_of_the_source", stream=stream.name, events=result.ahead)
    if result.withheld:
        log.warning("reconcile.left_on_sealed_days", stream=stream.name, events=result.withheld)
    return result


def conclude(sink: Sink, ledger: Ledger, settings: Settings, run_id: str, result: Result) -> None:
    """Writes down how a comparison that mended something ended; call it once the metrics of its days are rebuilt."""
    if result.rebuild and result.horizon is not None:
        calendar = calendars.in_force(sink, settings)
        _save(ledger, result.stream, run_id, result.horizon, result.days, result.defects, calendar)


def unfinished_days(sink: Sink) -> list[date]:
    """Days that were being mended by somebody who did not live to say that their metrics were rebuilt."""
    return [day for (day,) in sink.named("reconcile", "unfinished")]


def finish_unfinished(sink: Sink, days: Sequence[date]) -> None:
    """Closes those; call it once their metrics are rebuilt. They are compared again in their turn."""
    if days:
        sink.command("closing", named("reconcile", "finish_unfinished"), {"days": tuple(days)})


def rotation(sink: Sink, settings: Settings, stream: Stream) -> list[date]:
    """The days with events that were not compared for longest, so many as one turn takes."""
    statement = named("reconcile", "hours_held").format(table=quoted(EVENTS_TABLE))
    calendar = calendars.in_force(sink, settings)
    hours = sink.query("listing days", statement, {"event_type": stream.event_type})
    days = {calendar.day_of_micros(at) for ends in hours for at in ends}
    looked: dict[date, datetime] = dict(sink.named("reconcile", "last_looks", {"stream": stream.name}))
    never = datetime.min.replace(tzinfo=ORIGIN.tzinfo)
    return sorted(days, key=lambda day: (looked.get(day, never), day))[: settings.reconcile_rotation_days]


def young_and_old(rows: Iterable[Sequence[Any]]) -> tuple[list[Sequence[Any]], list[Sequence[Any]]]:
    """Quarters of an hour of events the source keeps, and of older ones."""
    both: tuple[list[Sequence[Any]], list[Sequence[Any]]] = ([], [])
    for *row, old in rows:
        both[bool(old)].append(row)
    return both


def _without_sealed(defects: Sequence[Defect], sealed: Sealed) -> list[Defect]:
    """The defects, with those withheld that would take an event from a day that has a seal."""
    return [
        replace(
            defect,
            withheld=defect.cause == "extra"
            and defect.target is not None
            and defect.target.created_at is not None
            and is_sealed(sealed, defect.target.created_at),
        )
        for defect in defects
    ]


def _inside(defect: Defect, within: Window) -> bool:
    times = [event.created_at for event in (defect.source, defect.target) if event is not None]
    return any(time is not None and within.lo <= from_micros(time) < within.hi for time in times)


def _suspects(compared: _Comparison, places: Sequence[int]) -> tuple[list[int], bool]:
    """Ids of events that differ in these quarters, and whether all were looked for, in the open snapshot."""
    edges = [quarter_start(place) for place in (places[0], places[-1] + 1)]
    # Only where the quarters lie is read.
    narrow = {"lo": compared.kept_from(max(compared.within.lo, edges[0])), "hi": min(compared.within.hi, edges[1])}
    which = {**narrow, "places": list(places), "shift": RANGE_BITS}
    doing = "comparing ranges of ids"
    ranges = differing(compared.ours("ranges", doing, **which), compared.theirs("ranges", doing, **which))
    suspects: list[int] = []
    for some in chunks(ranges, AT_ONCE):
        pieces = _pieces(compared, some)
        for few in chunks(pieces, AT_ONCE):
            suspects += _differing_events(compared, few)
            if len(suspects) > SEARCHED:
                # What ails the stream is known well enough by now; a replay mends it.
                return suspects, False
    return suspects, True


def _spans(places: Sequence[int], bits: int) -> dict[str, Any]:
    begins = [place << bits for place in places]
    return {
        "begins": begins,
        "beyond": (1 << bits) - 1,
        "first": begins[0],
        "last": begins[-1] + (1 << bits) - 1,
        "above": bits,
        "places": list(places),
    }


def _pieces(compared: _Comparison, ranges: Sequence[int]) -> list[int]:
    which = {**_spans(ranges, RANGE_BITS), "shift": PIECE_BITS, "lo": compared.kept_from(compared.within.lo)}
    doing = "comparing pieces of ranges"
    return differing(compared.ours("pieces", doing, **which), compared.theirs("pieces", doing, **which))


def _differing_events(compared: _Comparison, pieces: Sequence[int]) -> list[int]:
    which = {**_spans(pieces, PIECE_BITS), "lo": compared.kept_from(compared.within.lo)}
    doing = "comparing events"
    ours = {(int(event_id), int(mixed)) for event_id, mixed in compared.ours("events", doing, **which)}
    theirs = {(int(event_id), int(mixed)) for event_id, mixed in compared.theirs("events", doing, **which)}
    return sorted({event_id for event_id, _ in ours ^ theirs})


def _repeated(sink: Sink, stream: Stream, within: Window, limit: int) -> list[int]:
    """Events stored with different values in one version; at most one more than `limit`."""
    parameters = {"event_type": stream.event_type, "lo": within.lo, "hi": within.hi}

    def found(name: str, **more: Any) -> list[int]:
        statement = named("reconcile", name).format(table=quoted(EVENTS_TABLE))
        rows = sink.query("looking for events stored in two ways", statement, {**parameters, **more}, settings=LARGE)
        return [int(value) for (value,) in rows]

    result: list[int] = []
    for some in chunks(found("crowded", shift=RANGE_BITS), CROWDED_AT_ONCE):
        result += found("repeated", **_spans(some, RANGE_BITS), limit=limit + 1 - len(result))
        if len(result) > limit:
            break
    return result


def _judged(
    source: Source,
    sink: Sink,
    ledger: Ledger,
    settings: Settings,
    stream: Stream,
    suspects: Sequence[int],
    horizon: datetime,
    held: set[int],
    kept: datetime | None = None,
) -> list[Defect]:
    """Those suspects that are defects, whatever is written meanwhile. Of those that happened or were written before
    `kept` nothing is said that the source no longer has.

    ClickHouse is read first. What it holds then was read from snapshots older than the one taken next; and what that
    one shows with `inserted_at` before the horizon was loaded before ClickHouse was read.
    """
    defects: list[Defect] = []
    live = ledger.live([stream]).values()
    for ids in chunks(suspects, ROWS_AT_ONCE):
        versions, theirs = target_state(sink, stream, ids)
        with setbacks.reading(source, ledger, settings, [stream], live, newer=True) as read:
            version = read.version
            ours = source_state(source, stream, ids)
        for event_id in ids:
            newest, variants = versions.get(event_id, (0, 0))
            mine, other = ours.get(event_id), theirs.get(event_id)
            if mine is None and other is not None and aged_out(other.created_at, other.inserted_at, kept):
                continue
            cause = verdict(mine, other, variants, horizon, held=event_id in held)
            if cause is not None:
                defects.append(Defect(event_id, cause, mine, other, version, ahead=newest >= version))
    return defects


def target_state(sink: Sink, stream: Stream, ids: Sequence[int]) -> tuple[dict[int, tuple[int, int]], dict[int, Event]]:
    """Of these events in ClickHouse, the newest stored version with how many different rows have it, and what readers
    see."""
    parameters = {
        "event_type": stream.event_type,
        "first": min(ids),
        "last": max(ids),
        "ids": tuple(ids),
    }

    def rows(name: str) -> list[tuple[Any, ...]]:
        statement = named("reconcile", name).format(table=quoted(EVENTS_TABLE))
        return sink.query("looking at suspects", statement, parameters, settings=LARGE)

    versions = {event_id: (version, variants) for event_id, version, variants in rows("target_versions")}
    return versions, {event_id: Event(*row) for event_id, *row in rows("target_rows")}


def source_state(source: Source, stream: Stream, ids: Sequence[int]) -> dict[int, Event]:
    """These events in PostgreSQL, in the open snapshot."""
    parameters = {"ids": list(ids), "lo": EVER.lo, "hi": EVER.hi}
    rows = source.in_snapshot("looking at suspects", "reconcile", "source_rows", stream, parameters)
    return {event_id: Event(*row) for event_id, *row in rows}


def verdict(
    source: Event | None, target: Event | None, variants: int, horizon: datetime, *, held: bool
) -> Cause | None:
    """Why these two differ, or None where they agree or only something on its way keeps them apart.

    `source` was read after `target`. `variants` is how many different rows have the newest stored version: of two or
    more, readers see one today and another after a merge. The same row twice is one to everybody.
    """
    if source is None:
        # Deleted after it was loaded; or it never was there.
        return None if target is None else "extra"
    if from_micros(source.inserted_at) >= horizon:
        # Written after the horizon: still to be loaded, or just loaded.
        return None
    if target is None:
        return None if held or source.created_at is None else "missing"
    if variants > 1:
        return "duplicate"
    same = (source.campaign_id, source.created_at) == (target.campaign_id, target.created_at)
    return None if same else "stale"


def _mended(
    source: Source,
    sink: Sink,
    ledger: Ledger,
    settings: Settings,
    stream: Stream,
    defects: Sequence[Defect],
    horizon: datetime,
    held: set[int],
    days: set[date],
    kept: datetime | None,
) -> list[Defect]:
    """The defects, each with whether it is gone now. Marks the days before and after."""
    able = [defect for defect in defects if mendable(stream, defect)]
    ledger.mark_days(days)
    write(sink, stream, able)
    ledger.mark_days(days)
    ids = [defect.event_id for defect in defects]
    left = {d.event_id for d in _judged(source, sink, ledger, settings, stream, ids, horizon, held, kept)}
    return [replace(defect, mended=defect.event_id not in left) for defect in defects]


def mendable(stream: Stream, defect: Defect) -> bool:
    """Whether the row can be written here. Others take the way of a window, by a replay.

    Those are rows with further columns, and such as would go to quarantine.
    """
    if defect.ahead or defect.withheld:
        return False
    return defect.source is None or (not stream.extra and defect.source.created_at is not None)


def write(sink: Sink, stream: Stream, defects: Sequence[Defect]) -> None:
    """Writes what the source holds, or a tombstone where it holds nothing, wherever events are or will be read."""
    rows = [(defect, defect.source or defect.target) for defect in defects]
    events = [(defect, event) for defect, event in rows if event is not None]
    if not events:
        return

    def column(kind: str, values: Iterable[int], dtype: Any) -> Column:
        return Column(kind, np.fromiter(values, dtype, len(events)))

    gone = [defect.source is None for defect, _ in events]
    columns = {
        "event_type": column("Enum8", (stream.event_code for _ in events), np.int8),
        "event_id": column("Int64", (defect.event_id for defect, _ in events), np.int64),
        "campaign_id": column(
            "Int64", (0 if dead else e.campaign_id for dead, (_, e) in zip(gone, events, strict=True)), np.int64
        ),
        "created_at": column(
            "DateTime64(6)",
            (0 if dead else e.created_at or 0 for dead, (_, e) in zip(gone, events, strict=True)),
            np.int64,
        ),
        "inserted_at": column("DateTime64(6)", (event.inserted_at for _, event in events), np.int64),
        "_version": column("UInt64", (defect.version for defect, _ in events), np.uint64),
        "_deleted": column("UInt8", gone, np.uint8),
    }
    token = f"reconcile/{secrets.token_hex(16)}"

    def insert(table: str) -> None:
        sink.insert_columns(table, columns, token=token)

    write_everywhere(sink, insert)


def _day_results(
    ours: dict[date, Sums],
    theirs: dict[date, Sums],
    defects: Sequence[Defect],
    calendar: Calendar,
    *,
    complete: bool,
    doubtful: set[date],
    gone: Counter[date],
) -> list[DayResult]:
    causes: dict[date, Counter[Cause]] = {}
    mended: Counter[date] = Counter()
    open_days: set[date] = set()
    for defect in defects:
        for day in defect.days(calendar):
            causes.setdefault(day, Counter())[defect.cause] += 1
            mended[day] += defect.mended
            if not defect.mended:
                open_days.add(day)
    result = []
    for day in sorted(ours.keys() | theirs.keys() | causes.keys() | gone.keys()):
        mine, other = ours.get(day, (0, 0, 0, 0)), theirs.get(day, (0, 0, 0, 0))
        state: State = "equal"
        if day in open_days or (not complete and day in doubtful):
            state = "mismatch"
        elif mended[day]:
            state = "mended"
        result.append(
            DayResult(
                day, mine[0], other[0], mine[3], other[3], state, dict(causes.get(day, {})), mended[day], gone[day]
            )
        )
    return result


def _no_longer_kept(
    ours: Sequence[Sequence[Any]], theirs: Sequence[Sequence[Any]], calendar: Calendar
) -> Counter[date]:
    """By day, how many old events are here that the source no longer has."""
    left, right = by_day(ours, calendar), by_day(theirs, calendar)
    return +Counter({day: found[0] - left.get(day, (0,))[0] for day, found in right.items()})


def by_day(quarters: Iterable[Sequence[Any]], calendar: Calendar) -> dict[date, Sums]:
    """Sums of quarters of an hour, added up by reporting day, each to the day in which it begins."""
    result: dict[date, Sums] = {}
    for row in quarters:
        day = calendar.day_of(quarter_start(int(row[0])))
        before, these = result.get(day, (0, 0, 0, 0)), sums(row[1:])
        result[day] = (
            before[0] + these[0],
            (before[1] + these[1]) % MODULUS,
            (before[2] + these[2]) % MODULUS,
            (before[3] + these[3]) % MODULUS,
        )
    return result


def _days_of_quarter(calendar: Calendar, place: int) -> set[date]:
    begin = (place - QUARTERS_TO_1970) * QUARTER_MICROS
    return {calendar.day_of_micros(begin), calendar.day_of_micros(begin + QUARTER_MICROS - 1)}


def _summed(
    compared: _Comparison, calendar: Calendar, ours: Sequence[Sequence[Any]], theirs: Sequence[Sequence[Any]]
) -> tuple[dict[date, Sums], dict[date, Sums]]:
    """Both sides by day. Days that are not made of whole quarters are added up once more, one by one."""
    found = by_day(ours, calendar), by_day(theirs, calendar)
    places = {int(row[0]) for row in (*ours, *theirs)}
    apart = {day for place in places for day in _days_of_quarter(calendar, place) if not calendar.in_quarters(day)}
    for day in sorted(apart):
        bounds = calendar.bounds(day)
        lo, hi = max(bounds.lo, compared.within.lo), min(bounds.hi, compared.within.hi)
        for side, ask in zip(found, (compared.ours, compared.theirs), strict=True):
            side.pop(day, None)
            rows = young_and_old(ask("quarters", "adding up a day", lo=lo, hi=hi))[0] if lo < hi else []
            if rows:
                side[day] = sums([sum(int(row[place]) for row in rows) for place in range(1, 5)])
    return found


def _save(
    ledger: Ledger,
    stream: Stream,
    run_id: str,
    horizon: datetime,
    results: Sequence[DayResult],
    defects: Sequence[Defect],
    calendar: Calendar,
    *,
    state: State | None = None,
) -> None:
    """Writes the days down. Those with `state` stand as such only where rows differ."""
    sample: dict[date, list[dict[str, Any]]] = {}
    for defect in defects:
        for day in defect.days(calendar):
            if len(sample.setdefault(day, [])) < SAMPLE_ROWS:
                sample[day].append(shown(defect))
    columns = (
        "run_id", "stream", "date_id", "horizon", "source_rows", "target_rows", "source_hash", "target_hash", "state",
        *CAUSES, "mended", "no_longer_kept", "sample",
    )  # fmt: skip
    rows = [
        (
            run_id, stream.name, found.day, horizon, found.source_rows, found.target_rows, found.source_hash,
            found.target_hash, state if state and found.causes else found.state,
            *(found.causes.get(cause, 0) for cause in CAUSES), found.mended, found.no_longer_kept,
            json.dumps(sample.get(found.day, [])),
        )
        for found in results
    ]  # fmt: skip
    ledger.save_reconciliation(columns, rows)


def shown(defect: Defect) -> dict[str, Any]:
    """A defect as JSON and people see it."""

    def side(event: Event | None) -> dict[str, Any] | None:
        if event is None:
            return None
        return {
            "campaign_id": event.campaign_id,
            "created_at": None if event.created_at is None else format_instant(from_micros(event.created_at)),
            "inserted_at": format_instant(from_micros(event.inserted_at)),
        }

    return {
        "event_id": defect.event_id,
        "cause": defect.cause,
        "mended": defect.mended,
        "ahead_of_the_source": defect.ahead,
        "left_on_a_sealed_day": defect.withheld,
        "source": side(defect.source),
        "target": side(defect.target),
    }
