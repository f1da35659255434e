"""What a benchmark finds: samples, their ratios, and how a goal stands. Pure: no servers, no clock."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

State = Literal["ok", "failed", "not measured"]


@dataclass(frozen=True, slots=True)
class Line:
    """One case: its samples in `unit`, one a round, and their ratios to other cases, paired round by round.

    `state` is `failed` where the case did not end with source and target in agreement; then the samples say nothing.
    """

    group: str
    case: str
    unit: str
    samples: tuple[float, ...] = ()
    ratios: dict[str, tuple[float, ...]] = field(default_factory=dict)
    note: str = ""
    state: State = "ok"

    @property
    def median(self) -> float | None:
        """The middle sample, None without one."""
        return median(self.samples) if self.samples else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """The smallest and the largest sample."""
        return (min(self.samples), max(self.samples)) if self.samples else None

    def as_json(self) -> dict[str, Any]:
        """As `results.json` keeps it."""
        return {
            "group": self.group,
            "case": self.case,
            "state": self.state,
            "unit": self.unit,
            "median": self.median,
            "spread": self.spread,
            "samples": self.samples,
            "ratios": {name: {"median": median(values), "samples": values} for name, values in self.ratios.items()},
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal and the samples that speak for or against it; their median decides. Without samples it is open."""

    text: str
    bound: Literal["at least", "at most", "under"]
    limit: float
    unit: str
    samples: tuple[float, ...] = ()
    note: str = ""

    @property
    def measured(self) -> float | None:
        """What decides, None if it was not measured."""
        return median(self.samples) if self.samples else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met, None if it was not measured."""
        value = self.measured
        if value is None:
            return None
        if self.bound == "at least":
            return value >= self.limit
        return value < self.limit if self.bound == "under" else value <= self.limit

    def as_json(self) -> dict[str, Any]:
        """As `results.json` keeps it."""
        return {
            "goal": self.text,
            "bound": self.bound,
            "limit": self.limit,
            "unit": self.unit,
            "measured": self.measured,
            "samples": self.samples,
            "met": self.met,
            "note": self.note,
        }


@dataclass(slots=True)
class Findings:
    """What one case or several found."""

    lines: list[Line] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)

    def add(self, other: Findings) -> None:
        """Appends what another case found."""
        self.lines += other.lines
        self.goals += other.goals

    @property
    def failed(self) -> bool:
        """Whether a case did not end in agreement. A goal that is missed is a finding, not a failure."""
        return any(line.state == "failed" for line in self.lines)


def paired(numerators: Sequence[float], denominators: Sequence[float]) -> tuple[float, ...]:
    """Ratios of the samples of the same round; what one side lacks is left out. Raises `ValueError` for a zero."""
    if any(value == 0 for value in denominators):
        raise ValueError("a ratio to nothing")
    return tuple(one / other for one, other in zip(numerators, denominators, strict=False))


def percentile(samples: Iterable[float], share: float) -> float:
    """The smallest sample that `share` (0 to 1) of the samples do not exceed. Raises `ValueError` without samples."""
    ordered = sorted(samples)
    if not ordered:
        raise ValueError("no samples")
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def rotated(items: Sequence[str], by: int) -> list[str]:
    """`items` beginning `by` places later, so that over the rounds each comes after each other one."""
    by %= len(items) or 1
    return [*items[by:], *items[:by]]
