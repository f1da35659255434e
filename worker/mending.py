"""Writes to the events by hand, in every table that holds them or is about to.

Whoever mends the live table while a full refresh fills a shadow of it would have his rows undone by the swap, unless
the shadow holds them too. Tables are known by their uuid, because a swap may come between any two statements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from uuid import UUID

from worker.errors import SchemaMismatch
from worker.streams import EVENTS_TABLE

if TYPE_CHECKING:
    from worker.sink import Sink


def event_tables(sink: Sink) -> list[tuple[str, UUID]]:
    """The live table and every shadow of it, by name and uuid, as of one moment; the live one first."""
    parameters = {"database": sink.database, "live": EVENTS_TABLE}
    return [(name, UUID(str(uuid))) for name, uuid in sink.named("mending", "tables", parameters)]


def holds(sink: Sink, name: str, uuid: UUID) -> bool:
    """Whether the table of that name is still the one known by that uuid."""
    try:
        return sink.uuid(name) == uuid
    except SchemaMismatch:
        return False


def write_everywhere(sink: Sink, insert: Callable[[str], None]) -> None:
    """Calls `insert` with the name of the live table, then of each shadow, until all of them hold what it writes.

    What it writes must be the same however often it is written, and older than any snapshot taken from now on: then a
    shadow made after the tables were listed needs it not. The live one comes first because partitions of it are linked
    into a new shadow, which may overwrite what was written there. Raises what `insert` raises; a shadow that was dropped
    meanwhile, or whose columns are no longer those of the live table so that it can never take its place, is left out.
    """
    written: set[UUID] = set()
    while waiting := [table for table in event_tables(sink) if table[1] not in written]:
        for name, uuid in waiting:
            try:
                insert(name)
            except SchemaMismatch:
                if name == EVENTS_TABLE:
                    raise
                # Where the name is gone the table may be: dropped, or live by now, as the next list says.
                if holds(sink, name, uuid):
                    if same_shape(sink, name):
                        raise
                    written.add(uuid)
                continue
            # A swap before the insert sent it to the other table, and that one may have had it already.
            if holds(sink, name, uuid):
                written.add(uuid)


def same_shape(sink: Sink, table: str) -> bool:
    """Whether the table has the columns, the order and the partitions that the live one has now."""
    parameters = {"database": sink.database, "table": table, "live": EVENTS_TABLE}
    return not sink.named("mending", "shapes_differ", parameters)[0][0]
