"""PostgreSQL, and the only user of psycopg2: sessions, the safe horizon, window boundaries, and rows as columns.

Sessions are read-only and run in UTC. Every statement has a deadline on both sides: `statement_timeout` at the
server, and here a timer that cuts the socket of a server that stopped answering. A `Source` is one session for one
thread of one process; open it after a fork.
"""

from __future__ import annotations

import os
import queue
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Protocol, TypeVar

import numpy as np
import psycopg2
import psycopg2.extensions
import structlog
import tenacity
from numpy.typing import NDArray
from psycopg2 import sql as pgsql

from worker import sessions, transient
from worker.columns import Column, Int64s, Refusals, Rows, not_utf8, since_1970
from worker.config import UNREADABLE, Settings
from worker.copyframes import MESSAGE_HEAD, CopyFrames, ProtocolError
from worker.dimension_rows import SourceColumn
from worker.errors import HorizonUnsafe, SourceFailure, TransientSource, Unreachable
from worker.sessions import Seen
from worker.sql import named
from worker.streams import EVENT_STREAMS, STREAMS, Stream
from worker.windows import Histogram, Window, instant

log = structlog.get_logger()

GRACE_SECONDS = 15
"""How much longer than the server's own limit a statement may take before its connection is cut."""

READ_BYTES = 1 << 18
"""Asked of the socket at once: what comes is decoded while it is still in the processor's cache."""

WIDE_CHUNK_BYTES = 24 << 20
"""Where rows have further columns a chunk also ends with the row that brings it to so many bytes."""

PART_BYTES = 3 << 20
"""Of wide rows, so many are decoded at once: enough for numpy, few enough for the processor's cache."""

FIRST_ROWS, ROWS_AT_ONCE, BATCH_BYTES = 100, 10_000, 8 << 20
"""Of a dimension, fetched at first and at most; fewer where a row was so large that they might exceed these bytes."""

ESTIMATED_FROM = 50_000
"""Rows of a window from which on it may hold a little more or less, which spares walking over them to count them."""

T = TypeVar("T")

_ROW = np.dtype(
    [("kind", "u1"), ("size", ">i4"), ("fields", ">i2")]
    + [item for i in range(4) for item in ((f"length{i}", ">i4"), (f"value{i}", ">i8"))]
)


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody whose open or prepared transaction holds the horizon back. `since` is UTC, `age` as the server sees it."""

    who: str
    user: str
    application: str
    since: datetime
    age: timedelta
    prepared: bool = False


@dataclass(frozen=True, slots=True)
class Horizon:
    """Every row with `inserted_at < at` is committed or will never be; `at` is None while nothing may be planned."""

    at: datetime | None
    taken_at: datetime
    holders: tuple[Holder, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a reading transaction sees: of which server, and how new. `taken_at` is its start by the server's clock."""

    system_id: int
    timeline: int
    xmax: int
    in_progress: int
    taken_at: datetime

    def version(self, generation: int) -> int:
        """A number that never falls as snapshots of one generation get newer; equal numbers see equal data.

        generation·2^56 + xmax·2^16 + (65535 − transactions in progress): between two snapshots of one xmax, the newer
        one has fewer transactions in progress. Raises `HorizonUnsafe` where one of the three has no room in it.
        """
        for what, value, bits in (
            ("transaction id", self.xmax, 40),
            ("number of transactions in progress", self.in_progress, 16),
            ("number of generations of the source", generation, 8),
        ):
            if value >= 1 << bits:
                raise HorizonUnsafe(
                    f"The source's {what} is {value:,}, and versions of rows hold less than {1 << bits:,}, so older rows "
                    "could win over newer ones; nothing is synced from this server any more."
                )
        return (generation << 56) | (self.xmax << 16) | (65_535 - self.in_progress)


@dataclass(frozen=True, slots=True)
class TableFacts:
    """What syncing needs of a source table and whether it is there; of a dimension only that it can be read."""

    name: str
    exists: bool
    readable: bool
    inserted_at: str
    not_null: bool
    indexed: bool
    triggered: bool
    bare: str = ""
    """A part or child of the table that lacks one of these itself; empty where none does."""


@dataclass(frozen=True, slots=True)
class SourceTotals:
    """Counts of one instant, and the sums of bids over events, each at its campaign's bid of now."""

    advertisers: int
    campaigns: int
    impressions: int
    clicks: int
    bids_of_impressions: Decimal
    bids_of_clicks: Decimal


