"""The conversation with clients: packets in, engine calls, packets out. One thread and one session per connection.

Protocol revision 54440: settings travel as strings, columns without custom serialisation, no interserver secret.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Final, cast

from embedded.clickhouse import wire
from embedded.clickhouse.engine import Engine, EngineError, Progress, Session, Setting
from embedded.clickhouse.native import (
    BLOCK_INFO,
    Block,
    Column,
    UnknownLayout,
    columns_of,
    header,
    read_block,
    read_block_info,
    rows_of,
    split_blocks,
)
from embedded.clickhouse.statements import InsertTarget, Statement, Unparsable, identifier, literal, parse, tokens
from embedded.clickhouse.wire import Disconnected, Malformed, SocketSource, Source, string, varint

log = logging.getLogger(__name__)

REVISION: Final = 54440
_OLDEST_REVISION: Final = 54429
"""From here on settings are strings; older clients are refused."""

_HELLO, _QUERY, _DATA, _CANCEL, _PING, _SCALAR = 0, 1, 2, 3, 4, 7
_S_HELLO, _S_DATA, _S_EXCEPTION, _S_PROGRESS, _S_PONG, _S_END, _S_PROFILE = 0, 1, 2, 3, 4, 5, 6
_IMPORTANT: Final = 1
_CANCELLED: Final = 394
_HANDSHAKE_SECONDS: Final = 30
_PROGRESS_SECONDS: Final = 0.1
_MAX_SQL: Final = 256 << 20
_I32: Final = struct.Struct("<i")


@dataclass
class Running:
    """A statement being run: whether its client cancelled it or left."""

    session: Session
    stopped: threading.Event = field(default_factory=threading.Event)


class Watcher:
    """Looks at the sockets of clients whose statement is running, and kills it on a Cancel packet or a disconnect.

    It only peeks: the byte stays for the connection's own thread to read.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._watched: dict[socket.socket, Running] = {}
        self._dying: dict[socket.socket, Running] = {}
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def watch(self, sock: socket.socket, running: Running) -> Iterator[None]:
        """Watch a client while the body runs."""
        with self._lock:
            self._watched[sock] = running
            with contextlib.suppress(OSError, ValueError):
                self._selector.register(sock, selectors.EVENT_READ)
        try:
            yield
        finally:
            with self._lock:
                self._forget(sock)
                self._watched.pop(sock, None)
                self._dying.pop(sock, None)

    def stop(self, sock: socket.socket) -> None:
        """Kill what a watched client runs."""
        with self._lock:
            running = self._watched.get(sock)
            if running is not None:
                running.stopped.set()
                self._dying[sock] = running
        self._wake()

    def _forget(self, sock: socket.socket) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(sock)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_in.send(b"\0")

    def _run(self) -> None:
        while not self._closing.is_set():
            # A statement may not be on the engine's list yet when its client cancels it, hence the repetition.
            ready = self._selector.select(0.1 if self._dying else None)
            with self._lock:
                for key, _ in ready:
                    if key.fileobj is self._wake_out:
                        self._wake_out.recv(4096)
                    else:
                        self._look(cast(socket.socket, key.fileobj))
                dying = list(self._dying.values())
            for running in dying:
                self._engine.kill(running.session)

    def _look(self, sock: socket.socket) -> None:
        running = self._watched.get(sock)
        self._forget(sock)
        if running is None:
            return
        try:
            seen = sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            seen = b""
        if not seen or seen[0] == _CANCEL:
            running.stopped.set()
            self._dying[sock] = running

    def close(self) -> None:
        """Stop watching."""
        self._closing.set()
        self._wake()
        self._thread.join(5)


class Server:
    """Accepts connections on the loopback interface until it is closed."""

    def __init__(self, engine: Engine, port: int, user: str, password: str, *, host: str = "127.0.0.1") -> None:
        self.engine = engine
        self.user = user
        self.password = password
        self.watcher = Watcher(engine)
        self.running: dict[str, Session] = {}
        self._connections: dict[Connection, threading.Thread] = {}
        self._lock = threading.Lock()
        self.closing = threading.Event()
        self._listener = socket.create_server((host, port), backlog=256)
        self.port = int(self._listener.getsockname()[1])

    def serve(self) -> None:
        """Accept connections; returns once `close` was called."""
        while not self.closing.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                if self.closing.is_set():
                    return
                # Out of descriptors, or the client was gone already: the others must not suffer.
                log.exception("accept failed")
                time.sleep(0.05)
                continue
            connection = Connection(self, sock)
            thread = threading.Thread(target=connection.run, name="connection", daemon=True)
            with self._lock:
                self._connections[connection] = thread
            thread.start()

    def forget(self, connection: Connection) -> None:
        """A connection has ended."""
        with self._lock:
            self._connections.pop(connection, None)

    def stop_accepting(self) -> None:
        """Make `serve` return. May be called from a signal handler."""
        self.closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def close(self, grace: float = 5.0) -> None:
        """End all connections: idle ones now, busy ones when their statement ends or `grace` seconds are over."""
        self.stop_accepting()
        deadline = time.monotonic() + grace
        while True:
            with self._lock:
                open_now = dict(self._connections)
            if not open_now:
                break
            late = time.monotonic() > deadline
            for connection in open_now:
                connection.end(now=late)
            for thread in open_now.values():
                thread.join(0.05)
            if time.monotonic() > deadline + grace:
                log.warning("%d connections did not end", len(open_now))
                break
        self.watcher.close()


