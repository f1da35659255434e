"""Faults worked into generated traffic, and the ledger of them: what a detector of anomalies is measured against.

Each fault has a campaign of its own and one whole UTC day. Nothing here talks to a server or reads a clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
from numpy.random import Generator

from seed import model
from seed.model import Int64s, Rhythm
from worker.errors import BadInput

KINDS = ("bots", "outage", "tracking_break", "bid_edit", "duplicates")
"""bots: clicks without impressions, in a few hours. outage: nothing arrives for most of a day. tracking_break: no clicks
do. bid_edit: a bid several times as high, from the day's start on. duplicates: each event several times, under new ids."""

_EVERY_HOUR = tuple(range(24))
_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Fault:
    """A line of the ledger. `effect` is the factor, 1 or more, by which the day's count (of a bid edit: its price) is off.

    Hours are UTC.
    """

    kind: str
    campaign_id: int
    day: date
    hours: tuple[int, ...]
    effect: float

    def as_json(self) -> dict[str, Any]:
        """As the ground-truth file keeps it."""
        return {**asdict(self), "day": self.day.isoformat(), "hours": list(self.hours), "effect": round(self.effect, 3)}


@dataclass(slots=True)
class Planned:
    """A fault to be, and the day's count of what it touches without and with it."""

    kind: str
    campaign_id: int
    day: date
    hours: tuple[int, ...]
    factor: int
    without: int = 0
    with_it: int = 0

    @property
    def begins(self) -> datetime:
        """The day's first instant."""
        return datetime(self.day.year, self.day.month, self.day.day, tzinfo=UTC)

    @property
    def touches(self) -> str:
        """The table whose count tells the effect."""
        return "impressions" if self.kind in {"outage", "duplicates"} else "clicks"


@dataclass(slots=True)
class Injection:
    """The faults of one run; bends its events as they pass and counts what that changes."""

    planned: list[Planned] = field(default_factory=list)

    def bent(self, table: str, ids: Int64s, instants: Int64s) -> tuple[Int64s, Int64s]:
        """The events (campaign ids and microseconds since 1970) as they arrive."""
        times = np.ones(len(ids), dtype=np.int64)
        day = instants // model.DAY
        hour = instants // model.HOUR % 24
        for fault in self.planned:
            of_day = (ids == fault.campaign_id) & (day == (fault.day - _EPOCH).days)
            if fault.kind == "outage" or (fault.kind == "tracking_break" and table == "clicks"):
                times[of_day & np.isin(hour, fault.hours)] = 0
            elif fault.kind == "duplicates":
                times[of_day] = fault.factor
            if table == fault.touches:
                fault.without += int(of_day.sum())
                fault.with_it += int(times[of_day].sum())
        return np.repeat(ids, times), np.repeat(instants, times)

    def robots(self, rng: Generator) -> Iterator[tuple[Int64s, Int64s]]:
        """Clicks of robots, a fault at a time, once everything else has passed."""
        for fault in self.planned:
            if fault.kind != "bots":
                continue
            count = max((fault.factor - 1) * fault.without, 10)
            start = model.microseconds(fault.begins) + fault.hours[0] * model.HOUR
            instants = start + (rng.random(count) * len(fault.hours) * model.HOUR).astype(np.int64)
            fault.with_it += count
            yield np.full(count, fault.campaign_id, dtype=np.int64), instants

    def edits(self) -> list[Planned]:
        """Faults that edit a bid."""
        return [fault for fault in self.planned if fault.kind == "bid_edit"]

    def ledger(self) -> tuple[Fault, ...]:
        """What was done, once everything has passed."""
        return tuple(Fault(one.kind, one.campaign_id, one.day, one.hours, _effect(one)) for one in self.planned)


def _effect(fault: Planned) -> float:
    if fault.kind == "bid_edit":
        return float(fault.factor)
    more, less = max(fault.with_it, fault.without), min(fault.with_it, fault.without)
    return max(more, 1) / max(less, 1)


def plan(rng: Generator, kinds: Sequence[str], each: int, ids: Sequence[int], traffic: Rhythm) -> Injection:
    """`each` faults of each kind, on whole days of the last third of the period, so that each has days before it.

    Raises `BadInput` for a kind that is none, too few campaigns, or a period without a whole day.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise BadInput(f"There is no fault {kind!r}; the faults are {', '.join(KINDS)}.")
    if not kinds or not each:
        return Injection()
    if len(kinds) * each > len(ids):
        raise BadInput(
            f"{len(kinds) * each} faults need as many campaigns, and there are {len(ids)}: each has one of its own."
        )
    first, last = -(-int(traffic.edges[0]) // model.DAY), int(traffic.edges[-1]) // model.DAY
    if last <= first:
        raise BadInput("Faults lie on whole UTC days, and the period has none: ask for more --days.")
    days = np.arange(last - max((last - first) // 3, 1), last)
    chosen = rng.permutation(np.asarray(ids, dtype=np.int64))
    planned = []
    for place, kind in enumerate(kind for kind in kinds for _ in range(each)):
        day = _EPOCH + timedelta(days=int(rng.choice(days)))
        planned.append(Planned(kind, int(chosen[place]), day, _hours(rng, kind), int(rng.integers(4, 8))))
    return Injection(planned)


def _hours(rng: Generator, kind: str) -> tuple[int, ...]:
    if kind == "bots":
        length = int(rng.integers(1, 4))
    elif kind in {"outage", "tracking_break"}:
        length = int(rng.integers(19, 24))
    else:
        return _EVERY_HOUR
    start = int(rng.integers(0, 24 - length + 1))
    return tuple(range(start, start + length))
