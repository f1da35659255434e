"""What failed is tried again, later each time: the rule for that, and which days' metrics cannot be built just now."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

from worker.sql import chunks
from worker.windows import ORIGIN, instant

if TYPE_CHECKING:
    from worker.ledger import Failure
    from worker.sink import Sink
    from worker.streams import Stream

SHARE = 10
"""A day whose attempt took long rests so many times as long, so that others need not wait behind it all the time."""

ROWS_AT_ONCE = 10_000

FAILURES_TO_TELL = 3
"""Failures of one window or day from which somebody is told; the first ones often pass."""


def backoff(failures: int) -> timedelta:
    """How long what failed so often rests: 1 s, doubling, five minutes at most."""
    return timedelta(seconds=min(300, 2 ** min(failures - 1, 10)))


@dataclass(frozen=True, slots=True)
class DayFailure:
    """A day whose metrics could not be built `count` times since they last were, `recent` of them since it was asked for.

    First and last at these instants, the last time for `error` after `seconds`; `now` is the server's clock when asked.
    """

    day: date
    count: int
    recent: int
    first: datetime
    last: datetime
    error: str
    seconds: float
    now: datetime

    def due(self, *, for_run: bool = False) -> bool:
        """Whether it may be tried again. For a run that waits, at once where it has not failed since the run began."""
        if for_run:
            return not self.recent or self.now >= self.last + backoff(self.recent)
        return self.now >= self.last + max(backoff(self.count), timedelta(seconds=SHARE * self.seconds))


def failing_days(sink: Sink, since: datetime = ORIGIN) -> dict[date, DayFailure]:
    """Every day that failed and was not built since; `recent` counts what happened since then, by ClickHouse's clock."""
    return {
        day: DayFailure(day, count, recent, instant(first), instant(last), error, seconds, instant(now))
        for day, count, recent, first, last, error, seconds, now in sink.named("days", "failing", {"since": since})
    }


def note_failed_day(sink: Sink, day: date, error: str, seconds: float) -> None:
    """Records that the day could not be built, and why."""
    columns = ("date_id", "outcome", "error", "seconds")
    # Without a token of its own, a failure like the one before would count as that one sent again.
    token = f"failed/{secrets.token_hex(8)}"
    sink.insert_rows("day_attempts", columns, [(day, "failed", error[:1000], seconds)], token=token)


def note_built_days(sink: Sink, days: Iterable[date]) -> None:
    """Records that days that failed before were built."""
    for some in chunks(sorted(days), ROWS_AT_ONCE):
        token = f"built/{secrets.token_hex(8)}"
        sink.insert_rows("day_attempts", ("date_id", "outcome"), [(day, "built") for day in some], token=token)


def to_tell(stream: Stream, failures: Iterable[Failure]) -> list[Failure]:
    """Those of a stream's failures that somebody should be told of. A dimension is read so rarely that each is one."""
    least = 1 if stream.kind == "dimension" else FAILURES_TO_TELL
    return [failure for failure in failures if failure.count >= least]


def told_failure(stream: Stream, failure: Failure) -> str:
    """What failed, since when and why, for people."""
    if stream.kind == "dimension":
        return f"{stream.name} cannot be read, {_tried(failure.count, failure.first)}: {failure.error}"
    since = f" since {_at(failure.first)}" if failure.first > ORIGIN else ""
    return f"{stream.name} {failure.window} failed {_times(failure.count)}{since}: {failure.error}"


def told_day(failure: DayFailure) -> str:
    """The same of a day."""
    return f"The metrics of {failure.day} cannot be built, {_tried(failure.count, failure.first)}: {failure.error}"


def _tried(count: int, first: datetime) -> str:
    return f"tried {_times(count)} since {_at(first)}"


def _times(count: int) -> str:
    return f"{count:,} time{'' if count == 1 else 's'}"


def _at(at: datetime) -> str:
    return f"{at.strftime('%Y-%m-%d %H:%M:%S')} UTC"
