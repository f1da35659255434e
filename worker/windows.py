"""Half-open intervals of time and the arithmetic the planner and the ledger need. Pure: no clock, no servers.

An instant is an aware datetime in UTC with microseconds, the resolution of PostgreSQL. A window `[lo, hi)` holds the
rows whose `inserted_at` satisfies `lo <= inserted_at < hi`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from worker.errors import BadInput

ORIGIN = datetime(1970, 1, 1, tzinfo=UTC)
"""Where every stream's first window begins."""

MICROSECOND = timedelta(microseconds=1)


def instant(value: datetime) -> datetime:
    """`value` in UTC. Raises `BadInput` for a naive datetime: it names no instant."""
    if value.tzinfo is None:
        raise BadInput(f"{value.isoformat()} has no time zone, so it names no instant; add one, for example a final Z.")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise BadInput(f"{value.isoformat()} is outside the years 1 to 9999 in UTC.") from None


def parse_instant(text: str) -> datetime:
    """An ISO 8601 instant, zone required. Raises `BadInput`."""
    try:
        value = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise BadInput(f"{text!r} is not an instant; write it like 2026-11-17T09:00:00Z.") from None
    return instant(value)


def format_instant(value: datetime) -> str:
    """ISO 8601 with microseconds and a final Z: sorts as text in time order."""
    return instant(value).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def to_micros(value: datetime) -> int:
    """Microseconds since 1970-01-01 UTC, exact."""
    return (instant(value) - ORIGIN) // MICROSECOND


def from_micros(value: int) -> datetime:
    """The instant `value` microseconds after 1970-01-01 UTC."""
    return ORIGIN + timedelta(microseconds=value)


@dataclass(frozen=True, order=True, slots=True)
class Window:
    """`[lo, hi)` on `inserted_at`. Raises `BadInput` if it is empty or its ends have no zone."""

    lo: datetime
    hi: datetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "lo", instant(self.lo))
        object.__setattr__(self, "hi", instant(self.hi))
        if self.lo >= self.hi:
            raise BadInput(f"A window must end after it begins, not [{self.lo.isoformat()}, {self.hi.isoformat()}).")

    @classmethod
    def parse(cls, lo: str, hi: str) -> Window:
        """A window from two ISO 8601 instants. Raises `BadInput`."""
        return cls(parse_instant(lo), parse_instant(hi))

    def __str__(self) -> str:
        return f"{format_instant(self.lo)}/{format_instant(self.hi)}"

    def kwargs(self) -> dict[str, Any]:
        """The window as JSON task arguments."""
        return {"lo": format_instant(self.lo), "hi": format_instant(self.hi)}

    def overlaps(self, other: Window) -> bool:
        """Whether some instant lies in both."""
        return self.lo < other.hi and other.lo < self.hi

    def halves(self) -> tuple[Window, Window] | None:
        """Two windows that meet in the middle, or None where the window is a single microsecond."""
        middle = self.lo + (self.hi - self.lo) // 2
        if middle <= self.lo:
            return None
        return Window(self.lo, middle), Window(middle, self.hi)


def merged(windows: Iterable[Window]) -> list[Window]:
    """The same instants as `windows`, as the fewest windows, in order."""
    result: list[Window] = []
    for window in sorted(windows):
        if result and window.lo <= result[-1].hi:
            if window.hi > result[-1].hi:
                result[-1] = Window(result[-1].lo, window.hi)
        else:
            result.append(window)
    return result


def contiguous_end(windows: Iterable[Window], start: datetime = ORIGIN) -> datetime:
    """The first instant at or after `start` that no window holds: the watermark of a set of commits."""
    end = start
    for window in merged(windows):
        if window.lo > end:
            break
        end = max(end, window.hi)
    return end


def gaps(within: Window, taken: Iterable[Window]) -> list[Window]:
    """The parts of `within` that no window of `taken` holds, in order."""
    result: list[Window] = []
    position = within.lo
    for window in merged(taken):
        if window.hi <= position:
            continue
        if window.lo >= within.hi:
            break
        if window.lo > position:
            result.append(Window(position, window.lo))
        position = window.hi
        if position >= within.hi:
            return result
    result.append(Window(position, within.hi))
    return result


def cut(window: Window, boundaries: Sequence[datetime]) -> list[Window]:
    """`window` cut at each boundary inside it; the pieces meet and together are the window."""
    edges = [window.lo, *sorted({b for b in boundaries if window.lo < b < window.hi}), window.hi]
    return [Window(lo, hi) for lo, hi in pairwise(edges)]


@dataclass(frozen=True, slots=True)
class Histogram:
    """What PostgreSQL's statistics say of a column: between two adjoining bounds lie about `rows_between` rows."""

    bounds: tuple[datetime, ...]
    rows_between: float

    def edges(self, within: Window, rows: int, limit: int) -> tuple[list[datetime], int]:
        """Up to `limit` bounds that cut the window into pieces of about `rows` rows, and how many rows lie between
        the last edge (or the beginning) and the last bound.

        No bounds where a piece holds less than two steps of the histogram: it is too coarse for that.
        """
        steps = int(rows / self.rows_between)
        position = bisect_right(self.bounds, within.lo)
        last = len(self.bounds) - 1
        found: list[datetime] = []
        # What would be a small last piece stays with the one before it.
        while steps >= 2 and len(found) < limit and position + steps + steps // 2 <= last:
            position += steps
            edge = self.bounds[position]
            if edge >= within.hi:
                break
            if edge > (found[-1] if found else within.lo):
                found.append(edge)
        return found, int(max(0, last - position) * self.rows_between)
