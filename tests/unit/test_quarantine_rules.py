"""Which rows a cleansing rule finds, and what is done with them."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker import rules
from worker.config import load
from worker.errors import BadInput
from worker.source import EventColumns

SECOND = 1_000_000
NOW = 1_800_000_000 * SECOND
rows = st.lists(st.tuples(st.integers(0, 3), st.integers(-2000, 2000), st.integers(0, 1000)), max_size=30)


def columns(given: list[tuple[int, int, int]]) -> EventColumns:
    campaign, created, inserted = (np.array([row[i] for row in given], np.int64) for i in range(3))
    return EventColumns(np.arange(len(given)), campaign, NOW + created * SECOND, NOW + inserted * SECOND)


@given(given_rows=rows, tolerance=st.integers(0, 500))
def test_rules_find_the_rows_their_definition_says(given_rows: list[tuple[int, int, int]], tolerance: int) -> None:
    settings = load(
        cleansing={"future": "quarantine", "no campaign": "flag", "too old": "load"},
        cleansing_future_seconds=tolerance,
    )
    condemned, flagged = rules.judge(settings, columns(given_rows))
    future = [created > inserted + tolerance for _, created, inserted in given_rows]
    without = [campaign == 0 for campaign, _, _ in given_rows]
    assert [(name.partition(":")[0], list(found)) for name, found in condemned] == (
        [("future", future)] if any(future) else []
    )
    assert [(name.partition(":")[0], list(found)) for name, found in flagged] == (
        [("no campaign", without)] if any(without) else []
    )


def test_too_old_is_before_the_first_day() -> None:
    settings = load(cleansing={"too old": "quarantine"}, cleansing_earliest=date(2027, 1, 15))
    # NOW is 2027-01-15 08:00.
    ((_, found),) = rules.judge(settings, columns([(1, -28_801, 0), (1, -28_800, 0), (1, 0, 0)]))[0]
    assert list(found) == [True, False, False]


def test_without_rules_the_rows_are_not_looked_at() -> None:
    class Untouchable:
        def __getattr__(self, name: str) -> object:
            raise AssertionError(name)

    assert rules.judge(load(), Untouchable()) == ([], [])  # type: ignore[arg-type]
    assert rules.judge(load(cleansing={"future": "load"}), Untouchable()) == ([], [])  # type: ignore[arg-type]


def test_a_rule_there_is_not_is_refused() -> None:
    with pytest.raises(BadInput, match="too old"):
        rules.actions(load(cleansing={"to old": "flag"}))
