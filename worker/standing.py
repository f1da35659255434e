"""How each stream stands now, from the servers themselves: the ledger, the source's horizon, windows in flight."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from worker.failing import DayFailure, failing_days
from worker.ledger import Failure, Ledger, Run
from worker.sink import Sink
from worker.source import Horizon, Source
from worker.streams import Stream
from worker.watermarks import WatermarkStore
from worker.windows import Window, merged

RUNS_SEARCHED = 50


@dataclass(frozen=True, slots=True)
class Standing:
    """One stream. `complete_through`: every row inserted before it is in ClickHouse; `lag` is how long ago that was.

    `rows` are those the live table holds, `quarantined` those set aside instead; `failures` are windows not loaded yet that failed at least once; `last_run`
    is the newest run over this stream.
    """

    stream: Stream
    watermark: datetime
    complete_through: datetime
    lag: timedelta
    rows: int
    quarantined: int
    in_flight: int
    failures: tuple[Failure, ...]
    last_run: Run | None


@dataclass(frozen=True, slots=True)
class Unpriced:
    """Events that cost money and whose campaign is not known, so that they are in no spend."""

    events: int = 0
    campaigns: int = 0
    days: int = 0


@dataclass(frozen=True, slots=True)
class Overview:
    """Every stream, the horizon they share, days whose metrics cannot be built, and what has no price.

    `setback` says why nothing is loaded from the source any more.
    """

    horizon: Horizon
    streams: tuple[Standing, ...]
    days: tuple[DayFailure, ...] = ()
    setback: str = ""
    unpriced: Unpriced = Unpriced()


def uncovered(failures: Sequence[Failure], windows: Sequence[Window]) -> tuple[Failure, ...]:
    """Failures of windows that these windows together do not hold all of."""
    held = merged(windows)
    starts = [window.lo for window in held]

    def covered(window: Window) -> bool:
        position = bisect_right(starts, window.lo) - 1
        return position >= 0 and window.hi <= held[position].hi

    return tuple(failure for failure in failures if not covered(failure.window))


def failing(ledger: Ledger, streams: Sequence[Stream]) -> dict[str, tuple[Failure, ...]]:
    """By stream, windows not loaded yet that failed at least once; of a dimension, its failing to be read."""
    targets = ledger.live(streams)
    coverage = ledger.coverage(streams, targets)
    return {
        stream.name: uncovered(
            ledger.failures(stream, targets[stream.target], coverage[stream.name].watermark),
            coverage[stream.name].windows,
        )
        for stream in streams
    }


def _through(source: Source, stream: Stream, watermark: datetime, horizon: datetime | None) -> datetime:
    ahead = horizon if stream.kind == "events" and horizon and watermark < horizon else None
    if ahead is not None and source.first_row(stream, Window(watermark, ahead)) is None:
        # Nothing below the safe horizon can appear any more: no row there means complete up to it.
        return ahead
    return watermark


def complete_through(source: Source, ledger: Ledger, streams: Sequence[Stream]) -> datetime:
    """The instant before which every row of these streams is in ClickHouse. Raises `HorizonUnsafe` as `overview`."""
    coverage = ledger.coverage(streams, ledger.live(streams))
    horizon = source.horizon().at
    return min(_through(source, stream, coverage[stream.name].watermark, horizon) for stream in streams)


def overview(source: Source, sink: Sink, ledger: Ledger, store: WatermarkStore, streams: Sequence[Stream]) -> Overview:
    """Reads and changes nothing. Raises `HorizonUnsafe` where the source must not be synced."""
    targets = ledger.live(streams)
    coverage = ledger.coverage(streams, targets)
    rows: dict[str, int] = dict(sink.named("totals", "rows"))
    aside: dict[str, int] = dict(sink.named("quarantine", "not_loaded"))
    runs = ledger.last_runs(RUNS_SEARCHED)
    horizon = source.horizon()
    result = []
    for stream in streams:
        uuid = targets[stream.target]
        covered = coverage[stream.name].windows
        watermark = coverage[stream.name].watermark
        through = _through(source, stream, watermark, horizon.at)
        result.append(
            Standing(
                stream,
                watermark,
                through,
                max(horizon.taken_at - through, timedelta(0)),
                rows.get(stream.name, 0),
                aside.get(stream.name, 0),
                len(store.in_flight(stream, uuid)),
                uncovered(ledger.failures(stream, uuid, watermark), covered),
                next((run for run in runs if stream.name in run.streams), None),
            )
        )
    return Overview(horizon, tuple(result), tuple(failing_days(sink).values()), ledger.setback(), unpriced(sink))


def unpriced(sink: Sink) -> Unpriced:
    """What the metrics of all days leave out of spend."""
    return Unpriced(*map(int, sink.named("totals", "unpriced")[0]))
