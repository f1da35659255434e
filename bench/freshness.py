"""How long it takes from COMMIT in PostgreSQL until an event is counted in `daily_campaign_performance`.

One writer commits at a steady rate; what is due next does not wait for what came before. Each commit holds
impressions and clicks, of today and a few of yesterday, and counts as visible when, of both kinds and on both days, as
many events are counted as were written up to and with it. Meanwhile the product runs as it does: beat with the realtime
profile, and its workers.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime

import psycopg2

from bench.datapath import narrow_source, sync_dimensions
from bench.fleet import Fault, await_that, working
from bench.measures import Findings, Goal, Line, percentile
from bench.rows import CAMPAIGNS, source_totals, target_totals
from bench.stage import Options, Stage
from worker.celery import Servers
from worker.streams import EVENTS_TABLE

GROUP = "freshness"
COMMITS_A_SECOND = 20
POLL_SECONDS = 0.05
"""How often it is looked; what is measured is too long by half of this on average."""

WARM_SECONDS = 4.0
"""Rows are written this long before any counts: the first ones find workers that have not connected yet."""

DRAIN_SECONDS = 30.0
RATES = ((200, 2.0), (5000, 5.0))
"""Rows a second, and the p95 wanted, in seconds."""

Counts = tuple[int, int, int, int]
"""Impressions and clicks of yesterday, impressions and clicks of today."""

_WRITE = """
WITH
    times AS
    (
        SELECT n, 1 + (n * 7919 + %(first)s) %% %(campaigns)s AS campaign_id,
            CASE WHEN n %% 20 = 0 THEN clock_timestamp() - interval '1 day' ELSE clock_timestamp() END AS at
        FROM generate_series(1, %(rows)s) AS n
    ),
    clicked AS (INSERT INTO clicks (campaign_id, created_at) SELECT campaign_id, at FROM times WHERE n %% 10 = 5)
