"""The registry of what is synced: one entry per source table. Data only.

An event stream is append-mostly and read by window on `inserted_at`; a dimension is small and read whole, in one
snapshot, each time. Adding a table is adding an entry (and, for a dimension, its statements).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from worker.errors import BadInput

EVENTS_TABLE = "ad_events"


@dataclass(frozen=True, slots=True)
class Stream:
    """One synced table.

    `name` is the source table's and the stream's name in every screen; `target` the ClickHouse table it fills;
    `event_type` the value that tells the stream's rows from others in `target`, `event_code` the number of that value
    (event streams only).
    """

    name: str
    source_table: str
    target: str
    kind: Literal["events", "dimension"]
    event_type: str = ""
    event_code: int = 0


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
