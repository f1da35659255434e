"""Seals: what a final day held, written down so that anybody can later tell whether it still does.

A seal is made of what PostgreSQL and ClickHouse agree on: a day on which they differ is not sealed until they agree.
The hash of events is the one both databases compute alike, so a seal can be checked against either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from datetime import date, datetime
from decimal import Decimal
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import structlog

from worker import calendars, setbacks
from worker.calendar import Calendar, own
from worker.config import Settings
from worker.errors import RetailMediaError
from worker.ledger import Ledger
from worker.retention import kept_since
from worker.sink import Sink, quoted
from worker.source import Snapshot, Source
from worker.sql import named
from worker.streams import EVENT_STREAMS, EVENTS_TABLE, Stream
from worker.windows import format_instant, instant

log = structlog.get_logger()

DAYS_AT_ONCE = 93
"""Days sealed in one call; both sides are read once for all of them."""

PROGRAM = Path(__file__).parent
MODULUS = 2**64
QUARTER_MICROS = 900_000_000
QUARTERS_TO_1970 = 2_454_432


@dataclass(frozen=True, slots=True)
class Content:
    """A stream's events of a day: how many, smallest and greatest id (0 without any), and the hash of them."""

    rows: int = 0
    first_id: int = 0
    last_id: int = 0
    content_hash: int = 0

    def joined(self, rows: int, first_id: int, last_id: int, content_hash: int) -> Content:
        """These and some more."""
        first = min(self.first_id, first_id) if self.rows else first_id
        last = max(self.last_id, last_id) if self.rows else last_id
        return Content(self.rows + rows, first, last, (self.content_hash + content_hash) % MODULUS)


@dataclass(frozen=True, slots=True)
class Metrics:
    """A day's metrics: rows, a hash of them, spend and the pricing model they were computed by."""

    rows: int
    content_hash: int
    spend: Decimal
    pricing_model: str


@dataclass(frozen=True, slots=True)
class Seal:
    """A row of `day_seals`, column by column; times are UTC."""

    date_id: date
    number: int
    replaces: int
    streams: tuple[str, ...]
    rows: tuple[int, ...]
    first_ids: tuple[int, ...]
    last_ids: tuple[int, ...]
    content_hashes: tuple[int, ...]
    metrics_rows: int
    metrics_hash: int
    spend: Decimal
    pricing_model: str
    reporting_timezone: str
    source_system_id: int
    source_timeline: int
    source_snapshot: int
    complete_through: datetime
    code_version: str
    sealed_at: datetime
    looked_at: datetime

    def content(self, stream: str) -> Content:
        """What the seal says of a stream; nothing of one that was not synced then."""
        if stream not in self.streams:
            return Content()
        place = self.streams.index(stream)
        return Content(self.rows[place], self.first_ids[place], self.last_ids[place], self.content_hashes[place])

    def says_the_same(self, other: Seal) -> bool:
        """Whether both speak of equal content."""
        mine, theirs = astuple(self), astuple(other)
        names = [field.name for field in fields(self)]
        first, last = names.index("streams"), names.index("reporting_timezone")
        return mine[first : last + 1] == theirs[first : last + 1]


@dataclass(frozen=True, slots=True)
class Part:
    """One thing a seal says, and what is so now; `source` and `target` are None where that side does not know it."""

    name: str
    sealed: Any
    source: Any
    target: Any

    @property
    def holds(self) -> bool:
        """Whether both sides still say what was sealed."""
        return all(value is None or value == self.sealed for value in (self.source, self.target))


