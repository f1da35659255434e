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
    """Calls `insert` with the name of each shadow, of the live table, and of each shadow, until all hold what it writes.

    What it writes must be the same however often it is written, and older than any snapshot taken from now on: then a
    shadow made after the tables were listed needs it not. Shadows come first, because of who dies after the live table
    nobody would see any more that something is left to mend; and again after it, because partitions of the live table
    are linked into a new shadow, which may overwrite what was written there. Raises what `insert` raises; a shadow that
    was dropped meanwhile, or whose columns are no longer those of the live table so that it can never take its place,
    is left out.
    """
    for name, uuid in event_tables(sink)[1:]:
        _written(sink, insert, name, uuid)
    written: set[UUID] = set()
    while waiting := [table for table in event_tables(sink) if table[1] not in written]:
        written |= {uuid for name, uuid in waiting if _written(sink, insert, name, uuid)}


def _written(sink: Sink, insert: Callable[[str], None], name: str, uuid: UUID) -> bool:
    """Writes to the table of that name; whether the one known by that uuid holds it now, or need not."""
    try:
        insert(name)
    except SchemaMismatch:
        if name == EVENTS_TABLE:
            raise
        # Where the name is gone the table may be: dropped, or live by now, as the next list says.
        if not holds(sink, name, uuid):
            return False
        if same_shape(sink, name):
            raise
        return True
    # A swap before the insert sent it to the other table, and that one may have had it already.
    return holds(sink, name, uuid)


def same_shape(sink: Sink, table: str) -> bool:
    """Whether the table has the columns, the order and the partitions that the live one has now."""
    parameters = {"database": sink.database, "table": table, "live": EVENTS_TABLE}
    return not sink.named("mending", "shapes_differ", parameters)[0][0]
