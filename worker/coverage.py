"""Which commits of the ledger count, and what checkpoints prove. Pure: no clock, no servers.

A commit says that a window of a stream is in a table, whole. What was read in one generation of the source (one server
and timeline) counts in later ones only as far as each of them lets it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from worker.windows import ORIGIN, Window, contiguous_end

CHECKPOINT_AFTER = 256
"""Commits beyond the last checkpoint after which another is written, so that reading the ledger stays cheap."""

CHECKPOINT_AGE = timedelta(days=1)
"""A checkpoint is also written for a commit that is older than that, because the ledger does not keep commits for ever, and
where the watermark lies so far ahead of the last one, because what lies between them is read at every look."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A source server and timeline; `rewind_to` is how far commits of earlier generations still count."""

    number: int
    system_id: int
    timeline: int
    rewind_to: datetime


@dataclass(frozen=True, slots=True)
class Commit:
    """A window loaded, with the generation it was read in."""

    window: Window
    generation: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a table holds of a stream: the windows that count, and how many commits it took to say so.

    `base` is how far checkpoints say so; `settled` that a commit beyond it is older than `CHECKPOINT_AGE`.
    """

    windows: tuple[Window, ...] = ()
    commits: int = 0
    base: datetime = ORIGIN
    settled: bool = False

    @property
    def watermark(self) -> datetime:
        """The end of the contiguous run from the origin."""
        return contiguous_end(self.windows)

    @property
    def wants_checkpoint(self) -> bool:
        """Whether another checkpoint would spare reading commits, or outlive some that are about to expire."""
        ahead = self.watermark - self.base
        return bool(ahead) and (self.commits > CHECKPOINT_AFTER or self.settled or ahead > CHECKPOINT_AGE)


def limit_of(generation: int, generations: Sequence[Generation]) -> datetime | None:
    """How far commits of a generation still count: up to every later one's `rewind_to`. None where none followed."""
    return min((later.rewind_to for later in generations if later.number > generation), default=None)


def base_of(checkpoints: Mapping[int, datetime], generations: Sequence[Generation]) -> datetime:
    """How far checkpoints, one of each generation at most, prove a table to be whole.

    A checkpoint of a generation says that, as of that generation, the commits there were reach so far without a gap.
    Generations that followed take back what lies behind their `rewind_to`, of commits as of checkpoints, and nothing
    before it. So each proves what lies before both, whatever became of its commits, and the furthest counts. Every
    commit that ends before that adds nothing to it, and may be left out or be gone.
    """
    proven = [min(until, limit_of(number, generations) or until) for number, until in checkpoints.items()]
    return max(proven, default=ORIGIN)


def effective(commits: Iterable[Commit], generations: Sequence[Generation]) -> list[Window]:
    """The windows that count: a commit of an earlier generation only up to every later one's `rewind_to`."""
    result: list[Window] = []
    for commit in commits:
        limit = limit_of(commit.generation, generations)
        window = commit.window
        if limit is not None and window.hi > limit:
            if window.lo >= limit:
                continue
            window = Window(window.lo, limit)
        result.append(window)
    return result