@dataclass(frozen=True, slots=True)
class Verdict:
    """A seal looked at again. `notes` are differences that change no figure."""

    seal: Seal
    parts: tuple[Part, ...]
    notes: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether the day is as it was sealed."""
        return all(part.holds for part in self.parts)


@dataclass(frozen=True, slots=True)
class _Look:
    """Both sides' events by day and stream, as of one snapshot of the source.

    Of events from before `kept`, which the source need not have any more, its side says what the target does; `unasked`
    are the days that have such.
    """

    snapshot: Snapshot
    version: int
    complete_through: datetime
    source: dict[tuple[date, str], Content]
    target: dict[tuple[date, str], Content]
    kept: datetime | None
    unasked: frozenset[date]


@cache
def code_version() -> str:
    """What names this program: a digest of its code and statements, the same wherever they are the same."""
    digest = sha256()
    for path in sorted(path for path in PROGRAM.rglob("*") if path.suffix in {".py", ".sql"}):
        digest.update(f"{path.relative_to(PROGRAM).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def by_day(quarters: Iterable[Sequence[Any]], calendar: Calendar) -> dict[date, Content]:
    """Sums of quarters of an hour (place, rows, sums of ids, of campaigns, of mixed numbers, first and last id, and
    whether of old events) by day, each to the day in which it begins.
    """
    result: dict[date, Content] = {}
    for place, rows, _, _, mixed, first, last, _ in quarters:
        day = calendar.day_of_micros((int(place) - QUARTERS_TO_1970) * QUARTER_MICROS)
        result[day] = result.get(day, Content()).joined(int(rows), int(first), int(last), int(mixed) % MODULUS)
    return result


def _look(
    source: Source, sink: Sink, ledger: Ledger, settings: Settings, days: Sequence[date], calendar: Calendar
) -> _Look:
    """Both sides' events of these days, each stream's below its watermark."""
    targets = ledger.live(EVENT_STREAMS)
    coverage = ledger.coverage(EVENT_STREAMS, targets)
    watermarks = {stream.name: coverage[stream.name].watermark for stream in EVENT_STREAMS}
    # A day that is not made of whole quarters of an hour is looked at by itself.
    together = [day for day in days if calendar.in_quarters(day)]
    looks = [(together, calendar.bounds(min(together)).lo, calendar.bounds(max(together)).hi)] if together else []
    looks += [([day], *calendar.bounds(day)) for day in days if not calendar.in_quarters(day)]
    ours: dict[tuple[date, str], Content] = {}
    theirs: dict[tuple[date, str], Content] = {}
    mixed = named("reconcile", "source_mixed")
    statement = named("reconcile", "target_quarters").format(
        table=quoted(EVENTS_TABLE), mixed=named("reconcile", "target_mixed")
    )
    doing = "adding up a day"
    unasked: set[date] = set()
    with setbacks.reading(source, ledger, settings, EVENT_STREAMS, targets.values()) as read:
        snapshot, number = read.snapshot, read.version
        kept = kept_since(settings, snapshot.taken_at)
        if kept is not None:
            unasked.update(day for day in days if calendar.bounds(day).lo < kept)
        for stream in EVENT_STREAMS:
            known = {"horizon": watermarks[stream.name], "event_type": stream.event_type, "held": _held(sink, stream)}
            for some, lo, hi in looks:
                parameters = {**known, "lo": lo, "hi": hi}
                asked = {"kept": kept or "-infinity", **parameters}
                mine = source.in_snapshot(doing, "reconcile", "source_quarters", stream, asked, mixed=mixed)
                rows = sink.query(doing, statement, {"kept": kept or lo, **parameters})
                theirs.update(_contents(rows, stream, some, calendar))
                # What the source need not keep any more counts as it is here.
                old = [row for row in rows if row[-1]]
                unasked.update(day for day, _ in _contents(old, stream, some, calendar))
                young = [row for row in mine if not row[-1]]
                ours.update(_contents([*young, *old], stream, some, calendar))
    return _Look(snapshot, number, min(watermarks.values()), ours, theirs, kept, frozenset(unasked))


def _contents(
    quarters: Sequence[Sequence[Any]], stream: Stream, days: Sequence[date], calendar: Calendar
) -> dict[tuple[date, str], Content]:
    """What was found of these days; of one that was looked at by itself, all of it."""
    if calendar.in_quarters(days[0]):
        found = by_day(quarters, calendar)
        return {(day, stream.name): found[day] for day in days if day in found}
    content = Content()
    for _, rows, _, _, mixed, first, last, _ in quarters:
        content = content.joined(int(rows), int(first), int(last), int(mixed) % MODULUS)
    return {(days[0], stream.name): content} if quarters else {}


def _held(sink: Sink, stream: Stream) -> list[int]:
    statement = named("reconcile", "held").format(table=quoted(EVENTS_TABLE))
    parameters = {"event_type": stream.event_type, "stream": stream.name}
    return [int(event_id) for (event_id,) in sink.query("looking for quarantined events", statement, parameters)]


def metrics_of(sink: Sink, day: date) -> Metrics:
    """What `daily_campaign_performance` says of a day."""
    rows, content, spend, model = sink.named("seal", "metrics", {"day": day})[0]
    return Metrics(int(rows), int(content), Decimal(spend), model)


def last_seal(sink: Sink, day: date) -> Seal | None:
    """The newest seal of a day, or None."""
    found = sink.named("seal", "last", {"day": day})
    if not found:
        return None
    (number, replaces, streams, rows, first, last, hashes, *rest) = found[0]
    (metrics_rows, metrics_hash, spend, model, zone, system, timeline, snapshot, through, code, sealed, looked) = rest
    return Seal(
        day, number, replaces, tuple(streams), tuple(rows), tuple(first), tuple(last), tuple(hashes), metrics_rows,
        metrics_hash, spend, model, zone, system, timeline, snapshot, instant(through), code, instant(sealed),
        instant(looked),
    )  # fmt: skip


def due(sink: Sink, final_through: date, limit: int = DAYS_AT_ONCE) -> list[date]:
    """Final days that have no seal, or of which something changed since they were last looked at."""
    parameters = {"final_through": final_through, "limit": limit}
    return [day for (day,) in sink.named("seal", "due", parameters)]


def seal(
    source: Source, sink: Sink, ledger: Ledger, settings: Settings, days: Sequence[date]
) -> tuple[list[Seal], list[date]]:
    """Seals these final days, whose metrics are up to date. Returns new seals, and days on which the sides differ.

    Events older than the source keeps are sealed as they are here.

    A day that says what its last seal says keeps it; one that was restated gets a seal that names the one before.
    """
    if not days:
        return [], []
    # Before anything is read: what changes from here on will be looked at again.
    looked_at = ledger.now()
    look = _look(source, sink, ledger, settings, days, calendars.in_force(sink, settings))
    made: list[Seal] = []
    written: list[Seal] = []
    apart: list[date] = []
    for day in days:
        contents = {stream.name: look.source.get((day, stream.name), Content()) for stream in EVENT_STREAMS}
        if any(look.target.get((day, name), Content()) != content for name, content in contents.items()):
            apart.append(day)
            continue
        last = last_seal(sink, day)
        now = _sealed(day, contents, metrics_of(sink, day), look, settings, last, looked_at)
        if last is not None and now.says_the_same(last):
            written.append(replace(last, looked_at=looked_at))
            continue
        written.append(now)
        made.append(now)
    sink.insert_rows("day_seals", [field.name for field in fields(Seal)], [_row(each) for each in written])
    for day in apart:
        log.warning("seal.sides_differ", day=str(day))
    return made, apart


def _row(each: Seal) -> tuple[Any, ...]:
    return tuple(list(value) if isinstance(value, tuple) else value for value in astuple(each))


def _sealed(
    day: date,
    contents: dict[str, Content],
    metrics: Metrics,
    look: _Look,
    settings: Settings,
    last: Seal | None,
    at: datetime,
) -> Seal:
    before = last.number if last else 0
    return Seal(
        day,
        before + 1,
        before,
        tuple(contents),
        tuple(content.rows for content in contents.values()),
        tuple(content.first_id for content in contents.values()),
        tuple(content.last_id for content in contents.values()),
        tuple(content.content_hash for content in contents.values()),
        metrics.rows,
        metrics.content_hash,
        metrics.spend,
        metrics.pricing_model or settings.pricing_model,
        settings.reporting_timezone,
        look.snapshot.system_id,
        look.snapshot.timeline,
        look.version,
        look.complete_through,
        code_version(),
        at,
        at,
    )


def _content_parts(stream: Stream, sealed: Content, ours: Content | None, theirs: Content) -> list[Part]:
    """What a seal says of a stream's events and what is so now; of the source nothing where `ours` is None."""

    def part(name: str, told: Callable[[Content], Any]) -> Part:
        return Part(f"{stream.name}: {name}", told(sealed), None if ours is None else told(ours), told(theirs))

    return [
        part("rows", lambda content: content.rows),
        part("ids", lambda content: f"{content.first_id} to {content.last_id}"),
        part("content", lambda content: f"{content.content_hash:016x}"),
    ]


