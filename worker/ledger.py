"""The ledger in ClickHouse, beside the data it speaks of: the truth about what is loaded.

A commit says that a window of a stream is in a table, whole. The watermark of a stream is the end of the contiguous
run of commits for the uuid of the table that is live; nothing else decides what is read next.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Literal
from uuid import UUID

from worker.coverage import CHECKPOINT_AFTER as CHECKPOINT_AFTER
from worker.coverage import CHECKPOINT_AGE, base_of, limit_of
from worker.coverage import Commit as Commit
from worker.coverage import Coverage as Coverage
from worker.coverage import Generation as Generation
from worker.coverage import effective as effective
from worker.errors import HorizonUnsafe
from worker.sql import chunks, named
from worker.streams import EVENT_STREAMS, EVENTS_TABLE, Stream
from worker.windows import MICROSECOND, ORIGIN, Window, instant, to_micros

if TYPE_CHECKING:
    from worker.calendar import Calendar
    from worker.sink import Sink
    from worker.source import Snapshot

ENDLESS = 2**63 - 1
"""The limit, in microseconds, of a generation that no other follows."""

LAST_GENERATION = 255

DAYS_AT_ONCE = 2000
"""Days that one statement marks: ClickHouse takes a quarter of a megabyte of SQL. Rows of one transaction may lie in as
many days as they like."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A window that failed `count` times, last at `last` for `error`; `now` is the server's clock when asked.

    First at `first`, and `recent` times since the instant that was asked for. What a dimension's window ends with is only
    where its watermark stands: it is read whole.
    """

    window: Window
    count: int
    last: datetime
    error: str
    now: datetime
    first: datetime = ORIGIN
    recent: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """A pipeline run or a full refresh, as the ledger has it."""

    run_id: str
    kind: Literal["pipeline", "refresh"]
    streams: tuple[str, ...]
    metrics_update: bool
    until: datetime
    started_at: datetime
    state: Literal["running", "succeeded", "failed", "superseded"] = "running"
    target_uuid: UUID | None = None
    version: int = 0
    message: str = ""
    updated_at: datetime = ORIGIN
    age: timedelta = field(default=timedelta(0), compare=False)


class Ledger:
    """Reads and writes the ledger through a sink."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    # Generations

    def generations(self) -> list[Generation]:
        """Every generation seen, in order."""
        rows = self._sink.named("ledger", "generations")
        return [Generation(number, system_id, timeline, instant(at)) for number, system_id, timeline, at in rows]

    def generation(self, snapshot: Snapshot, *, failover_rewind: timedelta) -> int:
        """The newest generation of the server a snapshot was taken on; a server never seen begins a new one.

        On a promoted replica of the same system, watermarks go back by `failover_rewind`: rows may have been lost
        and their keys used again. On another system they go back to the origin.
        """
        known = self.generations()
        present = [g for g in known if (g.system_id, g.timeline) == (snapshot.system_id, snapshot.timeline)]
        if present:
            return present[-1].number
        same_system = bool(known) and known[-1].system_id == snapshot.system_id
        rewind_to = max(ORIGIN, snapshot.taken_at - failover_rewind) if same_system else ORIGIN
        return self.open_generation(snapshot, rewind_to)

    def open_generation(self, snapshot: Snapshot, rewind_to: datetime) -> int:
        """Begins the next generation, of the server a snapshot was taken on. Raises `HorizonUnsafe` after the 255th."""
        known = self.generations()
        number = known[-1].number + 1 if known else 1
        if number > LAST_GENERATION:
            raise HorizonUnsafe(
                f"The source was replaced or set back {LAST_GENERATION} times, and versions of rows have no room for more; "
                "name a new database in CLICKHOUSE_DSN, which is filled anew."
            )
        self._sink.insert_rows(
            "source_generations",
            ("generation", "system_id", "timeline", "rewind_to"),
            [(number, snapshot.system_id, snapshot.timeline, rewind_to)],
            token=f"generation/{number}/{snapshot.system_id}/{snapshot.timeline}",
        )
        return number

    def newest_version(self, uuids: Iterable[UUID]) -> int:
        """The newest version that is committed for these tables, 0 without any. Ask before a snapshot is taken."""
        chosen = tuple(uuids)
        return int(self._sink.named("ledger", "newest_version", {"uuids": chosen})[0][0]) if chosen else 0

    def setback(self, *, while_refreshed: bool = False) -> str:
        """The sentence that says why nothing may be loaded from this source any more; empty where it may, which is also
        while a full refresh of all events is under way, unless `while_refreshed`. One that ends before its swap mends nothing.
        """
        parameters = {"database": self._sink.database, "live": EVENTS_TABLE}
        for generation, message in self._sink.named("ledger", "setbacks", parameters):
            running = [] if while_refreshed else [run for run in self.open_runs() if run.version >> 56 > generation]
            if not any({stream.name for stream in EVENT_STREAMS} <= set(run.streams) for run in running):
                return str(message)
        return ""

    def note_setback(self, generation: int, cause: Literal["transactions", "clock"], message: str) -> None:
        """Keeps that the source of this generation went back. Who else notices the same changes nothing."""
        token = f"setback/{generation}/{cause}"
        self._sink.insert_rows(
            "source_setbacks", ("generation", "cause", "message"), [(generation, cause, message)], token=token
        )

    # Coverage and watermarks

    def live(self, streams: Iterable[Stream]) -> dict[str, UUID]:
        """The uuid of each target table that is live now."""
        return {name: self._sink.uuid(name) for name in sorted({stream.target for stream in streams})}

    def coverage(
        self, streams: Sequence[Stream], targets: dict[str, UUID], generations: Sequence[Generation] | None = None
    ) -> dict[str, Coverage]:
        """For each stream, what the table `targets[stream.target]` holds, with `generations` if they are at hand."""
        if not streams:
            return {}
        generations = self.generations() if generations is None else generations
        bases = self._bases(streams, targets, generations)
        from_base = named("ledger", "commits_from")
        ranges = " OR ".join(from_base.format(number=number) for number in range(len(streams)))
        limits = {one.number: limit_of(one.number, generations) for one in generations} or {0: None}
        parameters: dict[str, object] = {
            "settled_seconds": int(CHECKPOINT_AGE.total_seconds()),
            "generations": list(limits),
            "limits": [ENDLESS if limit is None else to_micros(limit) for limit in limits.values()],
        }
        for number, one in enumerate(streams):
            some = {"stream": one.name, "uuid": targets[one.target], "base": bases[one.name]}
            parameters |= {f"{name}_{number}": value for name, value in some.items()}
        statement = named("ledger", "commits").format(ranges=ranges)
        found: dict[str, list[Commit]] = {stream.name: [] for stream in streams}
        settled: set[str] = set()
        for name, lo, hi, generation, old in self._sink.query("reading commits", statement, parameters):
            found[name].append(Commit(Window(lo, hi), generation))
            if old:
                settled.add(name)
        result = {}
        for name, commits in found.items():
            base = bases[name]
            proven = [Window(ORIGIN, base)] if base > ORIGIN else []
            windows = (*proven, *effective(commits, generations))
            result[name] = Coverage(windows, len(commits), base, name in settled)
        return result

    def _bases(
        self, streams: Sequence[Stream], targets: dict[str, UUID], generations: Sequence[Generation]
    ) -> dict[str, datetime]:
        """How far each stream's table is whole by its checkpoints alone."""
        parameters = {
            "uuids": tuple(sorted({targets[stream.target] for stream in streams})),
            "streams": tuple(stream.name for stream in streams),
        }
        known: dict[str, dict[int, datetime]] = {stream.name: {} for stream in streams}
        uuids = {stream.name: targets[stream.target] for stream in streams}
        for name, uuid, generation, until in self._sink.named("ledger", "checkpoints", parameters):
            if uuids[name] == uuid:
                known[name][generation] = instant(until)
        return {name: base_of(checkpoints, generations) for name, checkpoints in known.items()}

    def committed(self, stream: Stream, uuid: UUID, window: Window, generation: int) -> tuple[list[Window], datetime]:
        """Commits of this generation that touch the window, and when ClickHouse was asked, by its clock."""
        parameters = {
            "stream": stream.name,
            "uuid": uuid,
            "lo": window.lo,
            "hi": window.hi,
            "generation": generation,
        }
        ((commits, asked_at),) = self._sink.named("ledger", "covered", parameters)
        return [Window(lo, hi) for lo, hi in commits], instant(asked_at)

    def commit(
        self,
        stream: Stream,
        uuid: UUID,
        window: Window,
        *,
        run_id: str,
        version: int,
        rows: int,
        quarantined: int,
        content_hash: int,
        snapshot: Snapshot,
        extracted: int | None = None,
    ) -> None:
        """Records that the window is in the table, whole. The last thing done for a window.

        `extracted` are the rows read; where it is not given, as many as were loaded and quarantined.
        """
        columns = (
            "stream", "target_uuid", "lo", "hi", "kind", "run_id", "version", "rows", "quarantined", "content_hash",
            "system_id", "timeline", "extracted",
        )  # fmt: skip
        row = (
            stream.name, uuid, window.lo, window.hi, "window", run_id, version, rows, quarantined, content_hash,
            snapshot.system_id, snapshot.timeline, rows + quarantined if extracted is None else extracted,
        )  # fmt: skip
        token = f"window/{uuid}/{stream.name}/{window}/{version}/{run_id}"
        self._sink.insert_rows("sync_commits", columns, [row], token=token)

    def checkpoint(self, stream: Stream, uuid: UUID, watermark: datetime, generation: Generation) -> None:
        """Lets one row stand for all commits before the watermark, as of that generation. The furthest one counts."""
        if watermark > ORIGIN:
            columns = ("stream", "target_uuid", "generation", "checkpoint")
            token = f"checkpoint/{uuid}/{stream.name}/{generation.number}/{to_micros(watermark)}"
            self._sink.insert_rows(
                "sync_totals", columns, [(stream.name, uuid, generation.number, watermark)], token=token
            )

    # Attempts

    def note_superseding(self, stream: Stream, uuid: UUID, window: Window, days: Iterable[date], token: str) -> None:
        """Records, before the insert that overwrites them, the days from which events are about to move."""
        self._attempt(stream, uuid, window, "superseding", "", sorted(days), "", f"superseding/{token}")

    def superseded_days(
        self, stream: Stream, uuid: UUID, window: Window, since: datetime
    ) -> tuple[set[date], set[date]]:
        """Days noted by any attempt at rows of this window, and those that others marked since that instant."""
        parameters = {"stream": stream.name, "uuid": uuid, "lo": window.lo, "hi": window.hi, "since": since}
        rows = self._sink.named("ledger", "superseded_days", parameters)
        return {day for day, others in rows if not others}, {day for day, others in rows if others}

    def note_failure(self, stream: Stream, uuid: UUID, window: Window, run_id: str, error: str) -> None:
        """Records that the window could not be loaded, and why."""
        # Without a token of its own, a failure like the one before would count as that one sent again.
        token = f"failed/{secrets.token_hex(8)}"
        self._attempt(stream, uuid, window, "failed", run_id, [], error[:1000], token)

    def note_failed_reading(self, stream: Stream, uuid: UUID, run_id: str, error: str) -> None:
        """Records that a dimension could not be read, and why. Until a reading succeeds all are one failure."""
        watermark = self.coverage([stream], {stream.target: uuid})[stream.name].watermark
        self.note_failure(stream, uuid, Window(ORIGIN, watermark + MICROSECOND), run_id, error)

    def _attempt(
        self,
        stream: Stream,
        uuid: UUID,
        window: Window,
        outcome: str,
        run_id: str,
        days: list[date],
        error: str,
        token: str | None,
    ) -> None:
        columns = ("stream", "target_uuid", "lo", "hi", "outcome", "run_id", "days", "error")
        row = (stream.name, uuid, window.lo, window.hi, outcome, run_id, days, error)
        self._sink.insert_rows("sync_attempts", columns, [row], token=token)

    def failures(self, stream: Stream, uuid: UUID, watermark: datetime, since: datetime = ORIGIN) -> list[Failure]:
        """Windows not behind the watermark that failed; `recent` counts from `since`, by ClickHouse's clock."""
        parameters = {"stream": stream.name, "uuid": uuid, "watermark": watermark, "since": since}
        return [
            Failure(Window(lo, hi), count, instant(last), error, instant(now), instant(first), recent)
            for lo, hi, count, last, error, now, first, recent in self._sink.named("ledger", "failures", parameters)
        ]

    # Days

    def mark_days(self, days: Iterable[date], again: Iterable[date] = ()) -> None:
        """Says that the content of these reporting days changed; call it after the rows were acknowledged.

        Those of `again` were marked by others meanwhile, and may have changed once more since.
        """
        own = set(days)
        others = set(again) - own
        for some in chunks(sorted(own | others), DAYS_AT_ONCE):
            parameters = {"days": some, "again": [day for day in some if day in others]}
            self._sink.command("marking days", named("events", "mark_days"), parameters)

    def days_held(self, *cut_by: Calendar) -> set[date]:
        """Days that have metrics, and days that have events by any of these calendars. Reads one column of all events."""
        days = {day for (day,) in self._sink.named("calendar", "days_said")}
        for first, last in self._sink.named("calendar", "hours_held"):
            for each in cut_by:
                days |= {each.day_of_micros(first), each.day_of_micros(last)}
        return days

    def mark_all_days(self, cut_by: Calendar) -> None:
        """Says so of every day that has events or metrics."""
        self.mark_days(self.days_held(cut_by))

    # Reconciliations

    def save_reconciliation(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Writes how days of a stream compare; a later row of the same run, stream and day replaces an earlier one."""
        self._sink.insert_rows("reconciliations", columns, rows)

    # Runs

    def save_run(self, run: Run) -> None:
        """Writes the run as it is now."""
        columns = (
            "run_id", "kind", "state", "streams", "metrics_update", "until", "target_uuid", "version", "message",
            "started_at",
        )  # fmt: skip
        row = (
            run.run_id, run.kind, run.state, list(run.streams), run.metrics_update, run.until, run.target_uuid,
            run.version, run.message, run.started_at,
        )  # fmt: skip
        self._sink.insert_rows("sync_runs", columns, [row])

    def end_run(self, run: Run, state: Literal["succeeded", "failed", "superseded"], message: str = "") -> Run:
        """Writes how the run ended, and returns it so."""
        ended = replace(run, state=state, message=message)
        self.save_run(ended)
        return ended

    def run(self, run_id: str) -> Run | None:
        """The run of that id, or None."""
        found = self._runs("run", run_id=run_id)
        return found[0] if found else None

    def open_runs(self) -> list[Run]:
        """Runs that have not ended, oldest first."""
        return self._runs("open_runs")

    def last_runs(self, limit: int) -> list[Run]:
        """The latest runs, newest first."""
        return self._runs("last_runs", limit=limit)

    def _runs(self, name: str, **parameters: object) -> list[Run]:
        result = []
        for row in self._sink.named("ledger", name, parameters):
            run_id, kind, state, streams, metrics_update, until, uuid, version, message, started, updated, now = row
            result.append(
                Run(
                    run_id,
                    kind,
                    tuple(streams),
                    metrics_update,
                    instant(until),
                    instant(started),
                    state,
                    uuid,
                    version,
                    message,
                    instant(updated),
                    instant(now) - instant(updated),
                )
            )
        return result

    def totals(self, uuids: Iterable[UUID]) -> dict[str, tuple[int, int, datetime]]:
        """Rows loaded, rows quarantined and time of the last commit, by stream, for these tables."""
        rows = self._sink.named("ledger", "totals", {"uuids": tuple(uuids)})
        return {name: (loaded, held, instant(at)) for name, loaded, held, at in rows}

    def now(self) -> datetime:
        """ClickHouse's clock, UTC."""
        value: datetime = self._sink.named("ledger", "now")[0][0]
        return instant(value)


def dedup_token(uuid: UUID, stream: Stream, window: Window, version: int, chunk: int) -> str:
    """Names one reading of one chunk: a resend carries the same token, a new reading another."""
    return f"{uuid}/{stream.name}/{to_micros(window.lo)}/{to_micros(window.hi)}/{version}/{chunk}"
