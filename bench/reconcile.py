"""What a comparison of both databases costs: when they are equal, and when one row of many differs or is gone."""

from __future__ import annotations

import time

from psycopg2 import sql

from bench.datapath import narrow_source, sync_dimensions
from bench.measures import Findings, Goal, Line
from bench.stage import Options, Stage, connected
from worker import pipeline, reconcile
from worker.celery import Servers
from worker.reconcile import Result
from worker.streams import EVENTS_TABLE, STREAMS
from worker.windows import ORIGIN, Window, cut

GROUP = "reconciliation"
IMPRESSIONS = STREAMS["impressions"]
EQUAL, DIFFERS, DELETED, MENDED = (
    "equal",
    "one row differs",
    "one row deleted at the source",
    "one row found and mended",
)
CASES = (EQUAL, DIFFERS, DELETED, MENDED)
ROUNDS = 3


def compared(here: Servers, *, heal: bool = False) -> tuple[Result, float]:
    """A comparison of all impressions, and how many seconds it took."""
    begun = time.perf_counter()
    found = reconcile.reconcile(
        here.source, here.sink, here.ledger, here.settings, IMPRESSIONS, heal=heal, run_id=f"bench-{time.time_ns()}"
    )
    return found, time.perf_counter() - begun


def load(here: Servers) -> None:
    """Loads all impressions, window by window, in this process."""
    whole = Window(ORIGIN, here.source.now())
    uuid = here.ledger.live([IMPRESSIONS])[EVENTS_TABLE]
    for window in cut(whole, here.source.boundaries(IMPRESSIONS, whole, here.settings.window_rows, 1000)):
        pipeline.load_window(
            here.source, here.sink, here.ledger, here.settings, IMPRESSIONS, window, table=EVENTS_TABLE, uuid=uuid
        )


def unseen(here: Servers, statement: str, event_id: int) -> None:
    """Changes the source so that no window will ever find it."""
    with connected(here.settings.source_dsn) as connection, connection.cursor() as cursor:
        cursor.execute("SET session_replication_role = replica")
        cursor.execute(sql.SQL(statement), (event_id,))


def measure(stage: Stage, options: Options) -> Findings:
    """Ten million rows, or a tenth of them with `--quick`; each defect is in another place each round."""
    rows = options.size(10_000_000, quick=1_000_000, full=10_000_000)
    here = Servers.open(stage.settings(narrow_source(stage, "reconciled", rows)))
    samples: dict[str, list[float]] = {case: [] for case in CASES}
    right = dict.fromkeys(CASES, True)

    def note(case: str, found: tuple[Result, float], expected: dict[int, str]) -> None:
        result, seconds = found
        samples[case].append(seconds)
        right[case] &= {defect.event_id: defect.cause for defect in result.defects} == expected

    try:
        sync_dimensions(here)
        load(here)
        for number in range(ROUNDS):
            changed, gone = rows * (2 * number + 1) // 7, rows * (2 * number + 2) // 7
            note(EQUAL, compared(here), {})
            unseen(
                here, "UPDATE impressions SET campaign_id = coalesce(campaign_id, 0) %% 1000 + 1 WHERE id = %s", changed
            )
            note(DIFFERS, compared(here), {changed: "stale"})
            note(MENDED, compared(here, heal=True), {changed: "stale"})
            unseen(here, "DELETE FROM impressions WHERE id = %s", gone)
            note(DELETED, compared(here), {gone: "extra"})
            compared(here, heal=True)
        right[EQUAL] &= compared(here)[0].agrees
    finally:
        here.close()
        stage.drop(here.settings)
    result = Findings()
    for case in CASES:
        result.lines.append(
            Line(
                GROUP,
                case,
                "s",
                tuple(samples[case]) if right[case] else (),
                note=f"{rows:,} events" if right[case] else "not exactly the row that differs was found",
                state="ok" if right[case] else "failed",
            )
        )
    if rows == 10_000_000:
        for case, limit in ((EQUAL, 30), (DIFFERS, 60), (DELETED, 60)):
            taken = tuple(samples[case]) if right[case] else ()
            result.goals.append(Goal(f"10 million events reconciled, {case}", "under", limit, "s", taken))
    return result
