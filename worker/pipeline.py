"""The job: loads a window of events from PostgreSQL into ClickHouse and commits it to the ledger.

A window is read in one snapshot, in chunks. Each chunk: rows that cannot be loaded are set aside, the days that older
versions of its events leave are noted, and the rest is inserted as one block under a token of its own. At the end
what ClickHouse holds is compared with what was read, the days are marked, and only then the window is committed.
Whatever dies in between leaves the window uncommitted, so it is read again, in a newer snapshot whose rows win.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from typing import Any
from uuid import UUID

import numpy as np
import structlog
from numpy.typing import NDArray

from worker import calendars, setbacks
from worker.calendar import Calendar
from worker.columns import EARLIEST, LATEST, Column, Refusals, multiplier, word_statement
from worker.config import Settings
from worker.errors import RefusedRows, ScatteredIds, SchemaMismatch, Superseded, TransientSource, VerificationFailed
from worker.idshape import IDS_A_PARTITION, refusal, shape_of
from worker.ledger import Ledger, dedup_token
from worker.rules import Marks, judge
from worker.sink import Sink, quoted
from worker.source import EventColumns, Source
from worker.sql import chunks, named
from worker.streams import EVENTS_TABLE, Stream
from worker.windows import Window, format_instant, from_micros

log = structlog.get_logger()

HOUR_MICROS = 3_600_000_000
MANY_IDS = 1000
"""From so many on, ids are rather given as a range than one by one."""

FEW_PARTITIONS = 16
"""Partitions that a block may always have: ids of a table's age, and what was handed out by hand."""

IDS_AT_ONCE = 131_072
"""Ids named in one statement."""

