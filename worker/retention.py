"""What is never taken away here although the source no longer has it.

Events older than the source keeps (`SOURCE_KEEPS_DAYS`) were not deleted but aged out. And what was sealed is not taken
from without a word by a person.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

from worker.calendar import Calendar, own
from worker.config import Settings
from worker.sql import named
from worker.streams import EVENTS_TABLE, Stream
from worker.windows import to_micros

if TYPE_CHECKING:
    from worker.sink import Sink

ROWS_AT_ONCE = 1_000_000
"""Events looked at in one statement while they are carried along: what one side of its join holds in memory."""

Sealed = Mapping[Calendar, frozenset[date]]
"""Days that have a seal, by the calendar of the time zone they were cut in."""


def kept_since(settings: Settings, at: datetime) -> datetime | None:
    """From when on the source is asked what it has deleted, if it is `at` there; None where it keeps everything.

    Of events that happened or were written before, nothing is concluded from the source not having them.
    """
    if settings.source_keeps_days is None:
        return None
    try:
        return at - timedelta(days=settings.source_keeps_days)
    except OverflowError:
        return None


def aged_out(created_at: int | None, inserted_at: int, kept: datetime | None) -> bool:
    """Whether an event of these times, in microseconds since 1970 UTC, is older than the source keeps."""
    if kept is None:
        return False
    since = to_micros(kept)
    return inserted_at < since or (created_at is not None and created_at < since)


def sealed_days(sink: Sink) -> Sealed:
    """Every day that has a seal."""
    return {own(zone): frozenset(days) for zone, days in sink.named("retention", "sealed_days")}


def is_sealed(sealed: Sealed, created_at: int) -> bool:
    """Whether an event of that time, in microseconds since 1970 UTC, happened on a day that has a seal."""
    return any(calendar.day_of_micros(created_at) in days for calendar, days in sealed.items())


def carry_along(sink: Sink, stream: Stream, shadow: str, kept: datetime | None) -> None:
    """Copies into `shadow` what the live table holds of a stream from before `kept` and the shadow does not.

    `shadow` is a quoted name, filled from the source up to now. Rows keep their versions, so whatever was or will be
    read of the same event in a newer snapshot wins. In pieces of `ROWS_AT_ONCE` events; what an earlier call copied is
    only looked at, so whoever died in it goes on where he was.
    """
    if kept is None:
        return
    found = sink.named("retention", "columns", {"database": sink.database, "table": EVENTS_TABLE})
    names = {"live": EVENTS_TABLE, "shadow": shadow, "columns": ", ".join(f"`{name}`" for (name,) in found)}
    last: int | None = None
    while True:
        parameters = {
            "event_type": stream.event_type,
            "after": -(2**63) if last is None else last,
            "with_after": last is None,
            "rows": ROWS_AT_ONCE,
            "kept": kept,
        }
        piece = named("retention", "piece").format(**names)
        rows, until = sink.query("looking for what the source no longer keeps", piece, parameters)[0]
        if rows:
            statement = named("retention", "carry").format(**names)
            # Again is the same as once: it copies what is not there yet.
            sink.command("carrying along what the source no longer keeps", statement, {**parameters, "until": until})
        if rows < ROWS_AT_ONCE:
            return
        last = until