class Connection:
    """One client."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._server = server
        self._engine = server.engine
        self._sock = sock
        self._source: Source = SocketSource(sock)
        self._send_lock = threading.Lock()
        self._busy = False
        self._compressed = False
        self._database = ""
        self._opened: Session | None = None

    def run(self) -> None:
        """Talk until the client leaves or breaks the protocol."""
        try:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sock.settimeout(_HANDSHAKE_SECONDS)
            if self._handshake():
                self._sock.settimeout(None)
                self._converse()
        except Disconnected:
            log.debug("client disconnected")
        except Malformed as error:
            log.warning("connection closed: %s", error)
            with contextlib.suppress(Disconnected):
                self._send_exception(EngineError(str(error), error.code))
        except EngineError as error:
            log.warning("connection closed: %s", error)
            with contextlib.suppress(Disconnected):
                self._send_exception(error)
        except Exception:
            log.exception("connection closed")
        finally:
            if self._opened is not None:
                with contextlib.suppress(RuntimeError):
                    self._opened.close()
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            self._sock.close()
            self._server.forget(self)

    def end(self, *, now: bool) -> None:
        """Ask the connection to end: at once if it is idle or `now`, else after its statement."""
        if now:
            self._server.watcher.stop(self._sock)
        if now or not self._busy:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RD)

    @property
    def _session(self) -> Session:
        if self._opened is None:
            raise RuntimeError("No session before the handshake.")
        return self._opened

    # Packets out

    def _send(self, *parts: bytes) -> None:
        try:
            with self._send_lock:
                if sum(map(len, parts)) < 1 << 16:
                    self._sock.sendall(b"".join(parts))
                else:
                    for part in parts:
                        self._sock.sendall(part)
        except OSError as error:
            raise Disconnected(str(error)) from None

    def _send_exception(self, error: EngineError) -> None:
        self._send(
            varint(_S_EXCEPTION),
            _I32.pack(error.code),
            string("DB::Exception"),
            string(f"DB::Exception: {error}"),
            string(""),
            b"\0",
        )

    def _send_block(self, body: bytes) -> None:
        if self._compressed:
            self._send(varint(_S_DATA), string(""), wire.frame(BLOCK_INFO + body))
        else:
            self._send(varint(_S_DATA), string(""), BLOCK_INFO, body)

    def _send_progress(self, progress: Progress) -> None:
        self._send(varint(_S_PROGRESS), *(varint(number) for number in progress))

    def _send_profile(self, rows: int, blocks: int, size: int) -> None:
        self._send(varint(_S_PROFILE), varint(rows), varint(blocks), varint(size), b"\0", varint(0), b"\0")

    # Packets in

    def _handshake(self) -> bool:
        source = self._source
        if source.varint() != _HELLO:
            raise Malformed("The first packet is not Hello.")
        source.string()
        source.varint()
        source.varint()
        revision = source.varint()
        self._database, user, password = source.string(), source.string(), source.string()
        if not (
            hmac.compare_digest(user.encode("utf-8", "replace"), self._server.user.encode())
            & hmac.compare_digest(password.encode("utf-8", "replace"), self._server.password.encode())
        ):
            self._send_exception(
                EngineError(
                    f"{user}: Authentication failed: password is incorrect, or there is no user with such name. "
                    "(AUTHENTICATION_FAILED)",
                    516,
                )
            )
            return False
        if revision < _OLDEST_REVISION:
            raise Malformed(f"Client revision {revision} is too old.", 20)
        self._opened = self._engine.session()
        major, minor, patch = self._engine.version
        hello = [varint(_S_HELLO), string("ClickHouse"), varint(major), varint(minor), varint(REVISION), string("UTC")]
        hello += [string("embedded"), varint(patch)]
        self._send(*hello)
        return True

    def _converse(self) -> None:
        source = self._source
        while True:
            source.compact()
            packet = source.varint()
            if packet == _PING:
                self._send(varint(_S_PONG))
            elif packet == _QUERY:
                self._busy = True
                try:
                    self._query()
                finally:
                    self._busy = False
                if self._server.closing.is_set():
                    return
            elif packet != _CANCEL:  # A Cancel that came after the end of what it was meant for.
                raise Malformed(f"Unexpected packet {packet} from client. (UNEXPECTED_PACKET_FROM_CLIENT)")

    def _client_info(self) -> None:
        source = self._source
        if source.u8() == 0:
            return
        for _ in range(3):
            source.string()
        if source.u8() != 1:
            raise Malformed("Only the TCP interface is spoken here.")
        for _ in range(3):
            source.string()
        for _ in range(3):
            source.varint()
        source.string()
        source.varint()

    def _settings(self) -> dict[str, Setting]:
        source = self._source
        settings: dict[str, Setting] = {}
        while name := source.string():
            flags = source.varint()
            settings[name] = Setting(source.string(1 << 20), bool(flags & _IMPORTANT))
        return settings

    def _query(self) -> None:
        source = self._source
        query_id = source.string()
        self._client_info()
        settings = self._settings()
        source.varint()
        self._compressed = bool(source.varint())
        sql = source.string(_MAX_SQL)
        externals: list[tuple[str, Block]] = []
        cancelled: EngineError | None = None
        try:
            while (data := self._data()) is not None:
                externals.append(data)
        except EngineError as error:
            cancelled = error
        session = self._session
        created: list[str] = []
        if query_id:
            self._server.running[query_id] = session
        try:
            if cancelled is not None:
                raise cancelled
            if self._database:
                session.use(self._database)
                self._database = ""
            statement = parse(sql)
            if statement.kind == "set":
                session.set(statement.text)
                self._send(varint(_S_END))
                return
            session.prepare(settings)
            for name, block in externals:
                if name not in created:
                    session.create_external(name, block.columns)
                    created.append(name)
                if block.rows:
                    self._load_external(session, name, block)
            self._run(session, statement)
            for name in created:
                session.drop_external(name)
            created.clear()
            self._send(varint(_S_END))
        except Unparsable as error:
            self._send_exception(EngineError(str(error), error.code))
        except EngineError as error:
            self._send_exception(error)
        finally:
            session.on_progress = None
            if query_id and self._server.running.get(query_id) is session:
                del self._server.running[query_id]
            for name in created:
                with contextlib.suppress(EngineError):
                    session.drop_external(name)

    def _load_external(self, session: Session, name: str, block: Block) -> None:
        with session.spool() as blocks:
            blocks.write(block.body)
            session.insert(InsertTarget(f"INSERT INTO {identifier(name)}", "", identifier(name)), blocks)

    def _data(self, out: BinaryIO | None = None) -> tuple[str, Block] | None:
        """The next data packet: table name and block; None at the empty block that ends the data.

        With `out`, the block's rows are written there; its `body` then holds what was not. Raises `EngineError` if the client sends Cancel instead.
        """
        source = self._source
        while True:
            source.compact()
            packet = source.varint()
            if packet == _CANCEL:
                raise EngineError("Query was cancelled. (QUERY_WAS_CANCELLED)", _CANCELLED)
            if packet not in {_DATA, _SCALAR}:
                raise Malformed(f"Unexpected packet {packet} from client. (UNEXPECTED_PACKET_FROM_CLIENT)")
            name = source.string()
            block = self._compressed_block() if self._compressed else self._plain_block(out)
            if packet == _DATA:
                return (name, block) if block.columns or block.rows else None

    def _plain_block(self, out: BinaryIO | None) -> Block:
        read_block_info(self._source)
        self._source.compact()
        try:
            return read_block(self._source, out)
        except UnknownLayout as error:
            raise Malformed(f"Data of type {error} can be sent with compression only.", 48) from None

    def _compressed_block(self) -> Block:
        inner = wire.FrameSource(self._source, self._session.unzstd)
        read_block_info(inner)
        start = inner.pos
        try:
            block = read_block(inner)
        except UnknownLayout:
            # clickhouse-driver puts each block into one frame, so the frame's end is the block's.
            content = bytes(inner.buf[start:])
            return Block((), rows_of(content), content)
        if inner.pos != len(inner.buf):
            raise Malformed("Bytes follow a block in its compressed frame.")
        return block

    # Statements

    def _run(self, session: Session, statement: Statement) -> None:
        meter = _Meter(self)
        if statement.insert is not None:
            self._insert(session, statement.insert, meter)
            return
        running = Running(session)
        try:
            with self._server.watcher.watch(self._sock, running):
                session.on_progress = meter
                if statement.kind == "select":
                    self._select(session, statement.text, meter, running)
                else:
                    self._other(session, self._with_engine_ids(statement), meter)
        except EngineError as error:
            if not (running.stopped.is_set() and error.code == _CANCELLED):
                raise
        finally:
            session.on_progress = None
            meter.close()

    def _with_engine_ids(self, statement: Statement) -> str:
        """KILL QUERY names a client's query id; the engine knows that query under another."""
        text = statement.text
        if statement.kind != "kill":
            return text
        for token in reversed(list(tokens(text))):
            session = self._server.running.get(token.text[1:-1]) if token.kind == "string" else None
            if session is not None and (known := self._engine.query_id(session)):
                text = text[: token.start] + literal(known) + text[token.end :]
        return text

    def _select(self, session: Session, sql: str, meter: _Meter, running: Running) -> None:
        rows = blocks = size = 0
        chunks = session.select(sql)
        try:
            for chunk in chunks:
                if running.stopped.is_set():
                    break
                if not blocks:
                    columns = columns_of(chunk)
                    if columns:
                        self._send_block(header(columns))
                meter.flush()
                self._send_block(chunk)
                blocks += 1
                rows += rows_of(chunk)
                size += len(chunk)
        except EngineError as error:
            if error.code == 36 and not blocks and "Streaming query is not supported" in str(error):
                self._other(session, sql, meter)
                return
            raise
        finally:
            chunks.close()  # type: ignore[attr-defined]
        if not blocks and not running.stopped.is_set():
            session.on_progress = None
            self._send_block(header(session.columns(sql)))
        self._finish(meter, rows, blocks, size)

    def _other(self, session: Session, sql: str, meter: _Meter) -> None:
        content = session.query(sql)
        session.on_progress = None
        blocks = split_blocks(content)
        if blocks and blocks[0].columns:
            self._send_block(header(blocks[0].columns))
        for block in blocks:
            self._send_block(block.body)
        if not blocks and parse(sql).kind == "other" and _gives_rows(sql):
            self._send_block(header(session.result_columns(sql)))
        self._finish(meter, sum(block.rows for block in blocks), len(blocks), len(content))

    def _finish(self, meter: _Meter, rows: int, blocks: int, size: int) -> None:
        if blocks:
            self._send_profile(rows, blocks, size)
        meter.flush()

    def _insert(self, session: Session, target: InsertTarget, meter: _Meter) -> None:
        """Take an INSERT's data, all of it before the engine sees any, and have it written by one statement.

        A client that leaves or cancels before the block that ends the data has written nothing.
        """
        columns = session.insert_columns(target)
        names = {name for name, _ in columns}
        self._send_block(header(columns))
        with session.spool() as blocks:
            while (data := self._data(blocks)) is not None:
                block = data[1]
                try:
                    _check_names(block.columns, names)
                except EngineError:
                    self._drain()
                    raise
                if block.rows:
                    blocks.write(block.body)
            if size := blocks.tell():
                running = Running(session)
                with self._server.watcher.watch(self._sock, running):
                    rows = session.insert(target, blocks)
                meter(Progress(written_rows=rows, written_bytes=size))
                meter.flush()

    def _drain(self) -> None:
        """Read the data of an INSERT that has failed, so that the connection can be used again."""
        while self._data() is not None:
            continue