@dataclass(frozen=True, slots=True)
class EventColumns:
    """Events as columns of equal length; instants in microseconds since 1970 UTC, infinities as int64 extremes.

    `extra` holds the stream's further columns by name, and `refused` the rows with a value those cannot hold.
    """

    event_id: Int64s
    campaign_id: Int64s
    created_at: Int64s
    inserted_at: Int64s
    extra: dict[str, Column] = field(default_factory=dict)
    refused: Refusals = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.event_id)

    def take(self, which: Any) -> EventColumns:
        """The rows a numpy index selects."""
        return EventColumns(
            self.event_id[which],
            self.campaign_id[which],
            self.created_at[which],
            self.inserted_at[which],
            {name: column.take(which) for name, column in self.extra.items()},
            [(rule, rows[which]) for rule, rows in self.refused],
        )

    @classmethod
    def joined(cls, parts: Sequence[EventColumns]) -> EventColumns:
        """The rows of all parts, one part after the other."""
        if len(parts) == 1:
            return parts[0]
        refused: Refusals = []
        begin, size = 0, sum(map(len, parts))
        for part in parts:
            for rule, rows in part.refused:
                whole = np.zeros(size, np.bool_)
                whole[begin : begin + len(part)] = rows
                refused.append((rule, whole))
            begin += len(part)
        return cls(
            np.concatenate([part.event_id for part in parts]),
            np.concatenate([part.campaign_id for part in parts]),
            np.concatenate([part.created_at for part in parts]),
            np.concatenate([part.inserted_at for part in parts]),
            {name: Column.joined([part.extra[name] for part in parts]) for name in parts[0].extra},
            refused,
        )


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except psycopg2.Error as error:
        state = error.pgcode
        text = (error.diag.message_primary if error.diag else None) or str(error).strip().partition("\n")[0]
        message = f"PostgreSQL failed while {doing}: {text}{f' (SQLSTATE {state})' if state else ''}."
        connection_lost = state is None and isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)
        if connection_lost or (state is not None and transient.postgres(state)):
            raise TransientSource(message, sqlstate=state) from error
        raise SourceFailure(message, sqlstate=state) from error


class Chunks(Protocol):
    """Takes rows as `CopyFrames` hands them on, and gathers them into chunks; full ones are in `ready`."""

    ready: deque[EventColumns]

    def add(self, rows: memoryview, starts: Int64s | None) -> None:
        """Takes whole rows. Raises `SourceFailure` where they are not what was asked for."""

    def finish(self) -> None:
        """Puts what is left into `ready`."""


class NarrowChunks:
    """Rows of four fields of eight bytes, decoded straight into the columns of a chunk: its only copy here."""

    def __init__(self, chunk_rows: int) -> None:
        self.ready: deque[EventColumns] = deque()
        self._rows = chunk_rows
        self._filled = 0
        self._columns = self._new()

    def _new(self) -> tuple[Int64s, ...]:
        return tuple(np.empty(self._rows, np.int64) for _ in range(4))

    def add(self, rows: memoryview, starts: Int64s | None) -> None:
        """Takes whole rows of one size."""
        fields = fixed_fields(rows)
        position = 0
        while position < len(fields):
            part = fields[position : position + self._rows - self._filled]
            for i, column in enumerate(self._columns):
                column[self._filled : self._filled + len(part)] = part[f"value{i}"]
            self._filled += len(part)
            position += len(part)
            if self._filled == self._rows:
                self.finish()

    def finish(self) -> None:
        """Puts what is left into `ready`."""
        if self._filled:
            ids, campaigns, created, inserted = (column[: self._filled] for column in self._columns)
            self.ready.append(EventColumns(ids, campaigns, since_1970(created), since_1970(inserted)))
            self._columns, self._filled = self._new(), 0


class WideChunks:
    """Rows with further fields of any size: gathered as they come, and decoded some thousands at a time."""

    def __init__(
        self, stream: Stream, chunk_rows: int, chunk_bytes: int = WIDE_CHUNK_BYTES, *, any_bytes: bool = False
    ) -> None:
        self.ready: deque[EventColumns] = deque()
        self._stream, self._rows, self._bytes, self._any_bytes = stream, chunk_rows, chunk_bytes, any_bytes
        self._parts: list[EventColumns] = []
        self._count = self._size = 0
        self._begin()

    def _begin(self) -> None:
        self._buffer = bytearray()
        self._starts: list[Int64s] = []

    def add(self, rows: memoryview, starts: Int64s | None) -> None:
        """Takes whole rows. A chunk ends where the rows say so and never where the network cut them."""
        if starts is None:
            raise SourceFailure("PostgreSQL's rows came without their beginnings.")
        ends = np.append(starts[1:], len(rows))
        position = 0
        while position < len(starts):
            begin = int(starts[position])
            full = int(np.searchsorted(ends[position:], self._bytes - self._size + begin)) + 1
            until = min(position + min(full, self._rows - self._count), len(starts))
            end = int(ends[until - 1])
            self._starts.append(starts[position:until] - begin + len(self._buffer))
            self._buffer += rows[begin:end]
            self._count += until - position
            self._size += end - begin
            position = until
            if self._count == self._rows or self._size >= self._bytes:
                self.finish()
        if len(self._buffer) >= PART_BYTES:
            self._decode()

    def _decode(self) -> None:
        if self._starts:
            self._parts.append(decode_wide(self._buffer, np.concatenate(self._starts), self._stream, self._any_bytes))
            self._begin()

    def finish(self) -> None:
        """Puts what is left into `ready`."""
        self._decode()
        if self._parts:
            self.ready.append(EventColumns.joined(self._parts))
            self._parts = []
            self._count = self._size = 0


