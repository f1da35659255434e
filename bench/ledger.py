"""What an idle tick and a dimension's watermark cost, by the age of the ledger."""

from __future__ import annotations

import resource
import time
from datetime import timedelta
from functools import partial

from bench.datapath import narrow_source
from bench.fleet import await_that
from bench.idle import SMALL, at_rest, sync_events, tick
from bench.measures import Findings, Goal, Line, paired
from bench.stage import Options, Stage
from worker import planner
from worker.celery import Servers
from worker.streams import STREAMS

GROUP = "ledger"
A_YEAR = 3_153_600
"""Commits of one stream in a year, one every 10 s."""

NONE, OLD = "no ledger", "an old ledger"
AGED = ("impressions", "campaigns")

COMMITS = """
INSERT INTO sync_commits (stream, target_uuid, lo, hi, kind, version, rows, system_id, timeline, committed_at)
SELECT %(stream)s, %(uuid)s, if(%(whole)s, toDateTime64(0, 6, 'UTC'), end - toIntervalSecond(10)), end, 'window',
    bitShiftLeft(toUInt64(1), 56), 10, 0, 0, now64(6, 'UTC') - toIntervalSecond(intDiv(number * 2592000, %(commits)s))
FROM (SELECT number, %(until)s - toIntervalSecond(10 * (number + 1)) AS end FROM numbers(%(commits)s))
SETTINGS max_partitions_per_insert_block = 0
"""
"""Committed within the last month: what expires would hide the question."""


def grow_old(here: Servers, commits: int) -> None:
    """Puts so many commits behind the watermark of an event stream, and of a dimension."""
    streams = [STREAMS[name] for name in AGED]
    targets = here.ledger.live(streams)
    for name, covered in here.ledger.coverage(streams, targets).items():
        stream = STREAMS[name]
        uuid, whole = targets[stream.target], stream.kind == "dimension"
        parameters = {"stream": name, "uuid": uuid, "until": covered.watermark, "commits": commits, "whole": whole}
        here.sink.command("growing the ledger old", COMMITS, parameters, settings={"max_execution_time": 600})


def publish(here: Servers) -> float:
    """Seconds of publishing one dimension's watermark."""
    begun = time.perf_counter()
    streams = [STREAMS["campaigns"]]
    planner.publish_watermarks(here.ledger, here.store, streams, here.ledger.live(streams))
    return time.perf_counter() - begun


def measure(stage: Stage, options: Options) -> Findings:
    """Ticks and publications with an old ledger and with none, in alternation."""
    years = options.size(2, quick=1, full=10)
    dsn = narrow_source(stage, "ledger", SMALL)
    stands = {name: Servers.open(stage.settings(dsn)) for name in (NONE, OLD)}
    ticks: dict[str, list[float]] = {name: [] for name in stands}
    publications: dict[str, list[float]] = {name: [] for name in stands}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        for here in stands.values():
            sync_events(here)
        grow_old(stands[OLD], years * A_YEAR)
        for here in stands.values():
            # The first look writes what is missing of the checkpoints.
            planner.publish_watermarks(
                here.ledger, here.store, list(STREAMS.values()), here.ledger.live(STREAMS.values())
            )
            await_that(partial(at_rest, here), "the last marks are old", 150, every=1.0)
        for number in range(-5, options.size(60, quick=20, full=100)):
            for name, here in stands.items():
                seconds, published = tick(here), publish(here)
                if number >= 0:
                    ticks[name].append(seconds * 1000)
                    publications[name].append(published * 1000)
    finally:
        for here in stands.values():
            here.close()
            stage.drop(here.settings)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    result = Findings()
    for what, samples in (("idle tick", ticks), ("a dimension's watermark", publications)):
        for name in stands:
            note = (
                f"{years * A_YEAR:,} commits of each of two streams, {timedelta(days=365 * years).days:,} days"
                if name == OLD
                else ""
            )
            ratios = {NONE: paired(samples[name], samples[NONE])}
            result.lines.append(Line(GROUP, f"{what}, {name}", "ms", tuple(samples[name]), ratios, note))
        text = f"{what}, ledger of {years} years, of none's"
        result.goals.append(Goal(text, "at most", 1.2, "×", paired(samples[OLD], samples[NONE])))
    result.lines.append(Line(GROUP, "memory of this process, grown by", "MiB", (grown,)))
    return result
