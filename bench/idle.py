"""What a planning tick costs that finds nothing new, by the size of the source."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import redis

from bench.datapath import narrow_source, sync_dimensions
from bench.fleet import Fault, await_that
from bench.measures import Findings, Goal, Line, paired
from bench.rows import source_totals, target_totals
from bench.stage import Options, Stage
from worker import metrics, pipeline, planner
from worker.celery import Servers
from worker.streams import EVENT_STREAMS, EVENTS_TABLE
from worker.tasks import sync
from worker.tasks.metrics import settled

GROUP = "idle tick"
SMALL = 10_000


def sync_events(here: Servers) -> None:
    """Loads everything there is in this process and rebuilds its metrics, so that nothing is left to do."""
    sync_dimensions(here)
    until = here.source.now()
    while True:
        plans = planner.plan(here.source, here.ledger, here.store, here.settings, EVENT_STREAMS, until=until)
        for planned in plans:
            for window in planned.windows:
                pipeline.load_window(
                    here.source,
                    here.sink,
                    here.ledger,
                    here.settings,
                    planned.stream,
                    window,
                    table=EVENTS_TABLE,
                    uuid=planned.target_uuid,
                )
        if planner.complete(plans, until):
            break
    metrics.rebuild(here.sink, here.settings, metrics.dirty_days(here.sink))


def at_rest(here: Servers) -> bool:
    """Whether what was loaded is no news any more: it is remembered that no day waits, and none was marked since."""
    return settled(here) and not metrics.marks_since(here.sink, here.store.clean_since())[0]


def tick(here: Servers) -> float:
    """Seconds of the body of one planning task, as beat sends it every second."""
    once = here.store.once

    def asked(name: str, seconds: float) -> bool:
        # Ticks that follow each other closely count as one; here they do so on purpose, and each has to do its work.
        once(name, seconds)
        return True

    with patch.object(sync, "servers", return_value=here), patch.object(here.store, "once", asked):
        begun = time.perf_counter()
        sync.plan.run(streams=["impressions"])
        return time.perf_counter() - begun


@contextmanager
def counted(here: Servers) -> Iterator[Counter[str]]:
    """Counts the statements each server is sent meanwhile, by the server's name."""
    told: Counter[str] = Counter()

    def counting(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*positional: Any, **named: Any) -> Any:
            told[name] += 1
            return work(*positional, **named)

        return wrapper

    observer = redis.Redis.from_url(here.settings.broker_url)
    before = observer.info("stats")["total_commands_processed"]
    try:
        with (
            patch.object(here.source, "_once", counting("PostgreSQL", here.source._once)),
            patch.object(here.sink, "_once", counting("ClickHouse", here.sink._once)),
        ):
            yield told
        # Its own question counts too.
        told["Redis"] = observer.info("stats")["total_commands_processed"] - before - 1
    finally:
        observer.close()


def measure(stage: Stage, options: Options, narrow: str) -> Findings:
    """Ticks on a small and on a large source in alternation."""
    large = options.size(options.rows, quick=options.rows, full=10_000_000)
    sources = {
        SMALL: narrow_source(stage, "idle_small", SMALL),
        large: narrow if large == options.rows else narrow_source(stage, "idle_large", large),
    }
    stands = {rows: Servers.open(stage.settings(dsn)) for rows, dsn in sources.items()}
    samples: dict[int, list[float]] = {rows: [] for rows in stands}
    statements: dict[int, Counter[str]] = {}
    agreed: dict[int, bool] = {}
    try:
        for here in stands.values():
            sync_events(here)
        for here in stands.values():
            await_that(partial(at_rest, here), "the last marks are old", 150, every=1.0)
        for number in range(-5, options.size(60, quick=20, full=200)):
            for rows, here in stands.items():
                seconds = tick(here)
                if number >= 0:
                    samples[rows].append(seconds * 1000)
        for rows, here in stands.items():
            with counted(here) as statements[rows]:
                tick(here)
            if not (statements[rows]["PostgreSQL"] and statements[rows]["ClickHouse"]):
                raise Fault("the planning tick asked neither source nor ledger, so nothing was measured")
            agreed[rows] = target_totals(here.sink, EVENTS_TABLE) == source_totals(sources[rows])
    finally:
        for here in stands.values():
            here.close()
            stage.drop(here.settings)
    result = Findings()
    for rows in stands:
        told = ", ".join(f"{name} {count}" for name, count in sorted(statements[rows].items()))
        result.lines.append(
            Line(
                GROUP,
                f"{rows:,} rows in the source",
                "ms",
                tuple(samples[rows]) if agreed[rows] else (),
                {f"{SMALL:,} rows": paired(samples[rows], samples[SMALL])} if agreed[rows] else {},
                f"statements: {told}" if agreed[rows] else "source and target do not agree",
                "ok" if agreed[rows] else "failed",
            )
        )
    good = all(agreed.values())
    ratios = paired(samples[large], samples[SMALL]) if good else ()
    result.goals += [
        Goal(f"idle tick, {large:,} rows", "under", 50, "ms", tuple(samples[large]) if good else ()),
        Goal(f"idle tick, {large:,} rows, of {SMALL:,} rows'", "at most", 1.2, "×", ratios),
        Goal(f"idle tick, {large:,} rows, of {SMALL:,} rows'", "at least", 0.8, "×", ratios),
    ]
    return result
