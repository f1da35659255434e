"""The chdb engine: one data directory, one process, many sessions. Knows nothing of sockets and packets.

A session is one chdb connection: its own settings, current database and temporary tables. A session belongs to one
thread; only `Engine.kill` may be called from another. The engine lets go of Python's interpreter lock while it works.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, cast
from xml.sax.saxutils import escape

from chdb import _chdb as _untyped

from embedded.clickhouse.native import Column
from embedded.clickhouse.statements import InsertTarget, identifier, literal

# The engine's own connection settings that differ from a server's. `query_cache_tag` marks a session's queries in
# system.processes, which is how one is found to be killed: chdb hands out no query id and takes none.
_SESSION_SETTINGS: Final = {"implicit_select": "0", "allow_introspection_functions": "0"}
_TAG: Final = "query_cache_tag"

_SPOOL_BYTES: Final = 64 << 20
"""What an INSERT's data may take of memory before it goes to a file."""

_CONFIG: Final = """<clickhouse>
  <users_config>users.xml</users_config>
  <max_server_memory_usage>{memory}</max_server_memory_usage>
  <mark_cache_size>268435456</mark_cache_size>
  <background_pool_size>2</background_pool_size>
  <background_merges_mutations_concurrency_ratio>2</background_merges_mutations_concurrency_ratio>
  <storage_configuration><disks>
    <backups><type>local</type><path>{backups}</path></backups>
  </disks></storage_configuration>
  <backups><allowed_disk>backups</allowed_disk></backups>
  <logger><log>{log}</log><size>20M</size><count>2</count></logger>
  <query_log>
    <database>system</database><table>query_log</table>
    <partition_by>event_date</partition_by><ttl>event_date + INTERVAL 3 DAY DELETE</ttl>
    <flush_interval_milliseconds>7500</flush_interval_milliseconds>
  </query_log>
</clickhouse>
"""
_USERS: Final = """<clickhouse>
  <profiles><default><max_threads>{threads}</max_threads></default></profiles>
  <users><default>
    <password></password><networks><ip>127.0.0.1</ip></networks><profile>default</profile><quota>default</quota>
  </default></users>
  <quotas><default/></quotas>
</clickhouse>
"""


_chdb: Any = _untyped


