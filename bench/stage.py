"""The servers a benchmark runs on: an embedded stack of its own, and databases in it; gone when it ends."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection

import seed.schema
from embedded import stack as embedded_stack
from embedded.stack import Addresses
from worker import logs, migrate
from worker.config import Settings, load
from worker.sink import Sink

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Options:
    """How much to measure. `rows` is the size of the data path's cases; sizes of the others hang on the flags."""

    rows: int = 2_000_000
    rounds: int = 5
    quick: bool = False
    full: bool = False

    def size(self, normal: int, *, quick: int, full: int) -> int:
        """The size of a case by the flags."""
        return quick if self.quick else full if self.full else normal


@dataclass(slots=True)
class Stage:
    """Makes databases on the stack's servers. Databases of all three kinds are known by one name."""

    home: Path
    addresses: Addresses
    _redis_numbers: Iterator[int] = field(default_factory=lambda: iter(range(1, 64)))
    _names: Iterator[int] = field(default_factory=itertools.count)

    def source(self, name: str, *, template: str | None = None) -> str:
        """The DSN of a new PostgreSQL database with the source schema, or a copy of another one."""
        with connected(self.addresses.postgres_dsn) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}{f' TEMPLATE {template}' if template else ''}")
        dsn = in_database(self.addresses.postgres_dsn, name)
        if template is None:
            with connected(dsn) as connection:
                seed.schema.create(connection)
        return dsn

    def settings(self, source_dsn: str, **overrides: Any) -> Settings:
        """Settings for a source, a new ClickHouse database with the schema in place, and an empty Redis database."""
        name = f"bench{next(self._names)}"
        made = load(
            **{
                "postgres_dsn": source_dsn,
                "clickhouse_dsn": in_database(self.addresses.clickhouse_dsn, name),
                "redis_url": self.redis(),
                "retailmedia_home": self.home / name,
                "log_level": "WARNING",
                **overrides,
            }
        )
        with Sink(made) as sink:
            migrate.migrate(sink, made)
        return made

    def redis(self) -> str:
        """A Redis database nobody has used."""
        return in_database(self.addresses.redis_url, str(next(self._redis_numbers)))

    def drop(self, settings: Settings) -> None:
        """Drops the ClickHouse database of these settings and waits until its merges have ended."""
        with Sink(settings, database="default") as sink:
            sink.command("cleaning up", f"DROP DATABASE IF EXISTS {settings.sink_address.database} SYNC")


def in_database(dsn: str, database: str) -> str:
    """The same server, another database."""
    return f"{dsn.rpartition('/')[0]}/{database}"


@contextmanager
def connected(dsn: str) -> Iterator[Connection]:
    """A connection that commits each statement."""
    connection = psycopg2.connect(dsn)
    connection.autocommit = True
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def staged() -> Iterator[Stage]:
    """A stack in a temporary folder; stopped and removed at the end, also after Ctrl-C or SIGTERM."""
    for name in Settings.model_fields:
        # Settings of whoever runs this must change nothing, least of all which servers are written to.
        os.environ.pop(name.upper(), None)

    logs.configure(load(log_level="WARNING"))

    def ended(number: int, _frame: FrameType | None) -> None:
        # Once is enough: a second Ctrl-C must not break off the ending of what was started.
        for each in ENDING:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, ended) for number in ENDING}
    home = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        yield Stage(home, embedded_stack.start(home))
    finally:
        embedded_stack.stop(home)
        shutil.rmtree(home, ignore_errors=True)
        for number, handler in before.items():
            signal.signal(number, handler)
