"""A source that went back in time: a volume snapshot put back, a copied data folder, a clock set back.

Versions of rows come of the source's transaction counter and windows of its clock. Where either is behind what was loaded
already, new rows would lose to ones that are gone or lie below the watermark. So each reading is compared with the ledger,
and once it is behind, that is kept there: time passing does not make it good. A full refresh of all events begins a new
generation, whose rows outrank all before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from worker.config import Settings
from worker.errors import SourceWentBack, Superseded
from worker.ledger import Ledger, Run
from worker.source import Snapshot, Source
from worker.streams import EVENT_STREAMS, Stream
from worker.windows import format_instant

log = structlog.get_logger()

CRASH_TAIL = 64
"""So many transaction ids, drawn moments before a crash and not on disk yet, may be given out again after it."""

CLOCKS_APART = timedelta(seconds=60)
"""How far the clocks of PostgreSQL and ClickHouse may be apart for what a tick saw on one to be believed by the other."""

REMEDY = (
    "nothing more is loaded from it until a full refresh of all events: `retailmedia pipeline --full-refresh`, which reads "
    "what is there now"
)


@dataclass(frozen=True, slots=True)
class Reading:
    """An open snapshot, with the generation of its server and the version of what is read in it."""

    snapshot: Snapshot
    generation: int
    version: int


def refuse(ledger: Ledger) -> None:
    """Raises `SourceWentBack` where the source is known to have gone back."""
    told = ledger.setback()
    if told:
        raise SourceWentBack(told)


@contextmanager
def reading(
    source: Source,
    ledger: Ledger,
    settings: Settings,
    streams: Sequence[Stream],
    uuids: Iterable[UUID],
    *,
    newer: bool = False,
) -> Iterator[Reading]:
    """A snapshot to read `streams` in, as `Source.snapshot`, that is not older than what the tables `uuids` hold.

    Raises `SourceWentBack` where it is, and keeps that in the ledger.
    """
    refuse(ledger)
    # Before the snapshot is taken: whatever is committed by then was read in an earlier one.
    present = max((one.number for one in ledger.generations()), default=0)
    # Of a server that was left for another nothing more counts, also where nothing was loaded of the other.
    newest = max(ledger.newest_version(uuids), present << 56)
    rewind = timedelta(seconds=settings.failover_rewind_seconds)
    for again in (False, True):
        with source.snapshot(streams, newer=newer) as snapshot:
            generation = ledger.generation(snapshot, failover_rewind=rewind)
            version = snapshot.version(generation)
            if version >= newest:
                yield Reading(snapshot, generation, version)
                return
        behind = ((newest - version) >> 16) + 1
        if again or behind > CRASH_TAIL:
            break
        # Ids that others drew and that were not on disk at a crash; the versions they made must not come again.
        log.warning("source.transactions_lost_in_a_crash", count=behind)
        source.draw_transactions(behind)
    latest = ledger.generations()[-1].number
    if generation < newest >> 56:
        what = f"is a server that was synced before, and another has taken its place since; {REMEDY}."
    else:
        what = (
            "went back in time, as when a snapshot of its volume is put back: its newest transaction, "
            f"{snapshot.xmax:,} of timeline {snapshot.timeline}, is older than one that was loaded from it before; {REMEDY}."
        )
    told = f"PostgreSQL at {settings.server_label('postgres')} {what}"
    ledger.note_setback(latest, "transactions", told)
    log.error("source.went_back", newest=newest, found=version)
    raise SourceWentBack(told)


def begin_anew(
    source: Source, ledger: Ledger, settings: Settings, streams: Sequence[Stream], uuids: Iterable[UUID]
) -> int:
    """The version of a snapshot with which a full refresh of `streams` begins.

    Of a source that went back it begins a new generation, if all events are read anew: then what the live tables hold
    counts up to now. Raises `SourceWentBack` where only some are.
    """
    whole = set(EVENT_STREAMS) <= set(streams)
    try:
        if not whole and (told := ledger.setback(while_refreshed=True)):
            raise SourceWentBack(told)
        with reading(source, ledger, settings, (), uuids) as now:
            return now.version
    except SourceWentBack as error:
        if not whole:
            raise SourceWentBack(
                f"{str(error).rstrip('.')}; a refresh of {streams[0].name} alone is not enough."
            ) from error
    with source.snapshot() as snapshot:
        number = ledger.open_generation(snapshot, snapshot.taken_at)
        log.warning("source.begun_anew", generation=number)
        return snapshot.version(number)


def require_present(ledger: Ledger, run: Run) -> None:
    """Raises `Superseded` for a refresh begun before its source went back: its table holds rows that are gone."""
    generations = ledger.generations()
    own = next((one for one in generations if run.version and one.number == run.version >> 56), None)
    if own is None:
        return
    server = (own.system_id, own.timeline)
    if any(one.number > own.number and (one.system_id, one.timeline) == server for one in generations):
        raise Superseded(
            f"The source went back in time after run {run.run_id} had begun: a newer full refresh took over."
        )


def require_clock(
    source: Source, ledger: Ledger, settings: Settings, clock: datetime, watermark: datetime, seen: datetime | None
) -> None:
    """Raises `SourceWentBack` where the source's clock is before what it has shown already, and keeps that.

    `watermark` is the live tables' and `seen` what the last tick read on the clock, both from before `clock` was read. On a
    server that was not seen before, such as a promoted replica, its first snapshot decides.
    """
    margin = timedelta(milliseconds=settings.horizon_margin_ms)
    # The watermark was the margin behind the clock of its time.
    latest = watermark
    if seen is not None and clock < seen - margin:
        # What a tick saw is kept in Redis, where anybody with its password may write. The ledger's clock has not seen it.
        if seen <= ledger.now() + CLOCKS_APART:
            latest = max(latest, seen - margin)
        else:
            log.warning("source.clock_seen_is_not_believed", seen=seen.isoformat())
    if clock >= latest:
        return
    generations = ledger.generations()
    with source.snapshot() as snapshot:
        server = (snapshot.system_id, snapshot.timeline)
    if not generations or (generations[-1].system_id, generations[-1].timeline) != server:
        return
    told = (
        f"The clock of PostgreSQL at {settings.server_label('postgres')} was set back: it shows {format_instant(clock)} UTC "
        f"and has shown {format_instant(latest + margin)} UTC before, so new rows may lie below the watermark; {REMEDY}."
    )
    ledger.note_setback(generations[-1].number, "clock", told)
    log.error("source.clock_set_back", clock=clock.isoformat(), shown=latest.isoformat())
    raise SourceWentBack(told)