class EngineError(Exception):
    """The engine refused. `code` is ClickHouse's."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Progress(NamedTuple):
    """What one statement has read and written so far."""

    rows: int = 0
    bytes: int = 0
    total_rows: int = 0
    written_rows: int = 0
    written_bytes: int = 0

    def since(self, earlier: Progress) -> Progress:
        """What was added after `earlier`."""
        return Progress(*(max(0, now - then) for now, then in zip(self, earlier, strict=True)))


@dataclass(frozen=True)
class Setting:
    """A setting sent with a statement; an important one may not be ignored when the engine does not know it."""

    value: str
    important: bool


def _translated(error: Exception) -> EngineError:
    text = str(error)
    match = re.search(r"Code: (\d+)\. DB::Exception: (.*)", text, re.S)
    if not match:
        # The binding's own complaints carry no code; a statement it cannot stream says so with code 36.
        return EngineError(text, 36 if "not support" in text else 49)
    message = re.sub(r"^(?:Code: \d+\. DB::Exception: )+", "", match.group(2))
    message = re.sub(r"(?:: \([A-Z_]+\))? \(version [\d.]+(?: \(official build\))?\)\.?", "", message)
    message = re.sub(r"(\([A-Z_0-9]+\))(?:\.? \1)+$", r"\1", message.rstrip())
    return EngineError(message, int(match.group(1)))


_ESCAPES: Final = {"t": "\t", "n": "\n", "r": "\r", "b": "\b", "f": "\f", "0": "\0"}


def _fields(content: bytes) -> list[list[str]]:
    """The rows and fields of TSV."""

    def unescaped(field: str) -> str:
        return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), field, flags=re.S)

    lines = content.decode("utf-8", "surrogateescape").split("\n")[:-1]
    return [[unescaped(field) for field in line.split("\t")] for line in lines]


def _encoded(sql: str) -> bytes:
    """A statement as its client sent it, which need not be UTF-8."""
    return sql.encode("utf-8", "surrogateescape")


@contextmanager
def _engine_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise _translated(error) from None
    except UnicodeDecodeError as error:
        # The engine quotes values in what it says, and they need not be text.
        raise _translated(RuntimeError(bytes(error.object).decode("utf-8", "replace"))) from None


def memory_limit() -> int:
    """Half of what this machine or container has, at most 8 GiB."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = min(limit, int(Path(path).read_text()))
        except (OSError, ValueError):
            continue
    return min(limit // 2, 8 << 30)


class Engine:
    """The open data directory. Closing the last session and the engine shuts chdb down cleanly.

    `root` holds `data/` and the engine's configuration, and becomes the process's working directory: a path relative
    to it may hold characters that chdb would otherwise take for options.
    """

    def __init__(self, root: Path, log: Path) -> None:
        os.environ["TZ"] = "UTC"
        (root / "data").mkdir(parents=True, exist_ok=True)
        config = _CONFIG.format(
            memory=memory_limit(), log=escape(str(log.resolve())), backups=escape(f"{(root / 'backups').resolve()}/")
        )
        (root / "config.xml").write_text(config)
        (root / "users.xml").write_text(_USERS.format(threads=max(2, os.cpu_count() or 2)))
        os.chdir(root)
        self.spool = root / "spool"
        self.spool.mkdir(exist_ok=True)
        _chdb.set_signal_handlers_enabled(0)
        self._lock = threading.Lock()
        self._sessions = 0
        self._control: Any = self._connect()
        version = self._ask("SELECT version()")[0].split(".")
        self.version = (int(version[0]), int(version[1]), int(version[2]))
        self.known_settings = frozenset(self._ask("SELECT name FROM system.settings"))

    def _connect(self) -> Any:
        with _engine_errors():
            return _chdb.connect("data?config-file=config.xml&log-level=warning")

    def _ask(self, sql: str) -> list[str]:
        with self._lock, _engine_errors():
            return str(self._control.query(sql, "TSVRaw").bytes().decode()).splitlines()

    def session(self) -> Session:
        """A new session in the database `default`."""
        with self._lock:
            self._sessions += 1
            number = self._sessions
        return Session(self, f"embedded-{number}")

    def kill(self, session: Session) -> None:
        """Stop what a session is running, if anything. Returns before it has stopped."""
        try:
            self._ask(f"KILL QUERY WHERE Settings['{_TAG}'] = {literal(session.tag)} ASYNC")
        except EngineError:
            # The statement ended between being found and being killed.
            return

    def query_id(self, session: Session) -> str | None:
        """The engine's id of the statement a session is running."""
        mine = f"Settings['{_TAG}'] = {literal(session.tag)}"
        found = self._ask(f"SELECT query_id FROM system.processes WHERE {mine}")  # noqa: S608 - our own tag
        return found[0] if found else None

    def close(self) -> None:
        """Close the engine. Sessions must be closed before."""
        with self._lock:
            self._control.close()


class Spool(io.RawIOBase):
    """A file without a name: in memory, which spares the file system's work, and in a folder once it grows large."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._in_memory = hasattr(os, "memfd_create")
        self._file: Any = os.fdopen(os.memfd_create("spool"), "w+b", buffering=0) if self._in_memory else self._named()

    def _named(self) -> Any:
        return tempfile.TemporaryFile(dir=self._folder)

    def write(self, data: Any) -> int:
        """Appends all of it."""
        if self._in_memory and self._file.tell() + len(data) > _SPOOL_BYTES:
            small, self._file, self._in_memory = self._file, self._named(), False
            with small:
                small.seek(0)
                shutil.copyfileobj(small, self._file, 1 << 20)
        view = memoryview(data)
        while len(view):
            view = view[self._file.write(view) :]
        return len(data)

    def tell(self) -> int:
        """How much was written."""
        return int(self._file.tell())

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to a place in it."""
        return int(self._file.seek(offset, whence))

    def flush(self) -> None:
        """Brings what was written to where the engine can read it."""
        if not self._file.closed:
            self._file.flush()

    def fileno(self) -> int:
        """The descriptor of what was written so far."""
        return int(self._file.fileno())

    def close(self) -> None:
        """Forgets the content."""
        self._file.close()
        super().close()


class Session:
    """One client's session."""

    def __init__(self, engine: Engine, tag: str) -> None:
        self._engine = engine
        self.tag = tag
        self._own: dict[str, str] = {}
        self._applied: dict[str, str] = {}
        self._database: str | None = None
        self.on_progress: Callable[[Progress], None] | None = None
        self._connection: Any = None
        self._open()

    def _open(self) -> None:
        self._connection = self._engine._connect()
        self._connection.set_progress_callback(self._progressed)
        self._set({**_SESSION_SETTINGS, _TAG: self.tag})

    def _progressed(self, told: Mapping[str, int]) -> None:
        if self.on_progress is not None:
            self.on_progress(
                Progress(
                    told["read_rows"],
                    told["read_bytes"],
                    told["total_rows_to_read"],
                    told["written_rows"],
                    told["written_bytes"],
                )
            )

    def _run(self, sql: str, output: str = "Native") -> bytes:
        with _engine_errors():
            return bytes(self._connection.query(_encoded(sql), output).bytes())

    def _set(self, values: Mapping[str, str | None]) -> None:
        if values:
            listed = ", ".join(
                f"{identifier(name)} = {'DEFAULT' if value is None else literal(value)}"
                for name, value in values.items()
            )
            self._run(f"SET {listed}")

    def use(self, database: str) -> None:
        """Make a database the current one. Raises with code 81 while it does not exist."""
        self._run(f"USE {identifier(database)}")
        self._database = database

    def prepare(self, settings: Mapping[str, Setting]) -> None:
        """Bring these settings, and none sent earlier, into force for the next statement.

        They are SET in the chdb session and put back before the next statement that sends others, because a SETTINGS
        clause cannot be added to every kind of statement. A session's own SET stays in force underneath.
        """
        wanted: dict[str, str] = {}
        for name, setting in settings.items():
            if name in self._engine.known_settings:
                if name != _TAG:
                    wanted[name] = setting.value
            elif setting.important:
                raise EngineError(f"Unknown setting '{name}'. (UNKNOWN_SETTING)", 115)
        if wanted == self._applied:
            return
        self._restore({name for name in self._applied if wanted.get(name) != self._applied[name]})
        changes = {name: value for name, value in wanted.items() if name not in self._applied}
        try:
            self._set(changes)
        except EngineError:
            self._applied |= changes
            self._restore(set(self._applied))
            raise
        self._applied = wanted

    def _restore(self, names: set[str]) -> None:
        if not names:
            return
        try:
            self._set({name: self._own.get(name, _SESSION_SETTINGS.get(name)) for name in names})
        except EngineError:
            # readonly=1, sent with a statement, forbids taking itself back: start over. Temporary tables are lost.
            self._connection.close()
            self._open()
            self._set(self._own)
            if self._database is not None:
                self.use(self._database)
            self._applied = {}
        else:
            self._applied = {name: value for name, value in self._applied.items() if name not in names}

    def set(self, sql: str) -> None:
        """Run a SET statement, which outlives the settings sent with single statements."""
        self._restore(set(self._applied))
        self._run(sql)
        changed = dict(_fields(self._run("SELECT name, value FROM system.settings WHERE changed", "TSV")))
        self._own = {
            name: value for name, value in changed.items() if name not in {*_SESSION_SETTINGS, _TAG, "database"}
        }

    def query(self, sql: str) -> bytes:
        """Run any statement and return its whole result, as Native blocks one after another."""
        return self._run(sql)

    def select(self, sql: str) -> Iterator[bytes]:
        """The Native blocks of a SELECT as they come. Raises at the first block what is wrong with the statement."""
        handle: Any = None
        with _engine_errors():
            handle = self._connection.send_query(_encoded(sql), "Native")
        try:
            while True:
                with _engine_errors():
                    chunk = self._connection.streaming_fetch_result(handle)
                if chunk is None or not chunk.rows_read():
                    handle = None
                    return
                yield bytes(chunk.bytes())
        except EngineError:
            handle = None
            raise
        finally:
            if handle is not None:
                try:
                    self._connection.streaming_cancel_query(handle)
                except RuntimeError:
                    handle = None

    def columns(self, select: str) -> tuple[Column, ...]:
        """The columns of a SELECT, without running it."""
        try:
            return tuple((name, kind) for name, kind, _ in self._describe(f"({select}\n)"))
        except EngineError:
            # A form that cannot stand in parentheses: its header comes with a format that writes one without rows.
            return self.result_columns(select)

    def result_columns(self, sql: str) -> tuple[Column, ...]:
        """The columns of a cheap statement (SHOW and its like), by running it again."""
        rows = _fields(self._run(sql, "TSVWithNamesAndTypes"))
        return tuple(zip(rows[0], rows[1], strict=True)) if len(rows) > 1 else ()

    def _describe(self, what: str) -> list[tuple[str, str, str]]:
        # Types are wanted as a block's header has them, not laid out over several lines.
        rows = _fields(self._run(f"DESCRIBE TABLE {what} SETTINGS print_pretty_type_names = 0", "TSV"))
        return [(row[0], row[1], row[2]) for row in rows]

    def insert_columns(self, target: InsertTarget) -> tuple[Column, ...]:
        """The columns an INSERT expects, in the order it names them."""
        described = self._describe(target.described)
        if target.columns is None:
            return tuple(
                (name, kind)
                for name, kind, default in described
                if default not in {"MATERIALIZED", "ALIAS", "EPHEMERAL"} and name not in target.excluded
            )
        types = {name: kind for name, kind, _ in described}
        missing = next((name for name in target.columns if name not in types), None)
        if missing is not None:
            raise EngineError(f"No such column {missing} in table {target.described}. (NO_SUCH_COLUMN_IN_TABLE)", 16)
        return tuple((name, types[name]) for name in target.columns)

    def spool(self) -> BinaryIO:
        """A file without a name, for the data of an INSERT; gone when closed."""
        return cast(BinaryIO, Spool(self._engine.spool))

    def insert(self, target: InsertTarget, blocks: BinaryIO) -> int:
        """Insert the Native blocks in a spool file by one statement. Returns the number of rows written.

        The engine's own streaming insert is of no use: it reports success where the table refused the rows (a
        violated constraint, too many parts), having written none.
        """
        blocks.flush()
        blocks.seek(0)
        sql = target.reading(f"/dev/fd/{blocks.fileno()}")
        with _engine_errors():
            return int(self._connection.query(_encoded(sql), "Native").rows_written())

    def create_external(self, name: str, columns: tuple[Column, ...]) -> None:
        """Create a temporary table for data sent along with a statement."""
        listed = ", ".join(f"{identifier(column)} {kind}" for column, kind in columns)
        self._run(f"CREATE TEMPORARY TABLE {identifier(name)} ({listed}) ENGINE = Memory")

    def drop_external(self, name: str) -> None:
        """Drop such a table."""
        self._run(f"DROP TEMPORARY TABLE IF EXISTS {identifier(name)}")

    def unzstd(self, path: str) -> bytes:
        """The content of a ZSTD file."""
        source = f"file({literal(path)}, 'RawBLOB', 'content String', 'zstd')"
        return self._run(f"SELECT * FROM {source}", "RawBLOB")  # noqa: S608 - quoted

    def close(self) -> None:
        """End the session; what it was running is stopped."""
        self._connection.close()