def verify(source: Source, sink: Sink, ledger: Ledger, settings: Settings, day: date) -> Verdict:
    """Computes anew, from both sides, what the day's seal says. Raises `RetailMediaError` for a day without a seal."""
    found = last_seal(sink, day)
    if found is None:
        raise RetailMediaError(
            f"{day} has no seal: a day is sealed after it is final, {settings.finality_hours} hours after its end."
        )
    # The events of the day as it was cut then: a setting that changed since is a part of its own.
    same = found.reporting_timezone == settings.reporting_timezone
    calendar = calendars.in_force(sink, settings) if same else own(found.reporting_timezone)
    look = _look(source, sink, ledger, settings, [day], calendar)
    parts: list[Part] = []
    for stream in EVENT_STREAMS:
        theirs = look.target.get((day, stream.name), Content())
        known = None if day in look.unasked else look.source.get((day, stream.name), Content())
        parts += _content_parts(stream, found.content(stream.name), known, theirs)
    metrics = metrics_of(sink, day)
    model = metrics.pricing_model or settings.pricing_model
    parts += [
        Part("metrics: rows", found.metrics_rows, None, metrics.rows),
        Part("metrics: content", f"{found.metrics_hash:016x}", None, f"{metrics.content_hash:016x}"),
        Part("metrics: spend", found.spend, None, metrics.spend),
        Part("pricing model", found.pricing_model, None, model),
        Part("time zone", found.reporting_timezone, None, settings.reporting_timezone),
    ]
    notes = []
    if day in look.unasked and look.kept is not None:
        notes.append(
            f"The source keeps events for {settings.source_keeps_days} days, so what it holds of the day, which began "
            f"before {format_instant(look.kept)}, was not compared."
        )
    if found.code_version != code_version():
        notes.append(f"Sealed by version {found.code_version}, looked at by version {code_version()}.")
    if (found.source_system_id, found.source_timeline) != (look.snapshot.system_id, look.snapshot.timeline):
        notes.append("The source is another server, or another timeline of it, than the one that was sealed.")
    return Verdict(found, tuple(parts), tuple(notes))