UInt64s = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What became of one window: every row extracted was loaded or quarantined.

    `sent` is how many bytes of columns went to ClickHouse.
    """

    extracted: int
    loaded: int
    quarantined: int
    days: int
    already: bool = False
    sent: int = 0


@dataclass(frozen=True, slots=True)
class _Reading:
    """One reading of one window: what every chunk of it has in common.

    `noted` are days the ledger already knows to be left by events of this window.
    """

    settings: Settings
    stream: Stream
    window: Window
    table: str
    uuid: UUID
    version: int
    run_id: str
    calendar: Calendar
    again: str = ""
    noted: set[date] = field(default_factory=set)


@dataclass(slots=True)
class _Tally:
    """What was seen of a window or of one of its chunks. `left` are days that older versions of its events leave."""

    extracted: int = 0
    loaded: int = 0
    quarantined: int = 0
    sent: int = 0
    first: int = np.iinfo(np.int64).max
    last: int = np.iinfo(np.int64).min
    content: int = 0
    hours: set[int] = field(default_factory=set)
    left: set[date] = field(default_factory=set)

    def add(self, other: _Tally) -> None:
        """Adds what was seen of a chunk."""
        self.extracted += other.extracted
        self.loaded += other.loaded
        self.quarantined += other.quarantined
        self.sent += other.sent
        self.first = min(self.first, other.first)
        self.last = max(self.last, other.last)
        self.content = (self.content + other.content) % 2**64
        self.hours |= other.hours
        self.left |= other.left


def content_hash(columns: EventColumns) -> int:
    """Order-independent hash of rows, modulo 2^64; `events.sql` computes the same in ClickHouse."""
    factors = (11400714819323198485, 14029467366897019727, 1609587929392839161, 9650029242287828579)
    keys = (columns.event_id, columns.campaign_id, columns.created_at, columns.inserted_at)
    further = [word for column in columns.extra.values() for word in column.words()]
    terms = [(key.view(np.uint64), np.uint64(factor)) for key, factor in zip(keys, factors, strict=True)]
    terms += [(word, np.uint64(multiplier(number))) for number, word in enumerate(further)]
    total = 0
    # In pieces that stay in the processor's cache with what becomes of them.
    for begin in range(0, len(columns), 16_384):
        mixed: UInt64s = np.zeros(min(16_384, len(columns) - begin), np.uint64)
        for word, factor in terms:
            mixed += word[begin : begin + 16_384] * factor
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(13787848793156543929)
        total += int(mixed.sum(dtype=np.uint64))
    return total % 2**64


def hash_terms(stream: Stream) -> str:
    """What the content hash adds for the stream's further columns, in ClickHouse's SQL; empty without any."""
    terms: list[str] = []
    for extra in stream.extra:
        words = named("events", word_statement(extra.type)).format(column=quoted(extra.name))
        for word in words.split(";"):
            if "Nullable(" in extra.type:
                word = f"if(isNull({quoted(extra.name)}), toUInt64(11400714819323198485), assumeNotNull({word}))"
            terms.append(f" + {word} * toUInt64({multiplier(len(terms))})")
    return "".join(terms)


def refusals(columns: EventColumns) -> Refusals:
    """Why rows cannot be loaded: each rule with the rows it refuses."""
    created = columns.created_at
    if len(created) and created.min() >= EARLIEST and created.max() < LATEST:
        return columns.refused
    lowest, highest = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    found = [
        ("created_at is NULL or -infinity", created == lowest),
        ("created_at is infinity", created == highest),
        ("created_at is before 1900-01-02", (created > lowest) & (created < EARLIEST)),
        ("created_at is after 2299-12-30", (created < highest) & (created >= LATEST)),
    ]
    return [*((rule, rows) for rule, rows in found if rows.any()), *columns.refused]


def hours_of(created_at: NDArray[np.int64]) -> set[int]:
    """The UTC hours since 1970 in which these instants lie."""
    hours = created_at // HOUR_MICROS
    first, last = int(hours.min()), int(hours.max())
    if last - first < 1_000_000:
        return {first + int(hour) for hour in np.flatnonzero(np.bincount(hours - first))}
    # Not numpy's unique: its first call in each process of a pool imports masked arrays, which takes longer than it does.
    hours = np.sort(hours)
    return {first, *(int(hour) for hour in hours[1:][np.diff(hours) > 0])}


def load_window(
    source: Source,
    sink: Sink,
    ledger: Ledger,
    settings: Settings,
    stream: Stream,
    window: Window,
    *,
    table: str,
    uuid: UUID,
    run_id: str = "",
    on_rows: Callable[[int], None] = lambda rows: None,
    again: str = "",
    newer: bool = False,
) -> Loaded:
    """Loads one window of an event stream into `table`, known as `uuid`, and commits it.

    A window that is committed already is left alone, unless `again` names the occasion on which it is read once more.
    With `newer` it is read in a snapshot whose version is greater than all before.
    Raises `TransientSource`, `TransientSink` or `VerificationFailed` where another try may help, and `Superseded` where
    a swap gave the name to another table, or a newer refresh dropped it; the window is then as if nothing had happened.
    """
    if table != EVENTS_TABLE:
        # Of a refresh that was overtaken hundreds of windows may still wait in line.
        _require_target(sink, stream, window, table, uuid)
    calendar = calendars.in_force(sink, settings)
    with setbacks.reading(source, ledger, settings, [stream], [uuid], newer=newer) as read:
        snapshot = read.snapshot
        if window.hi > snapshot.taken_at:
            # It was cut by a clock that was set back since, or by that of a primary that another has taken the place of.
            raise TransientSource(
                f"{stream.name} {window} ends after the clock of PostgreSQL, {format_instant(snapshot.taken_at)}, so rows "
                "of it may still be written; nothing was loaded."
            )
        commits, begun = ledger.committed(stream, uuid, window, read.generation)
        if not again and _covered(window, commits):
            return Loaded(0, 0, 0, 0, already=True)
        reading = _Reading(settings, stream, window, table, uuid, read.version, run_id, calendar, again)
        try:
            tally = _load_chunks(sink, reading, source.read_events(stream, window, settings.chunk_rows), on_rows)
        except SchemaMismatch:
            _require_target(sink, stream, window, table, uuid)
            raise
    # Rows went to whatever carried the name; a commit says that this very table has them. A swap meanwhile parts the
    # two, and the rows would be gone with the table that was replaced. One after this line does no harm.
    _require_target(sink, stream, window, table, uuid)
    _verify(sink, reading, tally)
    # Asked now that the rows are in: who adopts another calendar after this looks at them too.
    days = calendars.in_force(sink, settings).days_of_hours(tally.hours) | tally.left
    # No metrics are made of a shadow: whoever swaps it in marks all days after that.
    if table == EVENTS_TABLE:
        # Between looking for older versions and inserting newer ones, another worker may have loaded an older version, and
        # its day have been rebuilt with it. Whoever did so marked that day, and after it was looked for. What an attempt
        # that died has noted is marked also where nothing is left to be read: its rows may be merged, and have moved on.
        noted, others = ledger.superseded_days(stream, uuid, window, begun)
        days |= noted
        marked = others if tally.extracted else set()
        ledger.mark_days(days, marked)
    ledger.commit(
        stream,
        uuid,
        window,
        run_id=run_id,
        version=reading.version,
        rows=tally.loaded,
        quarantined=tally.quarantined,
        content_hash=tally.content,
        snapshot=snapshot,
        extracted=tally.extracted,
    )
    return Loaded(tally.extracted, tally.loaded, tally.quarantined, len(days), sent=tally.sent)


def _require_target(sink: Sink, stream: Stream, window: Window, table: str, uuid: UUID) -> None:
    """Raises `Superseded` where the name belongs to another table, or to none any more, as a dropped shadow's."""
    try:
        found = sink.uuid(table)
    except SchemaMismatch:
        if table == EVENTS_TABLE:
            raise
    else:
        if found == uuid:
            return
    raise Superseded(f"{table} was replaced before {stream.name} {window} was loaded; nothing was committed.")


