"""The arithmetic of comparisons, and what is held a defect."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker import reconcile
from worker.calendar import own
from worker.columns import EARLIEST, LATEST
from worker.errors import BadInput
from worker.reconcile import Defect, Event, by_day, days_within, differing, quarter_start, verdict
from worker.streams import STREAMS, Extra
from worker.tasks.reconcile import runs_of_days
from worker.windows import from_micros, to_micros

HORIZON = datetime(2026, 11, 20, 12, tzinfo=UTC)
BEFORE = to_micros(HORIZON) - 1
SUMS = st.tuples(*[st.integers(0, 2**64 - 1)] * 4)
SIDES = st.dictionaries(st.integers(0, 50), SUMS)


def place_of(at: datetime) -> int:
    """As both databases compute it."""
    return (to_micros(at) + 2_208_988_800_000_000) // 900_000_000


@given(SIDES, SIDES)
def test_exactly_the_places_that_differ_are_named(
    ours: dict[int, tuple[int, ...]], theirs: dict[int, tuple[int, ...]]
) -> None:
    found = differing([(k, *v) for k, v in ours.items()], [(k, *v) for k, v in theirs.items()])
    assert found == [place for place in range(51) if ours.get(place) != theirs.get(place)]


@given(SIDES)
def test_sums_that_wrapped_on_one_side_only_are_equal(sides: dict[int, tuple[int, ...]]) -> None:
    # PostgreSQL adds up exactly, ClickHouse wraps to a signed number of 64 bits.
    exact = [(place, count, *(value + 2**64 * 3 for value in rest)) for place, (count, *rest) in sides.items()]
    wrapped = [
        (place, count, *(v - 2**64 if v >= 2**63 else v for v in rest)) for place, (count, *rest) in sides.items()
    ]
    assert differing(exact, wrapped) == []


@given(st.integers(EARLIEST, LATEST - 1))
def test_a_place_begins_at_the_quarter_of_an_hour(micros: int) -> None:
    at = from_micros(micros)
    begin = quarter_start(place_of(at))
    assert begin <= at < begin + timedelta(minutes=15)
    assert begin.minute % 15 == 0
    assert (begin.second, begin.microsecond) == (0, 0)


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"])
def test_quarters_add_up_to_reporting_days(zone: str) -> None:
    begin = place_of(datetime(2026, 3, 20, tzinfo=UTC))
    rows = [(begin + number, 1, number, 0, 7, number, number) for number in range(96 * 30)]
    days = by_day(rows, own(zone))
    assert sum(count for count, *_ in days.values()) == 96 * 30
    for day, (count, *_) in list(days.items())[1:-1]:
        within = days_within(day, day, own(zone))
        assert count * timedelta(minutes=15) == within.hi - within.lo


def test_days_that_are_none_are_refused() -> None:
    with pytest.raises(BadInput, match="before the first"):
        days_within(date(2026, 1, 2), date(2026, 1, 1), own("UTC"))
    for day in (date.min, date.max, date(1899, 1, 1), date(2300, 1, 1)):
        with pytest.raises(BadInput, match="Days lie between"):
            days_within(day, day, own("Asia/Tokyo"))


HERE = Event(5, 1000, BEFORE)


@pytest.mark.parametrize(
    ("source", "target", "copies", "held", "cause"),
    [
        (HERE, HERE, 1, False, None),
        (None, None, 1, False, None),
        (None, HERE, 1, False, "extra"),
        (HERE, None, 0, False, "missing"),
        (HERE, None, 1, True, None),
        (HERE, Event(6, 1000, BEFORE), 1, False, "stale"),
        (HERE, Event(5, 1001, BEFORE), 1, False, "stale"),
        (Event(5, None, BEFORE), HERE, 1, False, "stale"),
        (Event(5, None, BEFORE), None, 1, False, None),
        (HERE, HERE, 2, False, "duplicate"),
        (HERE, Event(6, 1000, BEFORE), 2, False, "duplicate"),
        # Written at the horizon or later: on its way.
        (Event(6, 1000, BEFORE + 1), HERE, 1, False, None),
        (Event(6, 1000, BEFORE + 1), None, 0, False, None),
        # Only the time of writing differs: the same event for every purpose.
        (HERE, Event(5, 1000, BEFORE - 5), 1, False, None),
    ],
)
def test_verdict(source: Event | None, target: Event | None, copies: int, held: bool, cause: str | None) -> None:
    assert verdict(source, target, copies, HORIZON, held=held) == cause


@given(st.sets(st.dates(date(2026, 1, 1), date(2026, 2, 1))))
def test_runs_of_days_hold_each_day_once(days: set[date]) -> None:
    runs = runs_of_days(sorted(days))
    held = [first + timedelta(days=n) for first, last in runs for n in range((last - first).days + 1)]
    assert held == sorted(days)
    assert all(later[0] - earlier[1] > timedelta(days=1) for earlier, later in pairwise(runs))


def test_constants_agree_with_each_other() -> None:
    assert quarter_start(reconcile.QUARTERS_TO_1970) == datetime(1970, 1, 1, tzinfo=UTC)


def test_what_would_lose_columns_or_belongs_in_quarantine_is_left_to_a_replay() -> None:
    plain = STREAMS["impressions"]
    wide = replace(plain, extra=(Extra("device", "String"),))
    stale = Defect(1, "stale", HERE, HERE, 1)
    extra = Defect(1, "extra", None, HERE, 1)
    endless = Defect(1, "stale", Event(5, None, BEFORE), HERE, 1)
    assert [reconcile.mendable(plain, defect) for defect in (stale, extra, endless)] == [True, True, False]
    assert [reconcile.mendable(wide, defect) for defect in (stale, extra, endless)] == [False, True, False]
