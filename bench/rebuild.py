"""What rebuilding the metrics of one changed day costs, by the length of the history behind it."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta

from bench.datapath import narrow_source, sync_dimensions
from bench.measures import Findings, Goal, Line, paired
from bench.rows import CAMPAIGNS
from bench.stage import Options, Stage
from worker import metrics
from worker.celery import Servers

GROUP = "rebuild of one changed day"
EVENTS_A_DAY = 5000
DAYS = (1, 90, 720)
FIRST = date(2024, 1, 1)


def write_history(here: Servers, days: int) -> None:
    """Puts so many days of events into ClickHouse directly, one click in ten; ids rise with time."""
    here.sink.command(
        "writing a history",
        """
        INSERT INTO ad_events (event_type, event_id, campaign_id, created_at, inserted_at, _version)
        SELECT
            if(number %% 10 = 0, 'click', 'impression'), number + 1, 1 + number * 7919 %% %(campaigns)s,
            %(first)s + toIntervalMicrosecond(number * intDiv(86400000000, %(a_day)s)) AS at, at, 1
        FROM numbers(%(count)s)
        """,
        {
            "campaigns": CAMPAIGNS,
            "first": datetime(FIRST.year, FIRST.month, FIRST.day, tzinfo=UTC),
            "a_day": EVENTS_A_DAY,
            "count": days * EVENTS_A_DAY,
        },
    )


def day_agrees(here: Servers, day: date) -> bool:
    """Whether the metrics of a day say what its events say."""
    sums = []
    for statement in (
        "SELECT sum(impressions_count), sum(clicks_count), sum(campaign_id * (impressions_count + clicks_count)) "
        "FROM daily_campaign_performance WHERE date_id = %(day)s",
        "SELECT countIf(event_type = 'impression'), countIf(event_type = 'click'), sum(campaign_id) "
        "FROM ad_events FINAL WHERE event_date = %(day)s",
    ):
        (found,) = here.sink.query("adding up a day", statement, {"day": day})
        sums.append(tuple(map(int, found)))
    return sums[0] == sums[1] and sum(sums[0][:2]) == EVENTS_A_DAY


def measure(stage: Stage, options: Options) -> Findings:
    """The last day of each history is rebuilt in turn, as often as it takes for a steady median."""
    dsn = narrow_source(stage, "rebuilt", 1000)
    stands = {days: Servers.open(stage.settings(dsn)) for days in DAYS}
    samples: dict[int, list[float]] = {days: [] for days in DAYS}
    agreed = dict.fromkeys(DAYS, True)
    try:
        for days, here in stands.items():
            sync_dimensions(here)
            write_history(here, days)
        for number in range(-2, options.size(20, quick=8, full=40)):
            for days, here in stands.items():
                day = FIRST + timedelta(days=days - 1)
                begun = time.perf_counter()
                done = metrics.rebuild(here.sink, here.settings, [day])
                seconds = time.perf_counter() - begun
                if number >= 0:
                    samples[days].append(seconds * 1000)
                agreed[days] &= done.days == 1
        for days, here in stands.items():
            agreed[days] &= day_agrees(here, FIRST + timedelta(days=days - 1))
    finally:
        for here in stands.values():
            here.close()
            stage.drop(here.settings)
    result = Findings()
    for days in DAYS:
        result.lines.append(
            Line(
                GROUP,
                f"{days} day{'s' if days > 1 else ''} of history",
                "ms",
                tuple(samples[days]) if agreed[days] else (),
                {"1 day": paired(samples[days], samples[1])} if agreed[days] else {},
                f"{days * EVENTS_A_DAY:,} events, {EVENTS_A_DAY:,} of them on the day"
                if agreed[days]
                else "metrics and events do not agree",
                "ok" if agreed[days] else "failed",
            )
        )
    ratios = paired(samples[720], samples[1]) if all(agreed.values()) else ()
    result.goals.append(Goal("rebuild of one day, 720 days of history, of 1 day's", "at most", 1.2, "×", ratios))
    return result
