"""The demonstration: real servers of its own, two months of made-up traffic, and the product at work on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np

import seed.connection
import seed.generate
import seed.schema
import seed.stats
from worker import metrics
from worker.config import PricingModel, Settings
from worker.errors import BadInput
from worker.sink import Sink
from worker.source import Source, SourceTotals

EVENTS, DAYS, ADVERTISERS, CAMPAIGNS = 200_000, 60, 12, 60
MORE_EVENTS, LIVE_EVENTS = 1_000, 300
WINDOW_ROWS = 20_000
"""Small, so that several windows are loaded side by side."""

AGREEMENT_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Totals:
    """What one of the two sides holds."""

    advertisers: int
    campaigns: int
    impressions: int
    clicks: int
    spend: Decimal


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both sides. `equal`: ClickHouse held what PostgreSQL did at some moment while both were read.

    `moving`: somebody wrote to PostgreSQL in that time. `edited` campaigns had their bid changed, so PostgreSQL no
    longer knows what they spent before, and spend is left out of the verdict.
    """

    source: Totals
    target: Totals
    edited: int
    equal: bool
    moving: bool


def fill(settings: Settings, on_progress: Callable[[int, int], None]) -> str:
    """Fills an empty source with history, adds a little live traffic to one that has some; says which."""
    with closing(seed.connection.connect(settings)) as conn:
        now = seed.connection.server_time(conn)
        held = seed.stats.totals(conn, today=now.astimezone(UTC).date())
        rng = np.random.default_rng()
        if not held.impressions:
            added = seed.generate.history(
                conn,
                advertisers=ADVERTISERS,
                campaigns=CAMPAIGNS,
                events=EVENTS,
                days=DAYS,
                rng=rng,
                now=now,
                on_progress=on_progress,
            )
            return (
                f"PostgreSQL filled: {added.impressions:,} impressions, {added.clicks:,} clicks, "
                f"{CAMPAIGNS} campaigns, {DAYS} days"
            )
        added = _live(conn, now, MORE_EVENTS, on_progress)
        return f"PostgreSQL already held {held.impressions:,} impressions; {added.impressions:,} new ones added"


def trickle(settings: Settings) -> int:
    """Writes a second of live traffic and returns once it is committed: how many impressions."""
    with closing(seed.connection.connect(settings)) as conn:
        return _live(conn, seed.connection.server_time(conn), LIVE_EVENTS, None).impressions


def _live(conn: Any, now: datetime, events: int, on_progress: seed.generate.Progress | None) -> seed.generate.Added:
    rng, ticks = np.random.default_rng(), time.monotonic()
    try:
        return seed.generate.stream(
            conn,
            rate=events,
            duration=1.0,
            rng=rng,
            clock=lambda: now + timedelta(seconds=time.monotonic() - ticks),
            wait=_wait,
            on_progress=on_progress,
        )
    except BadInput:
        # No campaign is in flight any more: the data is from long ago.
        return seed.generate.batch(conn, impressions=events // 6, rng=rng, now=now, on_progress=on_progress)


def await_arrival(settings: Settings) -> float | None:
    """Seconds until the metrics in ClickHouse count every event PostgreSQL holds now; None if that takes too long."""
    began = time.monotonic()
    with Source(settings) as source, Sink(settings) as sink:
        wanted = source.totals()
        while time.monotonic() - began < AGREEMENT_SECONDS:
            found, _ = target_totals(sink)
            if found.impressions >= wanted.impressions and found.clicks >= wanted.clicks:
                return time.monotonic() - began
            time.sleep(0.05)
    return None


def events_held(sink: Sink) -> int:
    """Events that count in ClickHouse's metrics."""
    held, _ = target_totals(sink)
    return held.impressions + held.clicks


def _wait(seconds: float) -> bool:
    time.sleep(max(0.0, min(seconds, 0.25)))
    return False


def priced(totals: SourceTotals, model: PricingModel) -> Totals:
    """The source's totals with spend by the pricing model, every event at its campaign's bid of now."""
    bids = totals.bids_of_clicks if metrics.BILLED[model] == "click" else totals.bids_of_impressions
    spend = bids / 1000 if model == "cpm" else bids
    return Totals(totals.advertisers, totals.campaigns, totals.impressions, totals.clicks, Decimal(spend))


def target_totals(sink: Sink) -> tuple[Totals, int]:
    """ClickHouse's totals, and how many campaigns had more than one bid."""
    row = sink.named("totals", "target")[0]
    return Totals(int(row[0]), int(row[1]), int(row[2]), int(row[3]), Decimal(row[4])), int(row[5])


def compare(settings: Settings, source: Source, sink: Sink) -> Comparison:
    """Puts both sides beside each other.

    Where somebody writes meanwhile, ClickHouse must lie between what PostgreSQL held before and what it held after;
    at rest that is equality. Fresh rows are given a little time to arrive.
    """
    deadline = time.monotonic() + AGREEMENT_SECONDS
    before = priced(source.totals(), settings.pricing_model)
    while True:
        target, edited = target_totals(sink)
        after = priced(source.totals(), settings.pricing_model)
        equal = _between(before, target, after, spend=not edited)
        if equal or time.monotonic() > deadline:
            return Comparison(after, target, edited, equal, moving=before != after)
        time.sleep(0.3)


def _between(low: Totals, found: Totals, high: Totals, *, spend: bool) -> bool:
    names = ["advertisers", "campaigns", "impressions", "clicks", *(["spend"] if spend else [])]
    return all(getattr(low, name) <= getattr(found, name) <= getattr(high, name) for name in names)
