"""Rebuilds `daily_campaign_performance`, a day at a time and atomically, for the days that changed and no others."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta

import structlog

from worker import calendars
from worker.calendar import Calendar
from worker.config import Settings
from worker.errors import SinkFailure, TransientSink
from worker.failing import failing_days, note_built_days, note_failed_day
from worker.sink import Sink, quoted, rendered
from worker.sql import chunks, named
from worker.windows import MICROSECOND, ORIGIN, instant

log = structlog.get_logger()

STAGING = "daily_campaign_performance_staging_"
DAYS_AT_ONCE = 31
"""Days per staging table: below ClickHouse's limit of 100 partitions in one inserted block."""

TOO_MUCH = {159, 241}
"""What ClickHouse answers where a statement ran into its limits: TIMEOUT_EXCEEDED, MEMORY_LIMIT_EXCEEDED."""

SLOW_SECONDS = 10.0
"""A batch that failed after longer than this is tried day by day at once."""

PUBLICATIONS = 5
"""How often a day is published again where another worker published it at the same time; then the sweep sees to it."""

NO_DAY = date(1900, 1, 1)
"""Stands where ClickHouse takes no empty list of days; no event can happen on it."""

BILLED = {"cpc": "click", "cpm": "impression", "cpi": "impression"}
"""The event that costs money under each pricing model."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """Days rebuilt, of which some turned out empty, and rows published; and days that could not be built, with why."""

    days: int = 0
    empty: int = 0
    rows: int = 0
    failed: tuple[tuple[date, SinkFailure], ...] = ()


def dirty_days(sink: Sink, since: datetime = ORIGIN) -> list[date]:
    """Marked days not rebuilt since, newest first; with `since`, only among days marked at or after it."""
    return [day for (day,) in sink.named("metrics", "dirty_days", {"since": since})]


def marks_since(sink: Sink, since: datetime) -> tuple[int, datetime]:
    """How many marks there are from then on, without asking whether their days were rebuilt; and ClickHouse's clock."""
    count, now = sink.named("metrics", "marks_since", {"since": since})[0]
    return int(count), instant(now)


def outdated_days(sink: Sink, settings: Settings) -> list[date]:
    """Days nobody marked that another pricing model or a campaign version that came later made wrong."""
    calendar = calendars.in_force(sink, settings)
    found = sink.named("metrics", "outdated_days", {"pricing_model": settings.pricing_model})
    return sorted({day for day, since in found if calendar.bounds(day).hi > instant(since)}, reverse=True)


def rebuild(sink: Sink, settings: Settings, days: Sequence[date]) -> Rebuilt:
    """Computes these days from `ad_events` and publishes each in one step, the newest first. Idempotent; safe to run
    twice at once.

    A day without events left disappears. Days that are too much together for the server's limits are parted, and so are
    those among which one cannot be built: it is noted, the others are published. Raises what is no day's fault.
    """
    wanted = sorted(set(days))
    known = failing_days(sink) if wanted else {}
    troubled = [day for day in wanted if day in known]
    total, built, failed = Rebuilt(), set[date](), dict[date, SinkFailure]()
    # Last, and each by itself: they would spoil the others' statement.
    waiting = [*([day] for day in troubled), *batches([day for day in wanted if day not in troubled])]
    while waiting:
        batch = waiting.pop()
        begun = time.monotonic()
        try:
            done = _rebuild_batch(sink, settings, batch)
        except SinkFailure as error:
            if not of_the_days(error):
                raise
            if len(batch) == 1:
                log.error("metrics.day_failed", day=str(batch[0]), cause=str(error))
                note_failed_day(sink, batch[0], str(error), time.monotonic() - begun)
                failed[batch[0]] = error
                continue
            log.warning("metrics.batch_parted", days=len(batch), cause=str(error))
            middle = len(batch) // 2
            # Halved five times, a batch that runs into a time limit would outlast the task.
            quick = time.monotonic() - begun < SLOW_SECONDS
            waiting += [batch[:middle], batch[middle:]] if quick else [[day] for day in batch]
            continue
        built.update(batch)
        total = Rebuilt(total.days + done.days, total.empty + done.empty, total.rows + done.rows)
    note_built_days(sink, built & set(troubled))
    return replace(total, failed=tuple(sorted(failed.items())))


def rebuild_all(sink: Sink, settings: Settings, days: Sequence[date]) -> Rebuilt:
    """`rebuild` for whoever needs every one of these days. Raises the first cause where one could not be built."""
    done = rebuild(sink, settings, days)
    for _, error in done.failed:
        raise error
    return done


def of_the_days(error: SinkFailure) -> bool:
    """Whether another choice of days may go better: the server is there, and did not do what it was told for these."""
    return not isinstance(error, TransientSink) or error.code in TOO_MUCH


def batches(days: Sequence[date]) -> list[list[date]]:
    """Sorted days, at most `DAYS_AT_ONCE` together. They need not adjoin: events that come late lie scattered."""
    return list(chunks(days, DAYS_AT_ONCE))


def runs(days: Sequence[date]) -> list[tuple[date, date]]:
    """First and last day of each run of adjoining days, of sorted days."""
    result: list[tuple[date, date]] = []
    for day in days:
        if result and day - result[-1][1] == timedelta(days=1):
            result[-1] = (result[-1][0], day)
        else:
            result.append((day, day))
    return result


def within(calendar: Calendar, days: Sequence[date]) -> str:
    """The condition that holds for events of these sorted days."""
    parts = []
    for first, last in runs(days):
        lo, hi = calendar.bounds(first).lo, calendar.bounds(last).hi
        bounds = {"lo": lo, "hi": hi, "first_utc_day": lo.date(), "last_utc_day": (hi - MICROSECOND).date()}
        parts.append(rendered(named("metrics", "within"), bounds))
    return f"({' OR '.join(parts)})"