def _covered(window: Window, commits: list[Window]) -> bool:
    position = window.lo
    for commit in sorted(commits):
        if commit.lo > position:
            return False
        position = max(position, commit.hi)
    return position >= window.hi


def _load_chunks(
    sink: Sink, reading: _Reading, chunks: Iterator[EventColumns], on_rows: Callable[[int], None]
) -> _Tally:
    """Loads chunks as they come, two at a time on two sessions: while ClickHouse writes one, the next is packed."""
    tally = _Tally()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="chunk") as pool:
        flying: Future[_Tally] | None = None
        try:
            for number, chunk in enumerate(chunks):
                if number % 2 == 1:
                    flying = pool.submit(_load_chunk, sink.twin(), reading, chunk, number)
                    continue
                done = [_load_chunk(sink, reading, chunk, number)]
                if flying is not None:
                    done.append(flying.result())
                    flying = None
                for part in done:
                    tally.add(part)
                    on_rows(part.extracted)
            if flying is not None:
                part = flying.result()
                tally.add(part)
                on_rows(part.extracted)
        finally:
            chunks.close()  # type: ignore[attr-defined]
    return tally


def _load_chunk(sink: Sink, reading: _Reading, chunk: EventColumns, number: int) -> _Tally:
    """Refuses ids that lie in too many partitions; sets aside rows that cannot be loaded, notes the days about to be left,
    and inserts the rest in one block."""
    stream = reading.stream
    _require_dense(sink, reading, chunk)
    token = dedup_token(reading.uuid, stream, reading.window, reading.version, number)
    if reading.again:
        # Of a source at rest every reading has the same version, and the token of the first would swallow this one.
        token = f"{token}/{reading.again}"
    present = _hours_present(sink, stream, chunk, reading.table)
    left = reading.calendar.days_of_hours(present)
    if left - reading.noted:
        Ledger(sink).note_superseding(stream, reading.uuid, reading.window, left, token)
        reading.noted.update(left)

    refused: dict[int, str] = {}
    for rule, rows in refusals(chunk):
        refused.update((int(position), rule) for position in np.flatnonzero(rows))
    condemned, flagged = judge(reading.settings, chunk)
    judged: dict[int, str] = {}
    for rule, rows in condemned:
        judged.update((int(position), rule) for position in np.flatnonzero(rows) if int(position) not in refused)
    if judged:
        refused.update(_without_released(sink, stream, chunk, judged))
    sent = _insert(sink, stream, chunk, refused, reading.table, reading.version, token)

    loaded = chunk
    if refused:
        _quarantine(sink, reading, chunk, refused, token)
        kept = np.ones(len(chunk), dtype=bool)
        kept[list(refused)] = False
        loaded = chunk.take(kept)
    if flagged:
        _flag(sink, reading, chunk, flagged, refused, token)
    tally = _Tally(len(chunk), len(loaded), len(refused), sent, hours=present, left=left)
    if len(loaded):
        tally.first, tally.last = int(loaded.event_id.min()), int(loaded.event_id.max())
        tally.content = content_hash(loaded)
        tally.hours |= hours_of(loaded.created_at)
    return tally


