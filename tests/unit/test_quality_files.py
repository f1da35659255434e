"""What a check file says of itself, how its parameters are filled in, and which days a round looks at."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker import config, quality
from worker.errors import BadInput

SETTINGS = config.load()
ALL = quality.checks(SETTINGS)
THROUGH = {"impressions": datetime(2026, 11, 20, tzinfo=UTC), "clicks": datetime(2026, 11, 21, tzinfo=UTC)}


@pytest.mark.parametrize("check", ALL, ids=lambda check: check.name)
def test_a_file_says_what_it_is(check: quality.Check) -> None:
    assert check.fault == ""
    assert check.question.endswith("?")
    assert check.owner
    assert check.todo.endswith(".")
    assert check.grain
    place = r"current_setting\('check\.(\w+)'\)" if check.asks == "source" else r"\{(\w+):"
    assert set(re.findall(place, check.statement)) == set(check.thresholds)
    filled = quality.filled(check, SETTINGS, quality.supplied(SETTINGS, THROUGH))
    assert "{" not in filled
    assert "current_setting" not in filled


def test_a_threshold_of_the_settings_outranks_the_runner_and_the_file() -> None:
    (lag,) = quality.chosen(SETTINGS, ["load_lag"])
    assert "'300'" in quality.filled(lag, SETTINGS, quality.supplied(SETTINGS, THROUGH))
    mine = SETTINGS.model_copy(update={"check_thresholds": {"load_lag": {"max_lag_seconds": 7}}})
    assert "'7'" in quality.filled(lag, mine, quality.supplied(mine, THROUGH))


def test_a_value_cannot_leave_its_place() -> None:
    mine = SETTINGS.model_copy(
        update={
            "check_thresholds": {
                "ctr_ceiling": {"max_ctr": "0'); DROP TABLE x; --"},
                "source/freshness": {"max_silence_seconds": "0'); DROP TABLE x; --"},
            }
        }
    )
    target, source = quality.chosen(mine, ["ctr_ceiling", "source/freshness"])
    assert "\\'); DROP" in quality.filled(target, mine, {})
    assert "''); DROP" in quality.filled(source, mine, {})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("SELECT 1", "question"),
        ("-- Why?\nSELECT 1", "Severity"),
        ("-- Why?\n-- Severity: bad\n-- Owner: us\n-- Do: this.\nSELECT 1", "'bad'"),
        ("-- Why?\n-- Severity: warn\n-- Owner: us\n-- Do: this.\nSELECT {a:UInt8}", "'a'"),
        ("-- Why?\n-- Severity: warn\n-- Owner: us\n-- Do: this.\nSELECT 1", ""),
    ],
)
def test_a_file_that_is_no_check_says_why(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "mine.sql"
    path.write_text(text)
    found = quality.read(path)
    assert (fault in found.fault) if fault else found.fault == ""


days = st.lists(st.dates(date(2020, 1, 1), date(2027, 1, 1)), max_size=40)


@given(days=days, limit=st.integers(1, 5))
def test_ranges_hold_every_day_in_few_runs(days: list[date], limit: int) -> None:
    found = quality.ranges(days, limit)
    assert len(found) <= limit
    assert all(lo <= hi for lo, hi in found)
    assert all(first[1] < second[0] for first, second in pairwise(found))
    assert all(any(lo <= day <= hi for lo, hi in found) for day in days)
    # Each run begins and ends with a day that was asked for.
    assert {end for run in found for end in run} <= set(days)


def test_days_far_apart_are_not_joined_while_there_is_room() -> None:
    recent = [date(2026, 11, 20) + timedelta(days=n) for n in range(4)]
    assert quality.ranges([date(2025, 1, 1), *recent]) == (
        (date(2025, 1, 1), date(2025, 1, 1)),
        (recent[0], recent[-1]),
    )


def test_unreadable_json_in_a_setting_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHECK_THRESHOLDS", "{not json")
    with pytest.raises(BadInput, match="check_thresholds"):
        config.load()


def test_a_promise_follows_the_schedule_and_the_setting() -> None:
    assert SETTINGS.promise("clicks") == (timedelta(seconds=60), timedelta(seconds=300))
    daily = SETTINGS.model_copy(update={"schedule_profile": "daily", "freshness": {"clicks": (10, 20)}})
    assert daily.promise("impressions")[0] == timedelta(hours=26)
    assert daily.promise("clicks") == (timedelta(seconds=10), timedelta(seconds=20))