def fixed_fields(rows: bytes | bytearray | memoryview) -> NDArray[Any]:
    """The four fields of rows that have no others. Raises `SourceFailure` where one has not eight bytes."""
    fields = np.frombuffer(rows, dtype=_ROW)
    if not ((fields["fields"] == 4).all() and all((fields[f"length{i}"] == 8).all() for i in range(4))):
        raise SourceFailure("PostgreSQL sent a row that is not four fields of eight bytes; nothing was loaded from it.")
    return fields


def decode_wide(buffer: bytes | bytearray, starts: Int64s, stream: Stream, any_bytes: bool = False) -> EventColumns:
    """Columns from whole rows of the binary COPY format that begin at these places of the buffer.

    With `any_bytes`, text may hold any; rows whose text is not UTF-8 are refused.

    Raises `SourceFailure` where a row is not four fields of eight bytes and the stream's further ones.
    """
    trouble = SourceFailure(
        f"PostgreSQL sent a row of {stream.source_table} that is not what was asked for; nothing was loaded from it."
    )
    ends = np.append(starts[1:], len(buffer))
    if (ends - starts < _ROW.itemsize + 4 * len(stream.extra)).any():
        raise trouble
    rows = Rows(memoryview(buffer), starts + _ROW.itemsize)
    fields = rows.gather(f"V{_ROW.itemsize}", starts).view(_ROW)
    if not (
        (fields["fields"] == 4 + len(stream.extra)).all() and all((fields[f"length{i}"] == 8).all() for i in range(4))
    ):
        raise trouble
    extra: dict[str, Column] = {}
    refused: Refusals = []
    try:
        for each in stream.extra:
            extra[each.name], rules = rows.column(each.name, each.type)
            refused += rules
            if any_bytes and each.source_type == "text":
                refused += not_utf8(each.name, extra[each.name])
    except (ValueError, IndexError):
        raise trouble from None
    if not (rows.at == ends).all():
        raise trouble
    ids, campaigns, created, inserted = (fields[f"value{i}"].astype(np.int64) for i in range(4))
    return EventColumns(ids, campaigns, since_1970(created), since_1970(inserted), extra, refused)


