"""How the ids of an event table are spread, and whether they can be loaded. Pure: no servers.

Events lie in a partition for every ten million ids, so each such range in which a few rows lie costs as much as one that is
full: measured, 10 to 25 ms of an insert, and a part that is never merged with another.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

IDS_A_PARTITION = 10_000_000
"""As `ad_events` is partitioned."""

MOST_NEW = 200
"""Partitions a block may begin with few rows each: five seconds of an insert."""

MOST = 1000
"""Partitions a stream may lie in with few rows each."""

ROWS_A_PARTITION = 200
"""Fewer rows a partition, on average, are few."""

SAMPLE = 20_000
"""Newest rows that are looked at before the first load."""

CAUSE = "cannot be synced by this version: ids must be dense"
"""What every refusal says. A window refused so is not halved: its halves would be refused, or add partitions bit by bit."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How some rows' ids are spread: over how many partitions, between which ids, and how far apart in the middle."""

    rows: int
    partitions: frozenset[int]
    first: int
    last: int
    step: int

    @property
    def few_each(self) -> bool:
        """Whether there are few rows a partition."""
        return self.rows < ROWS_A_PARTITION * len(self.partitions)

    @property
    def scattered(self) -> bool:
        """Whether a block of these rows would be refused by a table that holds none."""
        return self.few_each and len(self.partitions) > MOST_NEW

    @property
    def word(self) -> Literal["dense", "gaps", "scattered"]:
        """The shape in a word."""
        return "scattered" if self.scattered else "dense" if self.step <= 2 else "gaps"

    @property
    def told(self) -> str:
        """The shape in figures."""
        return (
            f"{self.rows:,} rows lie in {len(self.partitions):,} ranges of {IDS_A_PARTITION:,} ids, "
            f"from {self.first} to {self.last}, {self.step:,} apart in the middle"
        )


def partitions_of(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The partition of each id, as ClickHouse's intDiv: towards zero."""
    floor = ids // IDS_A_PARTITION
    return np.where((ids < 0) & (ids % IDS_A_PARTITION != 0), floor + 1, floor)


def shape_of(ids: NDArray[np.int64]) -> Shape | None:
    """The shape of these ids in whatever order; None without any."""
    if not len(ids):
        return None
    ordered = np.sort(ids)
    # Differences of 63-bit ids of both signs need the 64th.
    steps = np.diff(ordered.view(np.uint64))
    found = frozenset(partitions_of(ordered[np.concatenate(([True], _changes(ordered)))]).tolist())
    return Shape(len(ids), found, int(ordered[0]), int(ordered[-1]), int(np.median(steps)) if len(steps) else 1)


def _changes(ordered: NDArray[np.int64]) -> NDArray[np.bool_]:
    places = partitions_of(ordered)
    changes: NDArray[np.bool_] = places[1:] != places[:-1]
    return changes


def refusal(stream: str, shape: Shape, present: AbstractSet[int] = frozenset(), rows_present: int = 0) -> str:
    """Why rows of this shape cannot be loaded beside what a table holds of the stream; empty where they can."""
    if not shape.few_each:
        return ""
    new = len(shape.partitions - present)
    everything = len(shape.partitions | present)
    creeping = new and everything > MOST and rows_present + shape.rows < ROWS_A_PARTITION * everything
    if new <= MOST_NEW and not creeping:
        return ""
    beside = f" beside {rows_present:,} in {len(present):,} such ranges" if present else ""
    return f"{stream}: {shape.told}{beside}, so the table {CAUSE}; let its ids come from a sequence."
