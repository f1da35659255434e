"""Interval arithmetic against the same thing done instant by instant."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import BadInput
from worker.ledger import Failure
from worker.pipeline import HOUR_MICROS, hours_of
from worker.planner import innermost
from worker.standing import uncovered
from worker.windows import (
    MICROSECOND,
    ORIGIN,
    Histogram,
    Window,
    contiguous_end,
    cut,
    format_instant,
    from_micros,
    gaps,
    merged,
    parse_instant,
    to_micros,
)

SPAN = 40


def at(micros: int) -> datetime:
    return ORIGIN + micros * MICROSECOND


windows = st.tuples(st.integers(0, SPAN - 1), st.integers(1, 12)).map(
    lambda pair: Window(at(pair[0]), at(min(SPAN, pair[0] + pair[1])))
)
many = st.lists(windows, max_size=12)


def instants(some: list[Window]) -> set[int]:
    return {micros for window in some for micros in range(to_micros(window.lo), to_micros(window.hi))}


@given(many)
def test_merging_keeps_every_instant_and_leaves_no_two_windows_that_meet(some: list[Window]) -> None:
    result = merged(some)
    assert instants(result) == instants(some)
    assert all(a.hi < b.lo for a, b in pairwise(result))


@given(many)
def test_the_contiguous_end_is_the_first_instant_nobody_holds(some: list[Window]) -> None:
    held = instants(some)
    expected = next(micros for micros in range(SPAN + 2) if micros not in held)
    assert to_micros(contiguous_end(some)) == expected


@given(windows, many)
def test_gaps_are_what_is_left(within: Window, taken: list[Window]) -> None:
    result = gaps(within, taken)
    assert instants(result) == instants([within]) - instants(taken)
    assert all(a.hi < b.lo for a, b in pairwise(result))


@given(windows, st.lists(st.integers(0, SPAN).map(at)))
def test_cut_pieces_meet_and_are_the_window(window: Window, boundaries: list[datetime]) -> None:
    pieces = cut(window, boundaries)
    assert pieces[0].lo == window.lo
    assert pieces[-1].hi == window.hi
    assert all(a.hi == b.lo for a, b in pairwise(pieces))
    assert {p.hi for p in pieces[:-1]} == {b for b in boundaries if window.lo < b < window.hi}


@given(windows)
def test_halves_meet_and_are_the_window(window: Window) -> None:
    halves = window.halves()
    if window.hi - window.lo == MICROSECOND:
        assert halves is None
    else:
        assert halves is not None
        assert halves[0].hi == halves[1].lo
        assert instants(list(halves)) == instants([window])


@given(st.datetimes(min_value=datetime(1900, 1, 1), max_value=datetime(2299, 12, 31)))  # noqa: DTZ001
def test_an_instant_survives_its_text_and_its_microseconds(naive: datetime) -> None:
    value = naive.replace(tzinfo=UTC)
    assert parse_instant(format_instant(value)) == value
    assert from_micros(to_micros(value)) == value


@pytest.mark.parametrize("text", ["2026-11-17T09:00:00", "yesterday", "", "2026-13-01T00:00:00Z"])
def test_text_that_names_no_instant_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        parse_instant(text)


def test_a_window_must_not_be_empty() -> None:
    with pytest.raises(BadInput, match="must end after it begins"):
        Window(at(5), at(5))


@given(
    seconds=st.lists(st.integers(0, 100_000), min_size=3, max_size=101).map(sorted),
    rows_between=st.floats(0.5, 100_000),
    lo=st.integers(-10, 100_000),
    length=st.integers(1, 200_000),
    rows=st.integers(1, 2_000_000),
    limit=st.integers(1, 10),
)
def test_edges_of_a_histogram_lie_inside_and_hold_about_the_rows_wanted(
    seconds: list[int], rows_between: float, lo: int, length: int, rows: int, limit: int
) -> None:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    bounds = tuple(begin + timedelta(seconds=second) for second in seconds)
    within = Window(begin + timedelta(seconds=lo), begin + timedelta(seconds=lo + length))
    edges, left = Histogram(bounds, rows_between).edges(within, rows, limit)
    assert len(edges) <= limit
    assert edges == sorted(set(edges))
    assert all(within.lo < edge < within.hi for edge in edges)
    assert set(edges) <= set(bounds[1:-1])
    assert 0 <= left <= rows_between * len(bounds)
    if edges and len(set(bounds)) == len(bounds):
        steps = [bounds.index(later) - bounds.index(earlier) for earlier, later in pairwise(edges)]
        assert all(rows / 2 <= step * rows_between <= rows for step in steps)


def test_a_histogram_too_coarse_for_the_rows_wanted_cuts_nothing() -> None:
    bounds = tuple(datetime(2026, 1, day, tzinfo=UTC) for day in range(1, 12))
    within = Window(bounds[0], bounds[-1])
    assert Histogram(bounds, 1000).edges(within, 1999, 5) == ([], 9000)
    assert Histogram(bounds, 1000).edges(within, 2000, 3) == ([bounds[3], bounds[5], bounds[7]], 3000)


@given(st.lists(st.integers(-(2**52), 2**53), min_size=1, max_size=50), st.integers(0, 30))
def test_hours_of_instants_close_together_or_centuries_apart_are_those_of_each(instants: list[int], days: int) -> None:
    near = [instants[0] + n * 24 * HOUR_MICROS for n in range(days)]
    for some in (instants, near or instants):
        assert hours_of(np.array(some, dtype=np.int64)) == {instant // HOUR_MICROS for instant in some}


def failed(some: list[Window]) -> list[Failure]:
    return [Failure(window, 1, ORIGIN, "", ORIGIN) for window in dict.fromkeys(some)]


@given(many)
def test_the_innermost_failures_are_those_within_which_no_other_window_failed(some: list[Window]) -> None:
    expected = {
        window for window in some if not any(o != window and window.lo <= o.lo and o.hi <= window.hi for o in some)
    }
    assert [failure.window for failure in innermost(failed(some))] == sorted(expected)


@given(many, many)
def test_a_failure_counts_until_its_window_is_held_whole(some: list[Window], held: list[Window]) -> None:
    expected = [window for window in dict.fromkeys(some) if not instants([window]) <= instants(held)]
    assert [failure.window for failure in uncovered(failed(some), held)] == expected
