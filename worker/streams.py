"""The registry of what is synced: one entry per source table. Data only.

An event stream is append-mostly and read by window on `inserted_at`; a dimension is small and read whole, in one
snapshot, each time. Adding a table is adding an entry (and, for a dimension, its statements).

To carry further columns of an event table along, name them in its entry's `extra`, and add them to `ad_events` by a
migration (`ALTER TABLE ad_events ADD COLUMN device LowCardinality(Nullable(String))`); a full refresh fills them for
the rows loaded before. A stream without further columns costs nothing for those that have some.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from worker.columns import source_type
from worker.errors import BadInput

EVENTS_TABLE = "ad_events"


@dataclass(frozen=True, slots=True)
class Extra:
    """A further column of an event table, of the same name in PostgreSQL and in ClickHouse.

    `type` is ClickHouse's: String, UUID, Decimal(p, s) up to 38 digits, Bool, Int16 to Int64, Float32, Float64, Date32
    or DateTime64(6), each also Nullable. A row whose value it cannot hold (NULL where it is not Nullable, a numeric
    with more decimals, a time before 1900) is quarantined. The column is read as PostgreSQL's type of the same
    meaning, or as `source_type` where that is named: `bytea` for bytes into String. Raises `BadInput` for a type that
    cannot be synced.
    """

    name: str
    type: str
    source_type: str = ""

    def __post_init__(self) -> None:
        known = source_type(self.type)
        object.__setattr__(self, "source_type", self.source_type or known)
        if self.source_type not in {known, "bytea" if known == "text" else known}:
            raise BadInput(f"Column {self.name} cannot be read as {self.source_type} into {self.type}.")


@dataclass(frozen=True, slots=True)
class Stream:
    """One synced table.

    `name` is the source table's and the stream's name in every screen; `target` the ClickHouse table it fills;
    `event_type` the value that tells the stream's rows from others in `target`, `event_code` the number of that value
    (event streams only); `extra` the columns an event has beyond the four every event has.
    """

    name: str
    source_table: str
    target: str
    kind: Literal["events", "dimension"]
    event_type: str = ""
    event_code: int = 0
    extra: tuple[Extra, ...] = ()


_REGISTRY = (
    Stream("advertisers", "advertiser", "advertiser_dimension", "dimension"),
    Stream("campaigns", "campaign", "campaign_history", "dimension"),
    Stream("impressions", "impressions", EVENTS_TABLE, "events", "impression", 1),
    Stream("clicks", "clicks", EVENTS_TABLE, "events", "click", 2),
)

STREAMS: dict[str, Stream] = {stream.name: stream for stream in _REGISTRY}
"""Every stream by name, in the order in which they are synced and shown."""

EVENT_STREAMS = tuple(stream for stream in _REGISTRY if stream.kind == "events")
DIMENSION_STREAMS = tuple(stream for stream in _REGISTRY if stream.kind == "dimension")


def stream(name: str) -> Stream:
    """The stream of that name. Raises `BadInput` naming the ones there are."""
    found = STREAMS.get(name) if isinstance(name, str) else None
    if found is None:
        raise BadInput(f"There is no stream {name!r}; the streams are {', '.join(STREAMS)}.")
    return found


def chosen(names: Iterable[str] | None) -> list[Stream]:
    """The streams of those names in registry order; all of them for None or none. Raises `BadInput`."""
    if isinstance(names, str):
        raise BadInput(f'streams takes a list of names, for example ["{names}"].')
    wanted = {stream(name).name for name in names or ()}
    return [entry for entry in _REGISTRY if not wanted or entry.name in wanted]
