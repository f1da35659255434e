"""The most memory a worker's child holds while it loads rows, by their number and by how many are one window.

Each case is loaded by a worker started for it, with one child; what is measured is the child's own peak.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from bench.datapath import begin_anew, sync_dimensions
from bench.fleet import Fault, Node, await_that, children, peak_memory, working
from bench.measures import Findings, Goal, Line
from bench.rows import add_events, source_totals, target_totals
from bench.stage import Options, Stage
from worker.celery import Servers, create_app
from worker.streams import EVENTS_TABLE, STREAMS, Stream
from worker.windows import MICROSECOND, ORIGIN, Window, cut, from_micros

GROUP = "memory of a worker's child"
MEBIBYTE = 2**20


def load_in_a_child(here: Servers, stream: Stream, windows: Sequence[Window]) -> float:
    """Peak resident memory, in MiB, of a fresh child that loaded these windows and nothing else."""
    nodes = [Node("lone", "realtime,maintenance,backfill", 1)]
    with working(here.settings, nodes) as pids:
        app = create_app(here.settings)
        try:
            target = str(here.ledger.live([stream])[stream.target])
            asked = [
                app.send_task(
                    "worker.tasks.sync.load_window",
                    kwargs={"stream": stream.name, **window.kwargs(), "target": target},
                    queue="backfill",
                )
                for window in windows
            ]
            for each in asked:
                await_that(each.ready, f"a window of {stream.name} is loaded", 200, every=0.2)
                if not each.successful():
                    raise Fault(f"a window of {stream.name} was not loaded: {each.result}")
        finally:
            app.close()
        found = children(pids["lone"])
        if len(found) != 1:
            raise Fault(f"{len(found)} children instead of one")
        return peak_memory(found[0]) / MEBIBYTE


def measure(stage: Stage, options: Options, narrow: str) -> Findings:
    """Some rows, the same again, many in windows as they are planned, many in one, and many that share one instant."""
    few = options.size(1_000_000, quick=options.rows // 2, full=1_000_000)
    many = options.size(4_000_000, quick=options.rows * 2, full=10_000_000)
    same = options.size(2_000_000, quick=options.rows, full=10_000_000)
    dsn = stage.source("memory", template=narrow.rpartition("/")[2])
    if many > options.rows:
        add_events(dsn, many - options.rows, until=datetime.now(UTC) - timedelta(hours=1), span=timedelta(hours=12))
    add_events(dsn, same, table="clicks", span=timedelta(0))
    here = Servers.open(stage.settings(dsn))
    impressions, clicks = STREAMS["impressions"], STREAMS["clicks"]
    ends = {rows: from_micros(source_totals(dsn, limit=rows).last) + MICROSECOND for rows in (few, many)}
    peaks: dict[str, float] = {}
    troubles: dict[str, str] = {}

    def load(case: str, stream: Stream, windows: Sequence[Window], rows: int) -> None:
        peaks[case] = 0.0
        try:
            peaks[case] = load_in_a_child(here, stream, windows)
        except Fault as fault:
            troubles[case] = str(fault)
            return
        if target_totals(here.sink, EVENTS_TABLE, stream.event_type) != source_totals(dsn, stream.name, rows):  # type: ignore[arg-type]
            troubles[case] = "source and target do not agree"

    try:
        sync_dimensions(here)
        load(f"{few:,} rows", impressions, [Window(ORIGIN, ends[few])], few)
        # Another window to the ledger, and the same rows.
        load(f"{few:,} rows once more", impressions, [Window(ORIGIN, ends[few] + MICROSECOND)], few)
        begin_anew(here)
        whole = Window(ORIGIN, ends[many])
        edges = here.source.boundaries(impressions, whole, here.settings.window_rows, 100)
        load(f"{many:,} rows", impressions, cut(whole, edges), many)
        begin_anew(here)
        load(f"{many:,} rows in one window", impressions, [whole], many)
        load(f"{same:,} rows of one instant", clicks, [Window(ORIGIN, here.source.now())], same)
    finally:
        here.close()
        stage.drop(here.settings)
    result = Findings()
    base = peaks[f"{few:,} rows"]
    for case, peak in peaks.items():
        failed = case in troubles
        result.lines.append(
            Line(
                GROUP,
                case,
                "MiB",
                () if failed else (peak,),
                {} if failed else {f"{few:,} rows": (peak / base,)},
                troubles.get(case, "one child started for it: VmHWM"),
                "failed" if failed else "ok",
            )
        )
    sizes = {f"{few:,} rows", f"{many:,} rows"}
    growth = () if sizes & set(troubles) else (peaks[f"{many:,} rows"] / base,)
    largest = () if sizes & set(troubles) else (max(peaks.values()),)
    result.goals += [
        Goal(f"peak memory, {many:,} rows, of {few:,} rows'", "at most", 1.1, "×", growth),
        Goal("peak memory of a child, largest of these", "under", 300, "MiB", largest),
    ]
    return result