def _rebuild_batch(sink: Sink, settings: Settings, days: list[date]) -> Rebuilt:
    # Before anything is read: what arrives from here on is not promised to be in these metrics.
    holds = instant(sink.named("metrics", "now")[0][0])
    # After that: days that a calendar adopted later cuts otherwise are marked after `holds`, and built again.
    calendar = calendars.in_force(sink, settings)
    lo, hi = calendar.bounds(days[0]).lo, calendar.bounds(days[-1]).hi
    with sink.staging(STAGING, named("metrics", "create_staging")) as staging:
        sink.command(
            "building metrics",
            named("metrics", "build").format(staging=quoted(staging), within=within(calendar, days)),
            {
                **calendars.cut(calendar, days),
                "lo": lo,
                "hi": hi,
                "pricing_model": settings.pricing_model,
                "billed": BILLED[settings.pricing_model],
                "divisor": 1000 if settings.pricing_model == "cpm" else 1,
                "holds": holds,
            },
            # Run twice into one staging table, it would hold the days twice.
            retry=False,
        )
        _record(sink, settings, calendar, staging, days, holds)
        rows = _publish(sink, staging, days)
    empty = [day for day in days if day not in rows]
    if empty:
        for day in empty:
            sink.command("dropping an empty day", named("metrics", "drop_day"), {"day": day.isoformat()})
        sink.command("noting empty days", named("metrics", "note_empty"), {"days": empty, "holds": holds})
    log.info("metrics.rebuilt", days=len(days), first=str(days[0]), last=str(days[-1]), rows=sum(rows.values()))
    return Rebuilt(len(days), len(empty), sum(rows.values()))


def _record(
    sink: Sink, settings: Settings, calendar: Calendar, staging: str, days: Sequence[date], holds: datetime
) -> None:
    """Writes down what these days will say where it is news, and, for days already final, why it changed."""
    through = final_through(sink)
    final = [day for day in days if through is not None and day <= through]
    causes: list[tuple[date, str]] = []
    if final:
        since = dict(sink.named("metrics", "built_since", {"days": final}))
        parameters = {
            "days": final,
            "since": [since[day] for day in final],
            "first_since": min(since.values()),
            **calendars.cut(calendar, final),
        }
        statement = named("metrics", "causes").format(within=within(calendar, final))
        recut = calendars.recut(sink, since)
        found = sink.query("asking for causes", statement, parameters)
        causes = [(day, "time zone" if day in recut else str(cause)) for day, cause in found]
    sink.command(
        "recording what days say",
        named("metrics", "record").format(staging=quoted(staging)),
        {
            "days": tuple(days),
            "holds": holds,
            "zone": settings.reporting_timezone,
            "final_days": tuple(final) or (NO_DAY,),
            "caused_days": [str(day) for day, _ in causes] or [""],
            "causes": [cause for _, cause in causes] or [""],
        },
    )


def final_through(sink: Sink) -> date | None:
    """The last day that has been declared final; None before any has."""
    count, day = sink.named("metrics", "final_through")[0]
    return day if count else None


def note_finality(sink: Sink, settings: Settings, complete_through: datetime, *, before: date | None = None) -> date:
    """Declares final every day that ended `FINALITY_HOURS` before `complete_through`; returns the last of them.

    `complete_through` is the instant before which everything the source wrote is loaded. Once final, a day stays so.
    Days from `before` on are not, as where that one is still to be built: its first figures would be a restatement.
    """
    at = instant(complete_through) - timedelta(hours=settings.finality_hours)
    # The day that instant lies in has not ended by then; the one before it has, whatever its length.
    day = calendars.in_force(sink, settings).day_of(at) - timedelta(days=1)
    if before is not None:
        day = min(day, before - timedelta(days=1))
    sink.command("noting final days", named("metrics", "note_final_through"), {"day": day})
    return day


def _publish(sink: Sink, staging: str, days: Sequence[date]) -> dict[date, int]:
    """Moves each staged day into place; returns rows by day. A day must be one part, or a crash could publish half."""
    table = quoted(staging)
    parameters = {"database": sink.database, "staging": staging}
    staged = sink.named("metrics", "staged_parts", parameters)
    for partition, parts, _ in staged:
        if parts > 1:
            sink.command("merging a staged day", named("metrics", "optimize").format(staging=table), {"day": partition})
    if any(parts > 1 for _, parts, _ in staged):
        staged = sink.named("metrics", "staged_parts", parameters)
    rows: dict[date, int] = {}
    for partition, parts, count in staged:
        if parts != 1:
            raise SinkFailure(f"Staged day {partition} is in {parts} parts, so publishing it would not be atomic.")
        day = date.fromisoformat(partition)
        if day not in days:
            raise SinkFailure(f"Day {partition} was staged although it was not asked for.")
        # Publishing the same part again changes nothing, so an unknown outcome may be retried.
        sink.command("publishing a day", named("metrics", "replace_day").format(staging=table), {"day": partition})
        rows[day] = count
    for _ in range(PUBLICATIONS):
        # Of those who publish a day at once, whoever finishes last finds what the others left.
        mixed = sink.named("metrics", "mixed_days", {"days": tuple(rows)}) if rows else []
        for (partition,) in mixed:
            sink.command(
                "publishing a day again", named("metrics", "replace_day").format(staging=table), {"day": partition}
            )
        if not mixed:
            break
    return rows