def _require_dense(sink: Sink, reading: _Reading, chunk: EventColumns) -> None:
    """Raises `ScatteredIds` where inserting the chunk would take a partition for every few rows."""
    first, last = int(chunk.event_id.min()), int(chunk.event_id.max())
    # Most often that is all there is to see, and sorting half a million ids takes a while.
    shape = shape_of(chunk.event_id) if last - first > FEW_PARTITIONS * IDS_A_PARTITION else None
    if shape is None or not shape.few_each or len(shape.partitions) <= FEW_PARTITIONS:
        return
    parameters = {
        "database": sink.database,
        "tables": (reading.table, EVENTS_TABLE),
        "prefix": f"('{reading.stream.event_type}',",
    }
    present = {int(place): int(rows) for place, rows in sink.named("events", "ranges_present", parameters)}
    told = refusal(reading.stream.name, shape, present.keys(), sum(present.values()))
    if told:
        raise ScatteredIds(told)


def _hours_present(sink: Sink, stream: Stream, chunk: EventColumns, table: str) -> set[int]:
    """Hours in which versions of these events already in the table happened: they are about to be overwritten.

    Of a large chunk whose ids lie close together, as when a window is read again, also hours of the few events between
    them: a rebuild more is cheap, and naming many ids would make each try slower than the one before it.
    """
    first, last = int(chunk.event_id.min()), int(chunk.event_id.max())
    parameters: dict[str, Any] = {"event_type": stream.event_type, "first": first, "last": last}
    room = 2 * len(chunk) if len(chunk) >= MANY_IDS else len(chunk)
    if last - first < room:
        within = named("events", "hours_between").format(table=quoted(table))
        return {int(hour) for (hour,) in sink.query("looking for days that events leave", within, parameters)}
    present = named("events", "present").format(table=quoted(table))
    if not sink.query("looking for earlier versions", present, parameters)[0][0]:
        return set()
    statement = named("events", "hours_of").format(table=quoted(table))
    hours: set[int] = set()
    for begin in range(0, len(chunk), IDS_AT_ONCE):
        part = chunk.event_id[begin : begin + IDS_AT_ONCE]
        some = {"first": int(part.min()), "last": int(part.max()), "ids": tuple(part.tolist())}
        rows = sink.query(
            "looking for days that events leave", statement, {**parameters, **some}, settings={"max_query_size": 2**28}
        )
        hours |= {int(hour) for (hour,) in rows}
    return hours


def _insert(
    sink: Sink,
    stream: Stream,
    chunk: EventColumns,
    refused: dict[int, str],
    table: str,
    version: int,
    token: str,
) -> int:
    """Inserts the chunk in one block. Where ClickHouse refuses it, halves, down to the rows it refuses.

    Returns the bytes of what was taken. A refused row leaves a tombstone, so that no earlier version of that event is
    counted in its place.
    """
    positions = np.arange(len(chunk))
    pending = [(positions, token)]
    sent = 0
    while pending:
        chosen, name = pending.pop()
        try:
            sent += sink.insert_columns(table, _block(stream, chunk, chosen, refused, version), token=name)
        except RefusedRows as error:
            if len(chosen) == 1:
                if int(chosen[0]) in refused:
                    raise
                refused[int(chosen[0])] = str(error)
                pending.append((chosen, f"{name}/tombstone"))
                continue
            middle = len(chosen) // 2
            pending.append((chosen[middle:], f"{name}/b"))
            pending.append((chosen[:middle], f"{name}/a"))
    return sent


def _block(
    stream: Stream, chunk: EventColumns, chosen: NDArray[np.int64], refused: dict[int, str], version: int
) -> dict[str, Column]:
    whole = len(chosen) == len(chunk)
    part = chunk if whole else chunk.take(chosen)
    size = len(part)
    deleted = np.zeros(size, dtype=np.uint8)
    campaign_id, created_at, extra = part.campaign_id, part.created_at, part.extra
    if refused:
        deleted = np.isin(chosen, list(refused)).astype(np.uint8)
        campaign_id = np.where(deleted, 0, campaign_id)
        created_at = np.where(deleted, 0, created_at)
        if deleted.all():
            # Whatever ClickHouse may have refused, a tombstone is made of defaults.
            extra = {}
    return {
        "event_type": Column("Enum8", np.full(size, stream.event_code, dtype=np.int8)),
        "event_id": Column("Int64", part.event_id),
        "campaign_id": Column("Int64", campaign_id),
        "created_at": Column("DateTime64(6)", created_at),
        "inserted_at": Column("DateTime64(6)", part.inserted_at),
        "_version": Column("UInt64", np.full(size, version, dtype=np.uint64)),
        "_deleted": Column("UInt8", deleted),
        **extra,
    }


