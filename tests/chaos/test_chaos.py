"""The promise under fault, as far as a test run has time for it, and the schedule the harness plays."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedded.stack import SERVICES
from tests.chaos import hunt, lanes, outage, soak
from tests.chaos.faults import FAULTS
from tests.chaos.mutants import MUTANTS
from tests.chaos.run import CHAPTER, Report, cut, longest_first, percentile, schedule
from tests.processes import ROOT

SEED = 12


@given(seed=st.integers(0, 10**6), count=st.integers(1, 300))
def test_a_seed_names_the_whole_schedule(seed: int, count: int) -> None:
    steps = schedule(seed, count)
    assert steps == schedule(seed, count)
    assert sum(len(step.faults) for step in steps) == count
    for step in steps:
        drawn = [FAULTS[name] for name, _ in step.faults]
        assert len({one.subject for one in drawn}) == len(drawn)
        if len(drawn) > 1 and any(one.progress for one in drawn):
            assert not {one.subject for one in drawn} & set(SERVICES)
    chapters = cut(steps, count)
    assert [step for chapter in chapters for step in chapter] == steps
    assert all(sum(len(step.faults) for step in chapter) <= CHAPTER + 1 for chapter in chapters)
    assert all(later.number == earlier.number + 1 for earlier, later in pairwise(steps))
    order = longest_first(chapters)
    assert sorted(order) == list(range(1, len(chapters) + 1))
    huge = [any(name == "huge transaction" for step in chapters[n - 1] for name, _ in step.faults) for n in order]
    assert huge == sorted(huge, reverse=True)


def test_a_long_run_holds_every_kind() -> None:
    played = Counter(name for step in schedule(SEED, 1000) for name, _ in step.faults)
    assert set(FAULTS) - set(played) <= {name for name, one in FAULTS.items() if one.weight <= 0.2}


APPLY = """
import os
from tests.chaos import mutants, points
for name in ("", *mutants.MUTANTS):
    child = os.fork()
    if not child:
        mutants.apply(name)
        points.install()
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        raise SystemExit(f"mutant {name or 'none'} cannot be applied")
"""


def test_steps_and_mutants_patch_what_is_there(tmp_path: Path) -> None:
    environment = {**os.environ, "CHAOS_FOLDER": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", APPLY], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert {name for mutant in MUTANTS.values() for name in mutant.faults} <= set(FAULTS)


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_a_value_that_enough_do_not_exceed(values: list[float], part: float) -> None:
    found = percentile(values, part)
    assert found in values
    assert sum(value <= found for value in values) >= int(part * 1000) / 1000 * len(values) - 1e-9


def test_a_report_survives_the_way_from_one_process_to_another() -> None:
    report = Report(1, 2, faults=Counter({"zombie": 2}), violations=["lost: 1"], convergence=[1.5])
    assert Report.from_json(report.to_json()) == report
    total = Report(1, 4)
    total.add(report)
    total.add(report)
    assert (total.faults["zombie"], total.good, total.convergence) == (4, False, [1.5, 1.5])


@given(st.floats(0, 500), st.integers(9, 60), st.floats(0.02, 1))
def test_a_soak_sees_a_leak_and_no_leak(base: float, count: int, leak: float) -> None:
    # Levels are not growth, a spike is not either, and what is warming up is not looked at.
    level = [{"memory of worker": base} for _ in range(count)]
    level[-1] = {"memory of worker": base + 1000}
    level[0] = {"memory of worker": 0.0}
    assert [one.flat for one in soak.judged(level)] == [True]
    # A leak that in a third of the run comes to more than is allowed, by as much as `leak` says.
    each = (3.0 + 0.02 * base) / (count // 3) * (1.05 + leak)
    (found,) = soak.judged([{"memory of worker": base + each * position} for position in range(count)])
    assert not found.flat


@pytest.mark.timeout(900)
def test_forty_faults_lose_no_row_and_double_none() -> None:
    chapters = range(1, len(cut(schedule(SEED, 40), 40)) + 1)
    commands = [["--seed", str(SEED), "--faults", "40", "--chapter", str(number)] for number in chapters]
    report = Report(SEED, 40)
    for played in lanes.play(commands, 3, tell=print):
        report.add(played)
    assert report.good, report.text()
    assert sum(report.faults.values()) >= 35, report.text()
    assert report.rows_compared > 10_000
    assert (report.rows_lost, report.rows_doubled) == (0, 0)


@pytest.mark.timeout(900)
def test_a_harness_that_misses_a_mutant_would_be_noticed() -> None:
    hunted = hunt.hunt(["unmerged"], seed=SEED, lanes=2, tell=print)
    assert hunt.good(hunted), hunt.text(hunted)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_every_mutant_is_caught() -> None:
    hunted = hunt.hunt(list(MUTANTS), seed=SEED, lanes=3, tell=print)
    assert hunt.good(hunted), hunt.text(hunted)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_everybody_comes_back_to_a_server_that_was_away() -> None:
    reports = outage.outages(60, seed=SEED, lanes=3, tell=print)
    assert all(one.good for one in reports), outage.text(60, reports)
    assert all(one.rows_compared > 500 for one in reports)
