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
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Protocol, TypeVar

import numpy as np
import psycopg2
import psycopg2.extensions
import structlog
import tenacity
from numpy.typing import NDArray
from psycopg2 import sql as pgsql

from worker import transient
from worker.columns import Column, Int64s, Refusals, Rows, since_1970
from worker.config import UNREADABLE, Settings
from worker.copyframes import MESSAGE_HEAD, CopyFrames, ProtocolError
from worker.errors import HorizonUnsafe, SourceFailure, TransientSource, Unreachable
from worker.sql import named
from worker.streams import Stream
from worker.windows import Histogram, Window, instant

log = structlog.get_logger()

READER = "retailmedia reader"
"""Application name of every session opened here; the horizon leaves these read-only sessions out."""

GRACE_SECONDS = 15
"""How much longer than the server's own limit a statement may take before its connection is cut."""

READ_BYTES = 1 << 18
"""Asked of the socket at once: what comes is decoded while it is still in the processor's cache."""

WIDE_CHUNK_BYTES = 24 << 20
"""Where rows have further columns a chunk also ends with the row that brings it to so many bytes."""

PART_BYTES = 3 << 20
"""Of wide rows, so many are decoded at once: enough for numpy, few enough for the processor's cache."""

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
        one has fewer transactions in progress.
        """
        return (generation << 56) | (self.xmax << 16) | (65_535 - min(self.in_progress, 65_535))


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

    def __init__(self, stream: Stream, chunk_rows: int, chunk_bytes: int = WIDE_CHUNK_BYTES) -> None:
        self.ready: deque[EventColumns] = deque()
        self._stream, self._rows, self._bytes = stream, chunk_rows, chunk_bytes
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
            self._parts.append(decode_wide(self._buffer, np.concatenate(self._starts), self._stream))
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


def decode_wide(buffer: bytes | bytearray, starts: Int64s, stream: Stream) -> EventColumns:
    """Columns from whole rows of the binary COPY format that begin at these places of the buffer.

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
            try:
                connection = psycopg2.connect(
                    settings.source_dsn,
                    application_name=READER,
                    connect_timeout=settings.connect_timeout_seconds,
                    gssencmode="disable",
                    client_encoding="UTF8",
                    keepalives_idle=10,
                    keepalives_interval=5,
                    keepalives_count=3,
                    options="-c TimeZone=UTC -c default_transaction_read_only=on -c statement_timeout="
                    f"{settings.postgres_statement_timeout_seconds * 1000} "
                    "-c idle_in_transaction_session_timeout=600000",
                )
            except psycopg2.Error as error:
                reason = str(error).strip().replace("\n", " ")
                raise TransientSource(
                    f"PostgreSQL at {settings.server_label('postgres')} cannot be reached: {reason}.",
                    sqlstate=error.pgcode,
                ) from None
            connection.autocommit = True
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
            except (psycopg2.OperationalError, psycopg2.InterfaceError):
                self.close()
                raise

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
        composed = pgsql.SQL(named(file, name)).format(
            table=pgsql.Identifier(stream.source_table), **{part: pgsql.SQL(text) for part, text in parts.items()}
        )
        return self._once(doing, composed, parameters)

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """A REPEATABLE READ transaction; statements inside see the database as of its start.

        Not retried here: what was read in it is void once it is lost. Raises `TransientSource`.
        """
        self._once("opening a snapshot", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            xmax, in_progress, taken_at = self._once("taking a snapshot", named("source", "snapshot"))[0]
            system_id, timeline = self._once("identifying the server", named("source", "identity"))[0]
            # The identifier is an unsigned 64-bit number that PostgreSQL shows as a signed one.
            yield Snapshot(int(system_id) % 2**64, int(timeline), int(xmax), int(in_progress), instant(taken_at))
        finally:
            if self._connection is not None:
                try:
                    self._once("closing a snapshot", "ROLLBACK")
                except SourceFailure:
                    self.close()

    def read_events(self, stream: Stream, window: Window, chunk_rows: int) -> Iterator[EventColumns]:
        """The window's rows in (inserted_at, id) order within the open snapshot, in chunks of `chunk_rows`; the last
        may be shorter.

        The same rows always fall into the same chunks: a chunk's number is part of its deduplication token. One
        chunk is read ahead while the caller works. Raises `TransientSource`.
        """
        connection = self._open()
        with connection.cursor() as cursor:
            statement: bytes = cursor.mogrify(copy_statement(stream), {"lo": window.lo, "hi": window.hi})
        collected: Chunks = WideChunks(stream, chunk_rows) if stream.extra else NarrowChunks(chunk_rows)
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

    def read_rows(self, name: str, batch: int) -> Iterator[Sequence[tuple[Any, ...]]]:
        """A dimension's rows in batches, within the open snapshot: small tables, so row by row will do."""
        with _translated(f"reading {name}"):
            connection = self._open()
            with self._deadline(connection), connection.cursor() as cursor:
                cursor.execute(f"DECLARE dimension NO SCROLL CURSOR FOR {named('source', f'read_{name}')}")
                while True:
                    cursor.execute("FETCH FORWARD %s FROM dimension", (batch,))
                    rows = cursor.fetchall()
                    if not rows:
                        break
                    yield rows
                cursor.execute("CLOSE dimension")


def copy_statement(stream: Stream) -> pgsql.Composed:
    """The COPY that reads a window of the stream, `lo` and `hi` still to be filled in."""
    further = [
        pgsql.SQL(", {}::{}").format(pgsql.Identifier(extra.name), pgsql.SQL(extra.source_type))
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


def utc(value: datetime | None) -> datetime | None:
    """`value` in UTC; a source column without time zone is taken to hold UTC."""
    if value is None:
        return None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