class _Meter:
    """Passes on a statement's progress, at most ten times a second while the engine works.

    The engine reports from threads of its own, so a report may arrive late; after `close` none is passed on.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._now = Progress()
        self._sent = Progress()
        self._next = time.monotonic() + _PROGRESS_SECONDS
        self._closed = False

    def __call__(self, progress: Progress) -> None:
        self._now = progress
        if time.monotonic() >= self._next:
            # Called from inside the engine: an exception must not travel through it, and the watcher sees to a
            # client that is gone.
            with contextlib.suppress(Disconnected):
                self.flush()

    def flush(self) -> None:
        """Send what has not been sent."""
        with self._lock:
            added = self._now.since(self._sent)
            if any(added) and not self._closed:
                self._sent = Progress(*map(max, self._now, self._sent))
                self._connection._send_progress(added)
            self._next = time.monotonic() + _PROGRESS_SECONDS

    def close(self) -> None:
        """Pass nothing on any more."""
        with self._lock:
            self._closed = True


def _gives_rows(sql: str) -> bool:
    first = next(tokens(sql), None)
    return first is not None and first.says("SHOW", "DESCRIBE", "DESC", "EXPLAIN", "EXISTS", "CHECK")


def _check_names(columns: tuple[Column, ...], expected: set[str]) -> None:
    if not columns:
        return
    given = {name for name, _ in columns}
    for name in sorted(expected - given):
        raise EngineError(f"Not found column {name} in block. (NOT_FOUND_COLUMN_IN_BLOCK)", 10)
    for name in sorted(given - expected):
        raise EngineError(f"Unexpected column {name} in block. (NO_SUCH_COLUMN_IN_TABLE)", 16)
