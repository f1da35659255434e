"""Ways to get it wrong, each one line of the design left out. Patched into the processes the harness starts.

A harness that lets one of them pass proves nothing, so each names the schedule that must catch it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from datetime import timedelta
from typing import Any

from tests.chaos.points import replace as patch
from worker.ledger import Coverage
from worker.source import Horizon, Snapshot
from worker.sql import statements
from worker.watermarks import Watermark, parse_watermark
from worker.windows import ORIGIN, Window


@dataclass(frozen=True, slots=True)
class Mutant:
    """`apply` patches this process; `faults` are the names of the faults that provoke it, played again and again."""

    says: str
    apply: Callable[[], None]
    faults: tuple[str, ...]


def apply(name: str) -> None:
    """Turns this process into the mutant of that name; none if empty."""
    if name:
        MUTANTS[name].apply()


def _reword(file: str, name: str, old: str, new: str) -> None:
    text = statements(file)[name]
    if old not in text:
        raise AssertionError(f"{file}.{name} no longer holds {old!r}: the mutant would change nothing")
    statements(file)[name] = text.replace(old, new)


def _newest_row() -> None:
    def horizon(self: Any) -> Horizon:
        statement = "SELECT clock_timestamp(), greatest((SELECT max(inserted_at) FROM impressions), (SELECT max(inserted_at) FROM clicks))"
        now, newest = self._query("reading the newest row", statement)[0]
        return Horizon(newest + timedelta(microseconds=1) if newest else now, now, ())

    patch("worker.source:Source.horizon", lambda original: horizon)


def _idle_transactions() -> None:
    _reword("source", "open_transactions", "(xact_start IS NOT NULL OR", "(xact_start IS NOT NULL AND backend_xid IS NOT NULL OR")  # fmt: skip


def _prepared_transactions() -> None:
    _reword("source", "prepared_transactions", "WHERE database = current_database()", "WHERE false")


def _no_version() -> None:
    def with_one(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda stream, chunk, chosen, refused, version: original(stream, chunk, chosen, refused, 1)

    patch("worker.pipeline:_block", with_one)
    # It counts rows of this reading by their version, of which there is none.
    patch("worker.pipeline:_verify", lambda original: lambda *args: None)


def _token_reused() -> None:
    def token(uuid: Any, stream: Any, window: Window, version: int, chunk: int) -> str:
        return f"{uuid}/{stream.name}/{window}/{chunk}"

    patch("worker.pipeline:dedup_token", lambda original: token)
    # The product verifies what it inserted and would read the window again, in halves with tokens of their own.
    patch("worker.pipeline:_verify", lambda original: lambda *args: None)


def _redis_alone() -> None:
    def publish(ledger: Any, store: Any, streams: Any, targets: Any) -> dict[str, Coverage]:
        result = {}
        for stream in streams:
            seen = store.raw_watermark(stream)
            copy = parse_watermark(seen)
            believed = copy.at if copy else ORIGIN
            found = ledger.coverage([stream], targets)[stream.name]
            windows = tuple(window for window in found.windows if window.hi > believed)
            if believed > ORIGIN:
                windows = (Window(ORIGIN, believed), *windows)
            coverage = replace(found, windows=windows)
            generations = ledger.generations()
            number = generations[-1].number if generations else 0
            store.publish(stream, Watermark(coverage.watermark, targets[stream.target], number), seen)
            result[stream.name] = coverage
        return result

    patch("worker.planner:publish_watermarks", lambda original: publish)


def _callback_alone() -> None:
    for module in ("sync", "maintenance", "quality"):
        patch(f"worker.tasks.{module}:rebuild_dirty", lambda original: lambda *args, **kwargs: 0)


def _over_a_gap() -> None:
    def furthest(windows: Any, start: Any = ORIGIN) -> Any:
        return max((window.hi for window in windows), default=start)

    patch("worker.coverage:contiguous_end", lambda original: furthest)


def _unmerged() -> None:
    _reword("metrics", "build", "FROM ad_events FINAL", "FROM ad_events")


def _noted_forgotten() -> None:
    nothing: tuple[set[Any], set[Any]] = (set(), set())
    patch("worker.ledger:Ledger.superseded_days", lambda original: lambda *args: nothing)


def _zombie_swap() -> None:
    def swap(sink: Any, name: str, uuid: Any) -> None:
        sink.command("swapping", f"EXCHANGE TABLES `{name}` AND ad_events", retry=False)

    patch("worker.refresh:swap", lambda original: swap)
    patch("worker.refresh:_drop_older", lambda original: lambda *args: None)


def _snapshot_before_lock() -> None:
    def snapshot(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self, streams=(), *, newer=False: original(self, newer=newer)

    patch("worker.source:Source.snapshot", snapshot)
    # COPY and the rest take the lock themselves, after the snapshot.
    patch("worker.source:Source._require_locked", lambda original: lambda self, table: self._open())


def _believed() -> None:
    patch("worker.dimensions:_require_rows", lambda original: lambda *args: None)


def _unpriced_as_nothing() -> None:
    _reword("metrics", "build", "NOT bids.is_known AND counted.campaign_id != 0", "false")


def _cents() -> None:
    _reword("metrics", "build", "toDecimal128(bids.bid_amount, 6)", "toDecimal128(bids.bid_amount, 2)")


def _servers_calendar() -> None:
    for column in ("created_at", "valid_from"):
        end = " AS piece" if column == "created_at" else " FROM bids"
        piece = f"roundDown(toUnixTimestamp64Micro({column}), %(begins)s){end}"
        _reword("metrics", "build", piece, f"toDate32({column}, 'America/St_Johns'){end}")
    day = "toDate32(toInt32(transform(counted.piece, %(begins)s, %(day_numbers)s, 0)))"
    _reword("metrics", "build", day, "counted.piece")


def _calendar_unmarked() -> None:
    patch("worker.calendars:_finished", lambda original: lambda sink, ledger, entries: entries)


def _made_up_version() -> None:
    def snapshot(original: Callable[..., Any]) -> Callable[..., Any]:
        @contextmanager
        def taken(self: Any, *args: Any, newer: bool = False, **options: Any) -> Iterator[Snapshot]:
            with original(self, *args, **options) as found:
                yield _OneAbove(*astuple(found)) if newer else found

        return taken

    patch("worker.source:Source.snapshot", snapshot)


class _OneAbove(Snapshot):
    """A snapshot that claims to be one version newer than it is."""

    def version(self, generation: int) -> int:
        """One more than what the snapshot shows."""
        return Snapshot.version(self, generation) + 1


def _forgetful_mend() -> None:
    def live_only(sink: Any, insert: Callable[[str], None]) -> None:
        insert("ad_events")

    for module in ("reconcile", "replay"):
        patch(f"worker.{module}:write_everywhere", lambda original: live_only)


MUTANTS: dict[str, Mutant] = {
    "max-inserted-at": Mutant("watermark from max(inserted_at)", _newest_row, ("kill child at committed",)),
    "idle-transactions": Mutant("horizon without idle transactions", _idle_transactions, ("transaction held open",)),
    "prepared-ignored": Mutant("prepared transactions ignored", _prepared_transactions, ("transaction prepared",)),
    "no-version": Mutant("rows without a version", _no_version, ("overtaken zombie",)),
    "token-reused": Mutant("a token reused for a new reading", _token_reused, ("rows move between two readings",)),
    "redis-alone": Mutant("watermark kept in Redis alone", _redis_alone, ("watermark set into the future",)),
    "callback-alone": Mutant("finalizer only in the chord callback", _callback_alone, ("chord callback lost",)),
    "over-a-gap": Mutant("watermark advanced over a gap", _over_a_gap, ("window lost with its message",)),
    "unmerged": Mutant("metrics rebuilt from an unmerged table", _unmerged, ("events move",)),
    "snapshot-before-lock": Mutant("snapshot before lock", _snapshot_before_lock, ("table rewritten mid-window",)),
    "unpriced-as-nothing": Mutant(
        "events before their campaign priced at 0", _unpriced_as_nothing, ("campaign after its events",)
    ),
    "cents": Mutant("money counted in cents", _cents, ("campaign after its events",)),
    "servers-calendar": Mutant(
        "days cut by ClickHouse's calendar", _servers_calendar, ("days that calendars cut differently",)
    ),
    "calendar-unmarked": Mutant(
        "a calendar in force whose days nobody marks", _calendar_unmarked, ("calendar changed by who died",)
    ),
    "noted-forgotten": Mutant(
        "days noted by an attempt that died are not marked", _noted_forgotten, ("merges between two readings",)
    ),
    "zombie-swap": Mutant("a swap by a zombie refresh", _zombie_swap, ("overtaken refresh",)),
    "empty-dimension": Mutant("an empty dimension believed", _believed, ("campaign emptied",)),
    "made-up-version": Mutant("a made-up version", _made_up_version, ("heal while a row changes",)),
    "forgetful-mend": Mutant("a mend that the swap forgets", _forgetful_mend, ("heal in the middle of a refresh",)),
}