INSERT INTO impressions (campaign_id, created_at) SELECT campaign_id, at FROM times WHERE n %% 10 <> 5
"""


@dataclass(slots=True)
class Writer:
    """Writes `rate` rows a second until told to stop; `committed` holds what was written up to each commit, and when."""

    dsn: str
    rate: int
    stop: threading.Event = field(default_factory=threading.Event)
    committed: deque[tuple[float, Counts]] = field(default_factory=deque)
    late: float = 0.0
    failed: BaseException | None = None

    def run(self) -> None:
        """Body of the writing thread."""
        try:
            self._write()
        except BaseException as error:  # told by whoever waits for the thread
            self.failed = error

    def _write(self) -> None:
        rows = self.rate // COMMITS_A_SECOND
        one = self.counts(rows)
        so_far: Counts = (0, 0, 0, 0)
        connection = psycopg2.connect(self.dsn)
        try:
            begun = time.monotonic()
            number = 0
            while not self.stop.is_set():
                due = begun + number / COMMITS_A_SECOND
                wait = due - time.monotonic()
                if wait > 0:
                    time.sleep(wait)
                self.late = max(self.late, -wait)
                with connection.cursor() as cursor:
                    cursor.execute(_WRITE, {"rows": rows, "campaigns": CAMPAIGNS, "first": number})
                connection.commit()
                at = time.monotonic()
                so_far = (so_far[0] + one[0], so_far[1] + one[1], so_far[2] + one[2], so_far[3] + one[3])
                self.committed.append((at, so_far))
                number += 1
        finally:
            connection.close()

    @staticmethod
    def counts(rows: int) -> Counts:
        """What one commit of so many rows holds."""
        clicks = [n for n in range(1, rows + 1) if n % 10 == 5]
        impressions = [n for n in range(1, rows + 1) if n % 10 != 5]
        late_impressions = sum(n % 20 == 0 for n in impressions)
        late_clicks = sum(n % 20 == 0 for n in clicks)
        return late_impressions, late_clicks, len(impressions) - late_impressions, len(clicks) - late_clicks


def visible(here: Servers, today: str, before: Counts) -> Counts:
    """What the metrics count beyond `before`: of the days up to yesterday, and of the later ones."""
    (found,) = here.sink.query(
        "looking at the metrics",
        """
        SELECT sumIf(impressions_count, date_id < %(today)s), sumIf(clicks_count, date_id < %(today)s),
            sumIf(impressions_count, date_id >= %(today)s), sumIf(clicks_count, date_id >= %(today)s)
        FROM daily_campaign_performance
        """,
        {"today": today},
    )
    shown = tuple(map(int, found))
    return shown[0] - before[0], shown[1] - before[1], shown[2] - before[2], shown[3] - before[3]


def observe(here: Servers, rate: int, seconds: float) -> tuple[list[float], str]:
    """Seconds from commit to sight of each commit within `seconds`; and what is to be said of the run."""
    # A run that crosses midnight writes «today» into another day; what is before the first midnight is yesterday then.
    today = datetime.now(UTC).date().isoformat()
    before = visible(here, today, (0, 0, 0, 0))
    writer = Writer(here.settings.source_dsn, rate)
    thread = threading.Thread(target=writer.run, name="writer", daemon=True)
    delays: list[float] = []
    begun = time.monotonic()
    thread.start()
    try:
        while writer.failed is None and (time.monotonic() < begun + WARM_SECONDS + seconds or writer.committed):
            asked = time.monotonic()
            if asked > begun + WARM_SECONDS + seconds:
                writer.stop.set()
            if asked > begun + WARM_SECONDS + seconds + DRAIN_SECONDS:
                raise Fault(f"{len(writer.committed)} commits were not visible {DRAIN_SECONDS:g} s after the last one")
            seen = visible(here, today, before)
            at = time.monotonic()
            while writer.committed and all(
                shown >= wanted for shown, wanted in zip(seen, writer.committed[0][1], strict=True)
            ):
                committed_at, _ = writer.committed.popleft()
                if committed_at >= begun + WARM_SECONDS:
                    delays.append(at - committed_at)
            time.sleep(max(0.0, asked + POLL_SECONDS - time.monotonic()))
    finally:
        writer.stop.set()
        thread.join(10)
    if writer.failed is not None:
        raise Fault(f"the writer failed: {writer.failed}")
    return delays, f"writer at most {writer.late:.1f} s behind" if writer.late > 1 else ""


def agree(here: Servers) -> bool:
    """Whether events of both kinds, and their sums in the metrics, are those of the source."""
    dsn = here.settings.source_dsn
    sides = [
        (source_totals(dsn, "impressions"), target_totals(here.sink, EVENTS_TABLE, "impression")),
        (source_totals(dsn, "clicks"), target_totals(here.sink, EVENTS_TABLE, "click")),
    ]
    (counted,) = here.sink.query(
        "adding up metrics", "SELECT sum(impressions_count), sum(clicks_count) FROM daily_campaign_performance"
    )
    return all(one == other for one, other in sides) and tuple(map(int, counted)) == tuple(
        side[0].count for side in sides
    )


def measure(stage: Stage, options: Options) -> Findings:
    """Each rate in turn, on databases of its own."""
    seconds = options.size(30, quick=8, full=120)
    result = Findings()
    for rate, wanted in RATES:
        dsn = narrow_source(stage, f"fresh{rate}", 1000)
        here = Servers.open(stage.settings(dsn))
        try:
            sync_dimensions(here)
            with working(here.settings, beat=True):
                await_that(lambda here=here: agree(here), "the first rows are visible", 60)  # type: ignore[misc]
                delays, remark = observe(here, rate, seconds)
                # Everything is visible by now; what remains is to see that nothing was counted twice.
                agreed = agree(here)
        finally:
            here.close()
            stage.drop(here.settings)
        if not agreed:
            result.lines.append(
                Line(GROUP, f"{rate:,} rows/s", "s", note="source and target do not agree", state="failed")
            )
            continue
        for share in (0.50, 0.95, 0.99):
            note = f"{len(delays)} commits in {seconds} s, {COMMITS_A_SECOND} a second"
            value = (percentile(delays, share),)
            note += f", {remark}" if remark else ""
            result.lines.append(Line(GROUP, f"{rate:,} rows/s, p{share * 100:.0f}", "s", value, note=note))
        p95 = (percentile(delays, 0.95),)
        result.goals.append(Goal(f"freshness at {rate:,} rows/s, p95", "under", wanted, "s", p95))
    return result
