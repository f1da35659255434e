"""The reporting calendar: which instants are which day. Pure: no clock, no servers, nothing of the operating system.

A reporting day D is the half-open interval from the first instant at which local clocks reach midnight of D (where they
leap over it, the instant of the leap) to that of D + 1. So days meet and never overlap, whatever local clocks do: a date
that a zone leaves out is an empty day, and one that begins twice begins once.

The data of zones is the `tzdata` package's, never the operating system's, which may be of another age on each machine.
Instants are microseconds since 1970 UTC, or aware datetimes.
"""

from __future__ import annotations

import io
import struct
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cache
from hashlib import sha256
from importlib import resources
from itertools import accumulate, pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo

import tzdata

from worker.errors import BadInput

SECOND = 1_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR
FIRST_DAY, LAST_DAY = date(1900, 1, 2), date(2299, 12, 30)
"""Days on which events can lie."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_FROM = int(datetime(1899, 12, 30, tzinfo=UTC).timestamp())
_UNTIL = int(datetime(2300, 1, 3, tzinfo=UTC).timestamp())
_STEP = 7 * 86_400
"""Seconds between two looks at a zone beyond the changes its file lists: rules have at most two changes a year."""


class Bounds(NamedTuple):
    """A reporting day as instants, `[lo, hi)` in UTC; both are equal where the zone leaves the day out."""

    lo: datetime
    hi: datetime


class Pieces(NamedTuple):
    """Days cut where they begin and where clocks change, in order: for statements that look up a moment's day and hour.

    A moment belongs to the last piece that does not begin after it. Its day is the piece's, counted from 1970-01-01; its
    local hour is the whole hours since the piece's `midnights`, modulo 24.
    """

    begins: list[int]
    days: list[int]
    midnights: list[int]


def _micros(at: datetime) -> int:
    if at.tzinfo is None:
        raise BadInput(f"{at.isoformat()} has no time zone, so it names no instant; add one, for example a final Z.")
    return (at - _EPOCH) // timedelta(microseconds=1)


def _instant(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)


def _number(day: date) -> int:
    return day.toordinal() - _EPOCH_ORDINAL


def _day(number: int) -> date:
    return date.fromordinal(number + _EPOCH_ORDINAL)


@dataclass(frozen=True, slots=True)
class Calendar:
    """A zone's days by one version of the zone data: from `starts[i]` on, clocks show UTC and `offsets[i]` seconds.

    The first offset also holds before its start.
    """

    zone: str
    version: str
    starts: tuple[int, ...]
    offsets: tuple[int, ...]
    _reach: list[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # How far local clocks have got by the end of each piece, at least; the last has none.
        ends = [end + offset * SECOND for end, offset in zip(self.starts[1:], self.offsets, strict=False)]
        object.__setattr__(self, "_reach", list(accumulate(ends, max)))

    @property
    def fingerprint(self) -> int:
        """A number of 64 bits that is the same where all days and hours are."""
        told = repr((self.starts, self.offsets)).encode()
        return int.from_bytes(sha256(told).digest()[:8], "big")

    def _piece(self, micros: int) -> int:
        return max(0, bisect_right(self.starts, micros) - 1)

    def begin(self, day: date) -> int:
        """The instant at which the day begins."""
        return self._begin(_number(day))

    def _begin(self, number: int) -> int:
        midnight = number * DAY
        piece = bisect_right(self._reach, midnight)
        reached = midnight - self.offsets[piece] * SECOND
        return max(self.starts[piece], reached) if piece else reached

    def bounds(self, day: date) -> Bounds:
        """The instants of the day. Raises `OverflowError` beyond the years 1 to 9999."""
        number = _number(day)
        return Bounds(_instant(self._begin(number)), _instant(self._begin(number + 1)))

    def day_of_micros(self, micros: int) -> date:
        """The day of an instant."""
        piece = self._piece(micros)
        local = micros + self.offsets[piece] * SECOND
        # Where clocks were set back, what they had reached before counts.
        return _day((max(local, self._reach[piece - 1] - 1) if piece else local) // DAY)

    def day_of(self, at: datetime) -> date:
        """The day of an instant. Raises `BadInput` for a naive datetime."""
        return self.day_of_micros(_micros(at))

    def hour_of_micros(self, micros: int) -> int:
        """The hour that local clocks show at an instant, 0 to 23."""
        return (micros + self.offsets[self._piece(micros)] * SECOND) % DAY // HOUR

    def days_of_hours(self, hours: Iterable[int]) -> set[date]:
        """The days that these UTC hours, counted from 1970, touch."""
        days: set[date] = set()
        for hour in hours:
            days.add(self.day_of_micros(hour * HOUR))
            days.add(self.day_of_micros((hour + 1) * HOUR - 1))
        return days

    def pieces(self, days: Sequence[date]) -> Pieces:
        """These days in pieces; days without any instant have none."""
        found: dict[int, tuple[int, int]] = {}
        for number in sorted({_number(day) for day in days}):
            lo, hi = self._begin(number), self._begin(number + 1)
            if lo == hi:
                continue
            inside = self.starts[bisect_right(self.starts, lo) : bisect_right(self.starts, hi - 1)]
            for begin in (lo, *inside):
                shown = (begin + self.offsets[self._piece(begin)] * SECOND) % DAY
                found[begin] = (number, begin - shown)
        return Pieces(list(found), [day for day, _ in found.values()], [midnight for _, midnight in found.values()])

    def alike(self, day: date, other: Calendar) -> bool:
        """Whether the day holds the same instants in both calendars, and the same hours."""
        number = _number(day)
        bounds = (self._begin(number), self._begin(number + 1))
        return bounds == (other._begin(number), other._begin(number + 1)) and self.pieces([day]) == other.pieces([day])

    def in_quarters(self, day: date) -> bool:
        """Whether the day is made of whole quarters of an hour of UTC."""
        number = _number(day)
        return not any(self._begin(n) % (HOUR // 4) for n in (number, number + 1))

    def begins(self) -> list[int]:
        """The instants at which each day from `FIRST_DAY` on begins, up to the end of `LAST_DAY`."""
        return [self._begin(number) for number in range(_number(FIRST_DAY), _number(LAST_DAY) + 2)]


@cache
def zones() -> frozenset[str]:
    """The names of all zones there are."""
    text = (resources.files("tzdata") / "zones").read_text(encoding="utf-8")
    return frozenset(text.split())


def _listed_changes(data: bytes) -> list[int]:
    """The seconds since 1970 at which a compiled zone file lists a change."""
    head = struct.Struct(">4sc15x6l")

    def counted(at: int) -> tuple[bytes, int, int, int, int, int, int]:
        _, version, *counts = head.unpack_from(data, at)
        return (version, *counts)

    version, utc, std, leap, times, types, letters = counted(0)
    begin, width = head.size, "l"
    if version != b"\0":
        begin += times * 5 + types * 6 + letters + leap * 8 + std + utc
        _, _, _, _, times, _, _ = counted(begin)
        begin, width = begin + head.size, "q"
    return list(struct.unpack_from(f">{times}{width}", data, begin))


def _offset(zone: ZoneInfo, second: int) -> int:
    shown = (_EPOCH + timedelta(seconds=second)).astimezone(zone).utcoffset()
    return 0 if shown is None else int(shown.total_seconds())


def _change(zone: ZoneInfo, lo: int, hi: int) -> int:
    """The first second after `lo`, up to `hi`, with another offset than `lo`, where `hi` has another."""
    before = _offset(zone, lo)
    while hi - lo > 1:
        middle = (lo + hi) // 2
        if _offset(zone, middle) == before:
            lo = middle
        else:
            hi = middle
    return hi


@cache
def own(zone: str) -> Calendar:
    """The calendar of a zone by the zone data that is installed here. Raises `BadInput` for a name there is not."""
    if zone not in zones():
        raise BadInput(f"{zone!r} is not an IANA time zone; use a name such as UTC or Europe/Paris.")
    data = resources.files("tzdata.zoneinfo").joinpath(*zone.split("/")).read_bytes()
    found = ZoneInfo.from_file(io.BytesIO(data), key=zone)
    listed = [second for second in _listed_changes(data) if _FROM < second < _UNTIL]
    looks = [_FROM, *listed, *range((listed[-1] if listed else _FROM) + 1, _UNTIL, _STEP), _UNTIL]
    starts, offsets = [_FROM], [_offset(found, _FROM)]
    known = frozenset(listed)
    for look, following in pairwise(looks):
        if following in known:
            if _offset(found, following) != offsets[-1]:
                starts.append(following)
                offsets.append(_offset(found, following))
            continue
        position = look
        while _offset(found, following) != offsets[-1]:
            position = _change(found, position, following)
            starts.append(position)
            offsets.append(_offset(found, position))
    return Calendar(zone, tzdata.IANA_VERSION, tuple(start * SECOND for start in starts), tuple(offsets))
