"""ClickHouse, and the only user of clickhouse-driver: statements, blocks of columns, errors in our own terms.

A `Sink` holds up to two sockets (one for blocks of columns, whose settings differ from all other statements'), for one
thread of one process; open it after a fork. Every statement has a deadline: the server is given `max_execution_time`,
the socket a timeout.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from decimal import Decimal
from typing import Any, TypeVar
from uuid import UUID

import structlog
import tenacity
from clickhouse_driver import Client, defines
from clickhouse_driver import errors as driver
from clickhouse_driver.block import ColumnOrientedBlock
from clickhouse_driver.protocol import ClientPacketTypes

from worker import transient
from worker.columns import BLOCK_INFO, Column, block
from worker.config import Settings
from worker.errors import BadInput, RefusedRows, SchemaMismatch, SinkFailure, TransientSink, Unreachable
from worker.relied import relied_on
from worker.sql import named
from worker.windows import instant

log = structlog.get_logger()

T = TypeVar("T")


def first_sentence(text: str) -> str:
    """A ClickHouse error without its stack trace and repetition, short enough for a line."""
    head = text.strip().partition("Stack trace:")[0].strip().partition("\n")[0]
    head = head.removeprefix("DB::Exception: ").removeprefix("DB::Exception:").strip().rstrip(".")
    return head if len(head) <= 400 else f"{head[:397]}..."


def _translated(doing: str, error: Exception, where: str) -> Exception:
    if isinstance(error, driver.ServerException):
        message = f"ClickHouse failed while {doing}: {first_sentence(error.message)} (code {error.code})."
        if transient.clickhouse(error.code):
            return TransientSink(message, code=error.code)
        if error.code in transient.CLICKHOUSE_REFUSED_VALUES:
            return RefusedRows(message, code=error.code)
        if error.code in {16, 60, 81}:
            return SchemaMismatch(f"{message} Create the schema with `retailmedia migrate`.")
        return SinkFailure(message, code=error.code)
    if isinstance(error, driver.NetworkError | driver.SocketTimeoutError | EOFError | OSError):
        return TransientSink(f"ClickHouse at {where} cannot be reached while {doing}: {first_sentence(str(error))}.")
    if isinstance(error, driver.UnexpectedPacketFromServerError | driver.UnknownPacketFromServerError):
        return TransientSink(f"ClickHouse at {where} broke off while {doing}.")
    if isinstance(error, driver.Error):
        return SinkFailure(f"ClickHouse failed while {doing}: {first_sentence(str(error))}.")
    return error


class Sink:
    """Sessions with ClickHouse, opened at first use and again after they were lost."""

    def __init__(self, settings: Settings, *, database: str | None = None) -> None:
        self._settings = settings
        self._address = settings.sink_address
        self.database = database or self._address.database
        self._clients: dict[bool, Client] = {}
        self._twin: Sink | None = None

    def twin(self) -> Sink:
        """A second sink on the same server, with sessions of its own, for a second thread; closed with this one."""
        if self._twin is None:
            self._twin = Sink(self._settings, database=self.database)
        return self._twin

    def close(self) -> None:
        """Closes the sessions; the next statement opens others."""
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            client.disconnect()
        if self._twin is not None:
            self._twin.close()

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _client(self, *, blocks: bool = False) -> Client:
        if blocks not in self._clients:
            settings = self._settings
            self._clients[blocks] = Client(
                host=self._address.host,
                port=self._address.port,
                user=self._address.user,
                password=self._address.password,
                database=self.database,
                secure=self._address.secure,
                ca_certs=self._address.ca_certs,
                client_name="retailmedia",
                connect_timeout=settings.connect_timeout_seconds,
                send_receive_timeout=settings.clickhouse_timeout_seconds,
                sync_request_timeout=settings.connect_timeout_seconds,
                settings_is_important=True,
                settings={"insert_block_size": 16_777_216},
            )
        return self._clients[blocks]

    def _sent(
        self, client: Client, settings: Mapping[str, Any] | None = None, *, insert: bool = False
    ) -> dict[str, Any]:
        """What goes with a statement: its deadline, what every statement relies on, and its own settings."""
        connection = client.connection
        if not connection.connected:
            connection.connect()
        info = connection.server_info
        limits = {"max_execution_time": self._settings.clickhouse_timeout_seconds}
        version = (info.version_major, info.version_minor)
        return {**limits, **relied_on(version, insert=insert), **(settings or {})}

    def _once(
        self,
        doing: str,
        statement: str,
        data: Any = None,
        *,
        settings: Mapping[str, Any] | None = None,
        tables: Sequence[Mapping[str, Any]] | None = None,
        columns: dict[str, Column] | None = None,
    ) -> Any:
        client = self._client(blocks=columns is not None)
        try:
            limits = self._sent(client, settings, insert=data is not None or columns is not None)
            if columns is not None:
                return _send_columns(client, statement, columns, limits)
            external = list(tables) if tables else None
            return client.execute(statement, data, settings=limits, external_tables=external)
        except BaseException as error:
            # After anything but an error the server itself reported, the socket may hold half a packet.
            if not isinstance(error, driver.ServerException):
                client.disconnect()
            if isinstance(error, Exception):
                raise _translated(doing, error, self._settings.server_label("clickhouse")) from error
            raise

    def retried(self, work: Callable[[], T]) -> T:
        """`work()`, again on `TransientSink`: jittered, capped in tries and total time, each retry logged."""
        settings = self._settings

        def noted(state: tenacity.RetryCallState) -> None:
            cause = state.outcome.exception() if state.outcome else None
            wait = state.next_action.sleep if state.next_action else 0.0
            log.warning("sink.retry", attempt=state.attempt_number, wait_seconds=round(wait, 3), cause=str(cause))

        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TransientSink),
            stop=tenacity.stop_after_attempt(settings.retry_attempts)
            | tenacity.stop_after_delay(settings.retry_total_seconds),
            wait=tenacity.wait_exponential_jitter(multiplier=0.1, max=5.0),
            before_sleep=noted,
            reraise=True,
        )(work)

    def query(
        self,
        doing: str,
        statement: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
        tables: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[tuple[Any, ...]]:
        """Rows of a SELECT, retried when transient. `doing` completes «ClickHouse failed while …»."""
        text = rendered(statement, parameters or {})
        rows: list[tuple[Any, ...]] = self.retried(lambda: self._once(doing, text, settings=settings, tables=tables))
        return rows

    def named(
        self, file: str, name: str, parameters: Mapping[str, Any] | None = None, **options: Any
    ) -> list[tuple[Any, ...]]:
        """Rows of a named statement of `worker/sql`."""
        return self.query(name.replace("_", " "), named(file, name), parameters, **options)

    def described(
        self, doing: str, statement: str, parameters: Mapping[str, Any] | None = None
    ) -> tuple[list[str], list[str], list[tuple[Any, ...]]]:
        """Column names, their types, and rows of a SELECT."""
        text = rendered(statement, parameters or {})

        def work() -> tuple[list[str], list[str], list[tuple[Any, ...]]]:
            client = self._client()
            try:
                rows, columns = client.execute(text, settings=self._sent(client), with_column_types=True)
            except Exception as error:
                if not isinstance(error, driver.ServerException):
                    client.disconnect()
                raise _translated(doing, error, self._settings.server_label("clickhouse")) from error
            return [name for name, _ in columns], [kind for _, kind in columns], rows

        return self.retried(work)

    def command(
        self,
        doing: str,
        statement: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
        retry: bool = True,
    ) -> None:
        """A statement without a result. `retry=False` where doing it twice is not the same as once."""
        text = rendered(statement, parameters or {})
        if retry:
            self.retried(lambda: self._once(doing, text, settings=settings))
        else:
            self._once(doing, text, settings=settings)

    def insert_rows(
        self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, token: str | None = None
    ) -> None:
        """A few rows, in one block. With a token, a resend after an unknown outcome inserts nothing twice."""
        if not rows:
            return
        statement = f"INSERT INTO {quoted(table)} ({', '.join(quoted(c) for c in columns)}) VALUES"
        settings = {"insert_deduplication_token": token} if token else {}
        data = [tuple(row) for row in rows]
        self.retried(lambda: self._once(f"writing to {table}", statement, data, settings=settings))

    def insert_columns(self, table: str, columns: dict[str, Column], *, token: str) -> int:
        """One block of columns of equal length, once however often it is sent with this token; returns its bytes.

        Raises `RefusedRows` where the server does not take a value; then nothing of the block was inserted. Raises
        `SchemaMismatch` where the table's columns are of other types.
        """
        statement = f"INSERT INTO {quoted(table)} ({', '.join(quoted(name) for name in columns)}) VALUES"
        # A block holds an id once, so replacing within it at insert would find nothing and cost a tenth of the time.
        # Ids of one transaction lie in as many partitions as they like; what the server allows by itself is a hundred.
        settings = {
            "insert_deduplication_token": token,
            "optimize_on_insert": 0,
            "max_partitions_per_insert_block": 0,
        }
        sent = self.retried(lambda: self._once(f"loading into {table}", statement, settings=settings, columns=columns))
        return int(sent)

    @contextmanager
    def staging(self, prefix: str, create: str) -> Iterator[str]:
        """The name of a fresh table made by `create` (its name stands as `{staging}` there), dropped at the end."""
        name = f"{prefix}{secrets.token_hex(6)}"
        self.command("creating a staging table", create.format(staging=quoted(name)), retry=False)
        try:
            yield name
        finally:
            self.command("dropping a staging table", f"DROP TABLE IF EXISTS {quoted(name)} SYNC")

    def drop_abandoned(self, prefix: str, older_than_seconds: int) -> list[str]:
        """Drops staging tables whose process died; returns their names."""
        parameters = {"database": self.database, "prefix": prefix, "age": older_than_seconds}
        names = [name for (name,) in self.named("ledger", "abandoned_tables", parameters)]
        for name in names:
            self.command("dropping an abandoned staging table", f"DROP TABLE IF EXISTS {quoted(name)} SYNC")
        return names

    def ping(self) -> None:
        """One statement, one try. Raises `Unreachable`, or `SinkFailure` where it answers with an error."""
        try:
            self._once("greeting it", "SELECT 1")
        except TransientSink as error:
            raise Unreachable(str(error)) from None

    def uuid(self, table: str) -> UUID:
        """The uuid of a table: what its data is known by, whatever name it carries. Raises `SchemaMismatch`."""
        found = self.named("ledger", "table_uuid", {"database": self.database, "table": table})
        if not found:
            raise SchemaMismatch(
                f"ClickHouse has no table {self.database}.{table}; create the schema with `retailmedia migrate`."
            )
        return UUID(str(found[0][0]))


def _send_columns(client: Client, statement: str, columns: dict[str, Column], settings: Mapping[str, Any]) -> int:
    """`Client.execute` for one block whose bytes are at hand: the driver would copy each column twice to send it.

    Returns how many there are.
    """
    with client.disconnect_on_error(statement, settings):
        connection = client.connection
        connection.send_query(statement)
        connection.send_external_tables(None)
        expected = client.receive_sample_block().columns_with_types
        revision = connection.server_info.used_revision
        marked = revision >= defines.DBMS_MIN_REVISION_WITH_CUSTOM_SERIALIZATION
        try:
            pieces = block(expected, columns, marks_serialization=marked)
        except BadInput as error:
            raise SchemaMismatch(f"The table of {statement[:60]}… does not fit the stream: {error}.") from None
        head = bytes([ClientPacketTypes.DATA, 0]) + BLOCK_INFO
        for piece in pieces:
            # Small pieces wait for a large one.
            if len(piece) < 1 << 14:
                head += piece
            else:
                connection.socket.sendall(head)
                connection.socket.sendall(piece)
                head = b""
        connection.socket.sendall(head)
        client.receive_profile_events()
        connection.send_data(ColumnOrientedBlock())
        client.receive_profile_events()
        client.receive_end_of_insert_query()
    return sum(len(piece) for piece in pieces)


def quoted(name: str) -> str:
    """An identifier as ClickHouse takes it, whatever it holds."""
    escaped = name.replace("\\", "\\\\").replace("`", "\\`")
    return f"`{escaped}`"


def rendered(statement: str, parameters: Mapping[str, Any]) -> str:
    """The statement with each `%(name)s` replaced by a literal; `%%` is a per cent sign then.

    The driver's own substitution cuts datetimes to seconds, which would move the edges of windows.
    """
    return statement % {name: literal(value) for name, value in parameters.items()} if parameters else statement


def literal(value: object) -> str:
    """A ClickHouse literal of exactly this value. Raises `TypeError` for a type without one."""
    match value:
        case None:
            return "NULL"
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case Decimal():
            # Plain digits with a point would be read as a float.
            return f"toDecimal256('{value:f}', {max(0, -int(value.as_tuple().exponent))})"
        case float():
            return repr(value)
        case str():
            return "'" + "".join(_ESCAPES.get(letter, letter) for letter in value) + "'"
        case datetime():
            return f"toDateTime64('{instant(value).strftime('%Y-%m-%d %H:%M:%S.%f')}', 6, 'UTC')"
        case date():
            return f"toDate32('{value.isoformat()}')"
        case UUID():
            return f"toUUID('{value}')"
        case list():
            return f"[{', '.join(literal(item) for item in value)}]"
        case tuple():
            inner = ", ".join(literal(item) for item in value)
            # In parentheses, numbers are one literal to the parser however many there are; as arguments of tuple()
            # each counts against max_ast_elements.
            return f"({inner})" if len(value) > 1 else f"tuple({inner})"
        case _:
            raise TypeError(f"no ClickHouse literal for {type(value).__name__}")


_ESCAPES = {"\\": "\\\\", "'": "\\'", "\0": "\\0", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}
