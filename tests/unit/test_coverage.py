"""Checkpoints hide commits and change nothing: proven against the definition that looks at every commit."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from worker.coverage import CHECKPOINT_AFTER, CHECKPOINT_AGE, Commit, Coverage, Generation, base_of, effective
from worker.windows import MICROSECOND, ORIGIN, Window, contiguous_end, merged

DAY = 24


def at(hours: int) -> datetime:
    return ORIGIN + timedelta(hours=hours)


@dataclass
class History:
    """A ledger as it grows, with every checkpoint written on the way."""

    commits: list[Commit] = field(default_factory=list)
    generations: list[Generation] = field(default_factory=lambda: [Generation(1, 1, 1, ORIGIN)])
    checkpoints: dict[int, datetime] = field(default_factory=dict)

    @property
    def windows(self) -> list[Window]:
        return merged(effective(self.commits, self.generations))

    @property
    def watermark(self) -> datetime:
        return contiguous_end(self.windows)

    def hidden(self) -> list[Window]:
        """What the ledger says when it looks at checkpoints first, and at no commit that ends before them."""
        base = base_of(self.checkpoints, self.generations)
        rest = [commit for commit in self.commits if commit.window.hi >= base]
        return merged([*([Window(ORIGIN, base)] if base > ORIGIN else []), *effective(rest, self.generations)])

    def play(self, step: tuple[str, int, int]) -> None:
        what, first, length = step
        newest = self.generations[-1].number
        match what:
            case "commit":
                self.commits.append(Commit(Window(at(first), at(first + length)), newest))
            case "next":
                # What a planner hands out: the window that begins at the watermark.
                lo = self.watermark
                self.commits.append(Commit(Window(lo, lo + timedelta(hours=length)), newest))
            case "zombie":
                # Read in a generation that has ended by the time it is committed.
                self.commits.append(Commit(Window(at(first), at(first + length)), 1 + first % newest))
            case "checkpoint":
                before = self.checkpoints.get(newest, ORIGIN)
                self.checkpoints[newest] = max(before, self.watermark)
            case "generation":
                self.generations.append(Generation(newest + 1, 1, newest + 1, at(first)))


STEPS = st.tuples(
    st.sampled_from(["commit", "next", "next", "zombie", "checkpoint", "generation"]),
    st.integers(0, 40),
    st.integers(1, 12),
)


@given(st.lists(STEPS, max_size=40))
def test_hiding_commits_behind_the_base_changes_nothing(steps: list[tuple[str, int, int]]) -> None:
    history = History()
    for step in steps:
        history.play(step)
        assert history.hidden() == history.windows
        assert contiguous_end(history.hidden()) == history.watermark


def test_a_checkpoint_that_ignores_later_generations_would_be_wrong() -> None:
    history = History()
    for step in (("next", 0, 12), ("checkpoint", 0, 1), ("generation", 4, 1)):
        history.play(step)
    assert history.checkpoints == {1: at(12)}
    assert base_of(history.checkpoints, history.generations) == at(4) == history.watermark


def test_a_checkpoint_of_a_generation_that_ended_still_proves_what_lies_before_every_later_limit() -> None:
    generations = [Generation(number, 1, number, at(hours)) for number, hours in ((1, 0), (2, 10), (3, 7))]
    assert base_of({1: at(20), 2: at(30)}, generations) == at(7)
    assert base_of({1: at(5), 2: at(30), 3: at(6)}, generations) == at(7)
    assert base_of({1: at(5)}, generations) == at(5)
    assert base_of({}, generations) == ORIGIN


def test_when_another_checkpoint_is_worth_it() -> None:
    def covered(ahead: timedelta, **told: object) -> bool:
        windows = (Window(ORIGIN, at(DAY) + ahead),)
        return Coverage(windows, base=at(DAY), **told).wants_checkpoint  # type: ignore[arg-type]

    assert not covered(MICROSECOND, commits=CHECKPOINT_AFTER)
    assert covered(MICROSECOND, commits=CHECKPOINT_AFTER + 1)
    assert covered(MICROSECOND, settled=True)
    assert covered(CHECKPOINT_AGE + MICROSECOND)
    assert not covered(timedelta(0), commits=CHECKPOINT_AFTER + 1, settled=True), "it would say the same once more"