def _row(stream: Stream, chunk: EventColumns, position: int) -> dict[str, Any]:
    """A source row as it is kept for people."""
    return {
        "id": int(chunk.event_id[position]),
        "campaign_id": int(chunk.campaign_id[position]) or None,
        "created_at": _shown(int(chunk.created_at[position])),
        "inserted_at": _shown(int(chunk.inserted_at[position])),
        **{name: column.shown(position) for name, column in chunk.extra.items()},
    }


def _without_released(sink: Sink, stream: Stream, chunk: EventColumns, judged: dict[int, str]) -> dict[int, str]:
    """Rows the rules found, less those a person released as they are."""
    positions = {int(chunk.event_id[position]): position for position in judged}
    released: set[int] = set()
    for some in chunks(sorted(positions), IDS_AT_ONCE):
        parameters = {"stream": stream.name, "ids": tuple(some)}
        for event_id, content in sink.named("quarantine", "releases", parameters, settings={"max_query_size": 2**28}):
            row = _row(stream, chunk, positions[event_id])
            del row["inserted_at"]
            if json.dumps(row) == content:
                released.add(positions[event_id])
    return {position: rule for position, rule in judged.items() if position not in released}


def _quarantine(sink: Sink, reading: _Reading, chunk: EventColumns, refused: dict[int, str], token: str) -> None:
    stream, window = reading.stream, reading.window
    rows = []
    for position, rule in sorted(refused.items()):
        row = _row(stream, chunk, position)
        rows.append(
            (stream.name, row["id"], json.dumps(row), rule[:200], window.lo, window.hi, reading.run_id, reading.version)
        )
    columns = ("stream", "event_id", "row", "rule", "lo", "hi", "run_id", "_version")
    sink.insert_rows("quarantined_events", columns, rows, token=f"quarantine/{token}")


def _flag(
    sink: Sink, reading: _Reading, chunk: EventColumns, flagged: Marks, refused: dict[int, str], token: str
) -> None:
    stream, window = reading.stream, reading.window
    rows = []
    for rule, found in flagged:
        for position in map(int, np.flatnonzero(found)):
            if position not in refused:
                row = _row(stream, chunk, position)
                rows.append(
                    (
                        stream.name,
                        row["id"],
                        rule,
                        json.dumps(row),
                        window.lo,
                        window.hi,
                        reading.run_id,
                        reading.version,
                    )
                )
    columns = ("stream", "event_id", "rule", "row", "lo", "hi", "run_id", "_version")
    sink.insert_rows("flagged_events", columns, rows, token=f"flag/{token}")


def _shown(micros: int) -> str | None:
    """An instant as text, also where Python's datetime cannot hold it."""
    if micros == np.iinfo(np.int64).min:
        return None
    if micros == np.iinfo(np.int64).max:
        return "infinity"
    try:
        return format_instant(from_micros(micros))
    except OverflowError:
        return f"{micros} microseconds since 1970"


def _verify(sink: Sink, reading: _Reading, tally: _Tally) -> None:
    """Compares what the table holds of this reading with what was read.

    Counted as they lie first; where a block was inserted twice under different tokens, as distinct rows.
    """
    if not tally.loaded:
        return
    stream, window = reading.stream, reading.window
    parameters = {
        "event_type": stream.event_type,
        "first": tally.first,
        "last": tally.last,
        "lo": window.lo,
        "hi": window.hi,
        "version": reading.version,
    }
    found: tuple[int, int] = (0, 0)
    further = "".join(f", {quoted(extra.name)}" for extra in stream.extra)
    for distinct in ("", f"GROUP BY event_id, campaign_id, created_at, inserted_at{further}"):
        statement = named("events", "loaded").format(
            table=quoted(reading.table), distinct=distinct, extra=hash_terms(stream)
        )
        count, content = sink.query("verifying a window", statement, parameters)[0]
        found = (int(count), int(content))
        if found == (tally.loaded, tally.content):
            return
    # Rows updated meanwhile and already loaded and merged in their newer version are missing here for good reason:
    # the next reading no longer finds them in this window.
    raise VerificationFailed(
        f"{stream.name} {window}: read {tally.loaded} rows, ClickHouse holds {found[0]} of them"
        f"{'' if found[0] != tally.loaded else ' with other values'}; the window will be read again."
    )


def new_run_id(clock_micros: int) -> str:
    """An id that sorts by time and tells runs begun in the same instant apart."""
    return f"{from_micros(clock_micros).strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