class Source:
    """One read-only session. Opens at first use, and again after it was lost."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection: psycopg2.extensions.connection | None = None
        self._locked: frozenset[str] = frozenset()
        self._reading: psycopg2.extensions.connection | None = None

    def close(self) -> None:
        """Closes the session; the next statement opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except psycopg2.Error:
                log.debug("source.close_failed")

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> psycopg2.extensions.connection:
        if self._connection is None or self._connection.closed:
            settings = self._settings
            self._refuse_unreadable()
            given = psycopg2.extensions.parse_dsn(settings.source_dsn).get("options", "")
            try:
                connection = psycopg2.connect(
                    settings.source_dsn,
                    application_name=sessions.READER,
                    connect_timeout=settings.connect_timeout_seconds,
                    gssencmode="disable",
                    client_encoding="UTF8",
                    keepalives_idle=10,
                    keepalives_interval=5,
                    keepalives_count=3,
                    options=sessions.options(settings, given),
                )
            except psycopg2.Error as error:
                reason = str(error).strip().replace("\n", " ")
                raise TransientSource(
                    f"PostgreSQL at {settings.server_label('postgres')} cannot be reached: {reason}.",
                    sqlstate=error.pgcode,
                ) from None
            connection.autocommit = True
            try:
                with _translated("opening a session"), self._deadline(connection):
                    sessions.vouch(connection, settings)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _refuse_unreadable(self) -> None:
        """Raises `SourceFailure` where libpq would take a part of the password for something else, and repeat it."""
        try:
            port = str(psycopg2.extensions.parse_dsn(self._settings.source_dsn).get("port", ""))
            known = all(one.isdecimal() for one in port.split(",") if one)
        except psycopg2.ProgrammingError:
            known = False
        if not known or self._settings.server_label("postgres") == UNREADABLE:
            raise SourceFailure(
                "POSTGRES_DSN is not usable: it must read postgresql://user:password@host:port/database, with each special "
                "character of user and password percent-encoded, or be a list of key=value as libpq takes it."
            )

    @contextmanager
    def _deadline(self, connection: psycopg2.extensions.connection) -> Iterator[None]:
        """Cuts the socket if the server has not answered well after it should have timed out by itself."""
        seconds = self._settings.postgres_statement_timeout_seconds + GRACE_SECONDS
        timer = threading.Timer(seconds, _cut, args=(connection,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _once(self, doing: str, statement: Any, parameters: Any = None) -> list[tuple[Any, ...]]:
        with _translated(doing):
            connection = self._open()
            try:
                with self._deadline(connection), connection.cursor() as cursor:
                    cursor.execute(statement, parameters)
                    return cursor.fetchall() if cursor.description else []
            except psycopg2.errors.LockNotAvailable as error:
                raise TransientSource(self._waited(doing, connection), sqlstate=error.pgcode) from None
            except psycopg2.errors.InsufficientPrivilege:
                self._refuse_hidden(connection)
                raise
            except (psycopg2.OperationalError, psycopg2.InterfaceError):
                self.close()
                raise

    def _waited(self, doing: str, connection: psycopg2.extensions.connection) -> str:
        """What to say of a lock that was not granted in time, with who holds it or waits for it."""
        names = [stream.source_table for stream in STREAMS.values()]
        with self._deadline(connection), connection.cursor() as cursor:
            # Of a transaction that failed nothing more can be asked, and what was read in it is void.
            cursor.execute("ROLLBACK")
            cursor.execute(named("source", "lock_holders"), {"names": names})
            told = sessions.waited_for(cursor.fetchall(), self._settings.lock_wait_seconds)
        return f"PostgreSQL failed while {doing}: {told}."

    def _refuse_hidden(self, connection: psycopg2.extensions.connection) -> None:
        """Raises `SourceFailure` with the table of which something is kept from this role, where it is one of ours."""
        with self._deadline(connection), connection.cursor() as cursor:
            cursor.execute("ROLLBACK")
            cursor.execute(named("source", "seen"), {"names": [stream.source_table for stream in STREAMS.values()]})
            seen = [Seen(*row) for row in cursor.fetchall()]
        events = {stream.source_table for stream in EVENT_STREAMS}
        for found in seen:
            if found.kind and (reason := sessions.refusal(found, events=found.name in events)):
                raise SourceFailure(reason, sqlstate="42501")

    def retried(self, work: Callable[[], T]) -> T:
        """`work()`, again on `TransientSource`: jittered, capped in tries and total time, each retry logged."""
        settings = self._settings

        def noted(state: tenacity.RetryCallState) -> None:
            cause = state.outcome.exception() if state.outcome else None
            wait = state.next_action.sleep if state.next_action else 0.0
            log.warning("source.retry", attempt=state.attempt_number, wait_seconds=round(wait, 3), cause=str(cause))

        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TransientSource),
            stop=tenacity.stop_after_attempt(settings.retry_attempts)
            | tenacity.stop_after_delay(settings.retry_total_seconds),
            wait=tenacity.wait_exponential_jitter(multiplier=0.1, max=5.0),
            before_sleep=noted,
            reraise=True,
        )(work)

    def _query(self, doing: str, statement: Any, parameters: Any = None) -> list[tuple[Any, ...]]:
        return self.retried(lambda: self._once(doing, statement, parameters))

    def described(self, doing: str, statement: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Column names and rows of a SELECT, retried when transient. `doing` completes «PostgreSQL failed while …»."""

        def work() -> tuple[list[str], list[tuple[Any, ...]]]:
            with _translated(doing):
                connection = self._open()
                try:
                    with self._deadline(connection), connection.cursor() as cursor:
                        cursor.execute(statement)
                        return [column.name for column in cursor.description or ()], cursor.fetchall()
                except (psycopg2.OperationalError, psycopg2.InterfaceError):
                    self.close()
                    raise

        return self.retried(work)

    def ping(self) -> None:
        """One statement, one try. Raises `Unreachable`."""
        try:
            self._once("greeting it", "SELECT 1")
        except SourceFailure as error:
            raise Unreachable(str(error)) from None

    def privileges(self) -> dict[str, Any]:
        """standby, reads_all_stats, role, database and version of this session's server; sees_statements, whether it
        sees those of others; activity, what shows when their transactions began."""
        return _privileges(self._query("checking privileges", named("source", "privileges")))

    def tables(self) -> list[TableFacts]:
        """How the source tables stand; for `doctor`."""
        return [TableFacts(*row) for row in self._query("looking at its tables", named("source", "tables"))]

    def seen(self) -> list[Seen]:
        """What of the source tables this role is let see; for `doctor`."""
        names = [stream.source_table for stream in STREAMS.values()]
        return [Seen(*row) for row in self._query("looking at its tables", named("source", "seen"), {"names": names})]

    def column_types(self) -> dict[str, dict[str, str]]:
        """Every source table's columns and their types, as PostgreSQL writes them; for `doctor`."""
        result: dict[str, dict[str, str]] = {}
        for table, column, kind in self._query("looking at its columns", named("source", "column_types")):
            result.setdefault(table, {})[column] = kind
        return result

    def misfits(self, decimals: int, limit: int, most: int) -> list[tuple[int, str | None, str | None]]:
        """Up to `most` campaigns of id 0, or with an amount of more decimals, or not below the limit; for `doctor`."""
        parameters = {"decimals": decimals, "limit": limit, "most": most}
        return [*self._query("looking at amounts", named("source", "misfits"), parameters)]

    def totals(self) -> SourceTotals:
        """Exact totals. Reads both event tables whole."""
        return SourceTotals(*self._query("adding up its tables", named("source", "totals"))[0])

    def require_safe(self) -> None:
        """Raises `HorizonUnsafe` where open transactions of others cannot be seen, so that rows would be lost.

        Asked anew each time: a right that is taken away holds for sessions that are open.
        """
        self._refuse_unsafe(self.privileges())

    def _refuse_unsafe(self, found: dict[str, Any]) -> None:
        if found["standby"]:
            raise HorizonUnsafe(
                f"PostgreSQL at {self._settings.server_label('postgres')} is a standby, where the transactions still open "
                "on the primary cannot be seen and rows would be missed; name the primary in POSTGRES_DSN."
            )
        if not found["reads_all_stats"]:
            raise HorizonUnsafe(
                f"Role {found['role']} cannot see when other roles' transactions began, so rows would be missed; run as a "
                f'superuser: GRANT pg_read_all_stats TO "{found["role"]}";'
            )

    def now(self) -> datetime:
        """The server's clock, UTC."""
        value: datetime = self._query("reading its clock", named("source", "now"))[0][0]
        return instant(value)

    def horizon(self) -> Horizon:
        """The safe horizon. The order of the statements matters and so they are not one.

        A transaction that begins after the clock was read is stamped later than the clock. One open when activity is
        read is counted there, if this role may see it at that time. One prepared in between is seen by the last
        statement. Raises `HorizonUnsafe`.
        """

        def work() -> Horizon:
            activity = _privileges(self._once("checking privileges", named("source", "privileges")))["activity"]
            statement = named("source", "open_transactions").format(activity=activity)
            now = instant(self._once("reading its clock", named("source", "now"))[0][0])
            active = self._once("looking for open transactions", statement)
            self._refuse_unsafe(_privileges(self._once("checking privileges", named("source", "privileges"))))
            for pid, user, _, since in active:
                if since is None:
                    raise HorizonUnsafe(
                        f"Session {pid} of {user} runs with track_activities off, so when its transaction began cannot be "
                        f'seen and rows would be missed: ALTER ROLE "{user}" SET track_activities = on; and let it '
                        "reconnect."
                    )
            prepared = self._once("looking for prepared transactions", named("source", "prepared_transactions"))
            holders = [
                Holder(f"pid {pid}", user, application, instant(since), now - instant(since))
                for pid, user, application, since in active
            ]
            held = [
                Holder(f"prepared {gid}", owner, "", instant(at), now - instant(at), True)
                for gid, owner, at in prepared
            ]
            at = min([now, *(holder.since for holder in holders)])
            margin = timedelta(milliseconds=self._settings.horizon_margin_ms)
            return Horizon(None if held else at - margin, now, (*held, *holders))

        return self.retried(work)

    def _on_table(self, name: str, stream: Stream) -> pgsql.Composed:
        return pgsql.SQL(named("source", name)).format(table=pgsql.Identifier(stream.source_table))

    def first_row(self, stream: Stream, within: Window) -> datetime | None:
        """`inserted_at` of the first row in the window, or None. One probe of the index."""
        found = self._query(
            f"looking for new rows in {stream.source_table}",
            self._on_table("first_row", stream),
            {"lo": within.lo, "hi": within.hi},
        )
        return instant(found[0][0]) if found else None

    def newest_ids(self, stream: Stream, rows: int) -> NDArray[np.int64]:
        """Ids of the rows inserted last, so many at most."""
        found = self._query(
            f"looking at the newest ids in {stream.source_table}", self._on_table("newest_ids", stream), {"rows": rows}
        )
        return np.array([event_id for (event_id,) in found], dtype=np.int64)

    def count(self, stream: Stream, within: Window) -> int:
        """Rows in the window."""
        found = self._query(
            f"counting rows in {stream.source_table}",
            self._on_table("count", stream),
            {"lo": within.lo, "hi": within.hi},
        )
        return int(found[0][0])

    def boundaries(self, stream: Stream, within: Window, rows: int, limit: int) -> list[datetime]:
        """Up to `limit` instants that cut the window into pieces of about `rows` rows each.

        Rows that share one instant are never parted. Large pieces are cut where PostgreSQL's statistics say, as far as
        they reach; the rest costs an index-only walk over the rows it passes.
        """
        result: list[datetime] = []
        lo, wanted = within.lo, rows
        if rows > ESTIMATED_FROM and not self._boundary(stream, within, ESTIMATED_FROM):
            # Most ticks find no more than this, and need no statistics to leave it whole.
            return result
        known = self._histogram(stream) if rows >= ESTIMATED_FROM else None
        if known is not None:
            result, left = known.edges(within, rows, limit)
            lo = result[-1] if result else lo
            if left < 1.5 * rows and lo < known.bounds[-1] < within.hi:
                # The rows up to there need not be walked to be counted; rather a larger piece than a tiny one behind it.
                lo, wanted = known.bounds[-1], max(rows - left, rows // 4)
        while len(result) < limit:
            found = self._boundary(stream, Window(lo, within.hi), wanted)
            if found is None:
                break
            lo, wanted = found, rows
            result.append(lo)
        return result

    def _boundary(self, stream: Stream, within: Window, rows: int) -> datetime | None:
        """The first instant before which at least `rows` rows of the window lie, or None."""
        parameters = {"lo": within.lo, "hi": within.hi, "rows": rows}
        found = self._query("cutting windows", self._on_table("boundary", stream), parameters)
        if found and instant(found[0][0]) == within.lo:
            found = self._query("cutting windows", self._on_table("boundary_after", stream), parameters)
        return instant(found[0][0]) if found else None

    def _histogram(self, stream: Stream) -> Histogram | None:
        statement = pgsql.SQL(named("source", "histogram"))
        for bounds, rows in self._query("reading statistics", statement, {"table": stream.source_table}):
            if bounds:
                return Histogram(tuple(instant(bound) for bound in bounds), float(rows))
        return None

    def in_snapshot(
        self, doing: str, file: str, name: str, stream: Stream, parameters: dict[str, Any], **parts: str
    ) -> list[tuple[Any, ...]]:
        """Rows of a named statement on the stream's table; `parts` are statements that stand in it as `{part}`.

        Not retried: another session would not see the open snapshot. Raises `TransientSource`.
        """
        self._require_locked(stream.source_table)
        composed = pgsql.SQL(named(file, name)).format(
            table=pgsql.Identifier(stream.source_table), **{part: pgsql.SQL(text) for part, text in parts.items()}
        )
        return self._once(doing, composed, parameters)

    @contextmanager
    def snapshot(self, streams: Sequence[Stream] = (), *, newer: bool = False) -> Iterator[Snapshot]:
        """A REPEATABLE READ transaction; statements inside see the database as of its start.

        `streams` are those whose tables are read in it. Each is locked against whatever rewrites or replaces a table
        before the snapshot is taken: what is older than a rewrite finds the rewritten table empty. With `newer` its
        version is greater than that of every snapshot taken before, also where nothing was written since: what is
        written with it takes the place of what is stored. Not retried here: what was read in it is void once it is
        lost. Raises `SourceFailure` where not every row can be seen, and `TransientSource`, also where a lock was not
        granted within `lock_wait_seconds`.
        """
        tables = sorted({stream.source_table for stream in streams})
        if newer:
            # By itself, before the transaction that reads: once it is over, every snapshot has it behind itself.
            self._once("passing earlier snapshots", named("source", "pass_snapshots"))
        self._once("opening a snapshot", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            if tables:
                # In one order everywhere. Neither this nor BEGIN takes the snapshot, the next statement does.
                names = pgsql.SQL(", ").join(map(pgsql.Identifier, tables))
                lock = pgsql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(names)
                self._locking(f"locking {', '.join(tables)}", lock, streams)
            xmax, in_progress, taken_at = self._once("taking a snapshot", named("source", "snapshot"))[0]
            system_id, timeline = self._once("identifying the server", named("source", "identity"))[0]
            if tables:
                self._require_whole(streams)
            self._locked, self._reading = frozenset(tables), self._connection
            # The identifier is an unsigned 64-bit number that PostgreSQL shows as a signed one.
            yield Snapshot(int(system_id) % 2**64, int(timeline), int(xmax), int(in_progress), instant(taken_at))
        finally:
            self._locked, self._reading = frozenset(), None
            if self._connection is not None:
                try:
                    self._once("closing a snapshot", "ROLLBACK")
                except SourceFailure:
                    self.close()

    def _locking(self, doing: str, lock: pgsql.Composed, streams: Sequence[Stream]) -> None:
        try:
            self._once(doing, lock)
        except TransientSource:
            raise
        except SourceFailure:
            # Such as a materialized view, which PostgreSQL does not lock; the catalog says it better.
            with suppress(TransientSource):
                self._once("closing a snapshot", "ROLLBACK")
                self._require_whole(streams)
            raise

    def _require_whole(self, streams: Sequence[Stream]) -> None:
        """Raises `SourceFailure` for a table of which this session does not see every row."""
        events = {stream.source_table for stream in streams if stream.kind == "events"}
        names = sorted({stream.source_table for stream in streams})
        for row in self._once("looking at its tables", named("source", "seen"), {"names": names}):
            found = Seen(*row)
            reason = sessions.refusal(found, events=found.name in events)
            if reason or (found.name in events and (reason := sessions.unfit_stamp(found))):
                raise SourceFailure(reason)

    def _require_locked(self, table: str) -> psycopg2.extensions.connection:
        """The session of the open snapshot; one that would be opened now sees another state of the database."""
        connection = self._connection
        if table not in self._locked:
            raise RuntimeError(f"{table} is read outside of a snapshot before which it was locked")
        if connection is None or connection is not self._reading or connection.closed:
            raise TransientSource(f"PostgreSQL ended the session in which {table} was being read.")
        return connection

    def draw_transactions(self, count: int) -> None:
        """Makes the server give out so many transaction ids, each in a transaction of its own."""
        for _ in range(count):
            self._query("passing earlier snapshots", named("source", "pass_snapshots"))

    def read_events(self, stream: Stream, window: Window, chunk_rows: int) -> Iterator[EventColumns]:
        """The window's rows in (inserted_at, id) order within the open snapshot, in chunks of `chunk_rows`; the last
        may be shorter.

        The same rows always fall into the same chunks: a chunk's number is part of its deduplication token. One
        chunk is read ahead while the caller works. Raises `TransientSource`.
        """
        connection = self._require_locked(stream.source_table)
        with connection.cursor() as cursor:
            # Its text would stop the copy where it is not of the encoding that the client asks for.
            any_bytes = connection.info.parameter_status("server_encoding") == "SQL_ASCII"
            composed = copy_statement(stream, any_bytes=any_bytes)
            statement: bytes = cursor.mogrify(composed, {"lo": window.lo, "hi": window.hi})
        collected: Chunks = NarrowChunks(chunk_rows)
        if stream.extra:
            collected = WideChunks(stream, chunk_rows, any_bytes=any_bytes)
        frames = CopyFrames(None if stream.extra else _ROW.itemsize - MESSAGE_HEAD, collected.add)
        pieces = (
            self._through_libpq(connection, statement)
            if connection.info.ssl_in_use
            else self._from_socket(connection, statement)
        )
        yield from self._read_ahead(connection, _chunks(pieces, frames, collected))

    def _from_socket(self, connection: psycopg2.extensions.connection, statement: bytes) -> Iterator[memoryview]:
        """What the server sends, off the session's own socket; each piece is good until the next is asked for.

        libpq hands a COPY over row by row, which costs more than all else that is done with a row. Between statements
        it keeps no bytes back, so the socket may be used for one and left as it was found: awaiting the next.
        """
        patience = self._settings.postgres_statement_timeout_seconds + GRACE_SECONDS
        with socket.socket(fileno=os.dup(connection.fileno())) as wire:
            # A time limit, not blocking mode: libpq's descriptor shares the flag and must stay non-blocking.
            wire.settimeout(patience)
            wire.sendall(struct.pack(">ci", b"Q", len(statement) + 5) + statement + b"\x00")
            buffer = memoryview(bytearray(READ_BYTES))
            while True:
                size = wire.recv_into(buffer)
                if not size:
                    raise TransientSource("PostgreSQL closed the connection in the middle of a copy.")
                yield buffer[:size]

    def _through_libpq(self, connection: psycopg2.extensions.connection, statement: bytes) -> Iterator[bytes]:
        """The same bytes where the session is encrypted and only libpq can read it: slower, row by row."""
        out = bytearray()
        blocks: queue.Queue[bytes] = queue.Queue(maxsize=4)
        gone = threading.Event()

        class Pump:
            def write(self, row: bytes) -> int:
                out.extend(struct.pack(">ci", b"d", len(row) + 4))
                out.extend(row)
                if len(out) >= READ_BYTES:
                    self.flush()
                return len(row)

            def flush(self) -> None:
                block = bytes(out)
                out.clear()
                while not gone.is_set():
                    try:
                        blocks.put(block, timeout=0.2)
                        return
                    except queue.Full:
                        continue
                raise BrokenPipeError("the reader of this copy is gone")

        pump = Pump()
        failed: list[BaseException] = []

        def copy() -> None:
            try:
                with self._deadline(connection), connection.cursor() as cursor:
                    cursor.copy_expert(statement, pump)
                out.extend(b"Z\x00\x00\x00\x05I")
                pump.flush()
            except BaseException as error:  # carried over to the reading side, whatever it is
                failed.append(error)

        thread = threading.Thread(target=copy, name="copy", daemon=True)
        thread.start()
        try:
            while True:
                try:
                    yield blocks.get(timeout=0.2)
                except queue.Empty:
                    if failed:
                        with _translated("copying rows"):
                            raise failed[0] from None
        finally:
            gone.set()

    def _read_ahead(
        self, connection: psycopg2.extensions.connection, chunks: Iterator[EventColumns]
    ) -> Iterator[EventColumns]:
        """`chunks`, drawn in a thread of their own, one ahead: the next is begun when the one before was taken, so that
        never more than one is held here. A session whose copy was not read out is closed.
        """
        ahead: queue.Queue[EventColumns | BaseException | None] = queue.Queue()
        gone, taken = threading.Event(), threading.Semaphore()

        def read() -> None:
            end: BaseException | None = None
            try:
                while True:
                    while not taken.acquire(timeout=0.2):
                        if gone.is_set():
                            return
                    chunk = next(chunks, None)
                    if chunk is None:
                        break
                    ahead.put(chunk)
                    del chunk
            except BaseException as error:  # carried over to the reading side, whatever it is
                end = error
            ahead.put(end)

        thread = threading.Thread(target=read, name="read-ahead", daemon=True)
        thread.start()
        clean = False
        try:
            while True:
                item = ahead.get()
                if item is None:
                    clean = True
                    return
                if isinstance(item, BaseException):
                    # After an error that the server reported itself the session goes on; _chunks has read it out.
                    clean = isinstance(item, SourceFailure) and item.sqlstate is not None
                    if isinstance(item, OSError | ProtocolError):
                        raise TransientSource(f"PostgreSQL failed while copying rows: {item or type(item).__name__}.")
                    raise item
                taken.release()
                yield item
        finally:
            gone.set()
            if not clean:
                _cut(connection)
                thread.join(timeout=10)
                self.close()
            else:
                thread.join()

    def columns(self, table: str) -> list[SourceColumn]:
        """The columns of a table, in order; none where it does not exist."""
        found = self._query(f"looking at the columns of {table}", named("source", "columns"), {"table": table})
        return [SourceColumn(*row) for row in found]

    def encoding(self) -> tuple[str, str, str]:
        """In which encoding `read_dimension` hands over text: PostgreSQL's name of it, Python's, and one for people.

        A database of encoding SQL_ASCII says nothing of its text, which is taken to be UTF-8. What Python does not know
        PostgreSQL turns into UTF-8.
        """
        own = str(self._query("asking for its encoding", named("source", "encoding"))[0][0])
        if own == "SQL_ASCII":
            return own, "utf-8", "UTF-8"
        python = psycopg2.extensions.encodings.get(own.upper())
        return ("UTF8", "utf-8", "UTF-8") if python is None or own == "UTF8" else (own, python, own)

    def read_dimension(
        self, table: str, columns: Sequence[tuple[str, str]], encoding: str
    ) -> Iterator[list[tuple[bytes | str | None, ...]]]:
        """All rows of a small table within the open snapshot, in batches of some megabytes at most, unless a row is larger.

        Each column comes in one of the forms of `source.sql`: exact text, or with `as_bytes` bytes in this encoding.
        """
        composed = pgsql.SQL(named("source", "read_dimension")).format(
            columns=pgsql.SQL(", ").join(
                pgsql.SQL(named("source", form)).format(column=pgsql.Identifier(name), encoding=pgsql.Literal(encoding))
                for name, form in columns
            ),
            table=pgsql.Identifier(table),
        )
        with _translated(f"reading {table}"):
            connection = self._require_locked(table)
            with self._deadline(connection), connection.cursor() as cursor:
                cursor.execute(named("source", "exact_text"))
                cursor.execute(pgsql.SQL("DECLARE dimension NO SCROLL CURSOR FOR ") + composed)
                count = FIRST_ROWS
                while True:
                    cursor.execute("FETCH FORWARD %s FROM dimension", (count,))
                    rows = [
                        tuple(bytes(value) if isinstance(value, memoryview) else value for value in row)
                        for row in cursor.fetchall()
                    ]
                    if not rows:
                        break
                    yield rows
                    largest = max(sum(len(value) for value in row if value is not None) for row in rows)
                    count = max(1, min(ROWS_AT_ONCE, BATCH_BYTES // (largest + 1), 4 * count))
                cursor.execute("CLOSE dimension")


def copy_statement(stream: Stream, *, any_bytes: bool = False) -> pgsql.Composed:
    """The COPY that reads a window of the stream, `lo` and `hi` still to be filled in; with `any_bytes`, text as it is."""
    as_bytes = pgsql.SQL(f", {named('source', 'as_bytes')}")
    further = [
        as_bytes.format(column=pgsql.Identifier(extra.name), encoding=pgsql.Literal("SQL_ASCII"))
        if any_bytes and extra.source_type == "text"
        else pgsql.SQL(", {}::{}").format(pgsql.Identifier(extra.name), pgsql.SQL(extra.source_type))
        for extra in stream.extra
    ]
    return pgsql.SQL(named("source", "read_events")).format(
        table=pgsql.Identifier(stream.source_table), extra=pgsql.Composed(further)
    )


def _chunks(
    pieces: Iterator[bytes] | Iterator[memoryview], frames: CopyFrames, collected: Chunks
) -> Iterator[EventColumns]:
    """What `frames` hands on to `collected`, chunk by chunk.

    Reads on to the point where the server awaits the next statement, also after an error. Raises `SourceFailure`
    for what the server reports, `ProtocolError` where rows are missing.
    """
    for piece in pieces:
        frames.feed(piece)
        while collected.ready:
            yield collected.ready.popleft()
        if frames.ready:
            break
    if frames.failure is not None:
        state, text = frames.failure.get("C", "XX000"), frames.failure.get("M", "no reason given")
        kind = TransientSource if transient.postgres(state) else SourceFailure
        raise kind(f"PostgreSQL failed while copying rows: {text} (SQLSTATE {state}).", sqlstate=state)
    if not frames.complete:
        raise ProtocolError("the copy ended before its end")
    collected.finish()
    yield from collected.ready


def _privileges(rows: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    names = ("standby", "reads_all_stats", "role", "database", "version", "sees_statements", "activity")
    return dict(zip(names, rows[0], strict=True))


def _cut(connection: psycopg2.extensions.connection) -> None:
    """Ends the connection under a statement that may be waiting on it, from any thread."""
    try:
        with socket.socket(fileno=connection.fileno()) as shared:
            try:
                shared.shutdown(socket.SHUT_RDWR)
            finally:
                shared.detach()
    except (OSError, psycopg2.Error):
        log.debug("source.cut_failed")
