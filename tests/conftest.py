"""The stack the tests run on: real servers in a folder and on ports of this run's own, and fresh databases in them."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import psycopg2
import pytest
import redis
from psycopg2.extensions import connection as Connection

import seed.schema
from embedded import stack as embedded_stack
from embedded.stack import Addresses
from worker import migrate
from worker.celery import Servers
from worker.config import Settings, load
from worker.errors import SchemaMismatch
from worker.sink import Sink, quoted

hypothesis.settings.register_profile(
    "servers",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("servers")

SERVER_NAMES = ("POSTGRES_DSN", "CLICKHOUSE_DSN", "REDIS_URL", "PG_HOST", "CH_HOST", "RETAILMEDIA_HOME")


@pytest.fixture(scope="session", autouse=True)
def _no_servers_of_others() -> Iterator[None]:
    """A DSN in the environment of whoever runs the tests must never be written to."""
    with pytest.MonkeyPatch.context() as patch:
        for name in SERVER_NAMES:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def stack_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of this run's stack, in a path with a space in it."""
    home = tmp_path_factory.mktemp("a stack")
    embedded_stack.start(home)
    yield home
    embedded_stack.stop(home)


@pytest.fixture(scope="session")
def stack(stack_home: Path) -> Addresses:
    """Addresses of this run's servers."""
    found = embedded_stack.addresses(stack_home)
    assert found is not None
    return found


def administer(dsn: str, statement: str) -> None:
    """Runs one statement outside a transaction."""
    connection = psycopg2.connect(dsn)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
    finally:
        connection.close()


def in_database(dsn: str, database: str) -> str:
    """The same server, another database."""
    return f"{dsn.rpartition('/')[0]}/{database}"


@pytest.fixture(scope="session")
def template(stack: Addresses) -> str:
    """A PostgreSQL database with the source schema, to copy."""
    administer(stack.postgres_dsn, "CREATE DATABASE source_template")
    connection = psycopg2.connect(in_database(stack.postgres_dsn, "source_template"))
    seed.schema.create(connection)
    connection.close()
    return "source_template"


def _database(stack: Addresses, suffix: str) -> Iterator[str]:
    name = f"t{uuid.uuid4().hex[:12]}"
    administer(stack.postgres_dsn, f"CREATE DATABASE {name} {suffix}")
    yield in_database(stack.postgres_dsn, name)
    administer(stack.postgres_dsn, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def postgres_dsn(stack: Addresses) -> Iterator[str]:
    """A fresh, empty PostgreSQL database."""
    yield from _database(stack, "")


@pytest.fixture
def source_dsn(stack: Addresses, template: str) -> Iterator[str]:
    """A fresh PostgreSQL database with the source schema and no rows."""
    yield from _database(stack, f"TEMPLATE {template}")


_redis_numbers = itertools.cycle(range(1, 16))


@pytest.fixture
def redis_url(stack: Addresses) -> str:
    """An empty Redis database."""
    url = in_database(stack.redis_url, str(next(_redis_numbers)))
    client = redis.Redis.from_url(url)
    client.flushdb()
    client.close()
    return url


@pytest.fixture
def bare_settings(stack: Addresses, source_dsn: str, redis_url: str, tmp_path: Path) -> Settings:
    """Settings for a source with its schema and a ClickHouse database that does not exist yet."""
    return load(
        postgres_dsn=source_dsn,
        clickhouse_dsn=in_database(stack.clickhouse_dsn, f"t{uuid.uuid4().hex[:12]}"),
        redis_url=redis_url,
        retailmedia_home=tmp_path / "home",
        horizon_margin_ms=0,
        retry_attempts=3,
    )


@dataclass(frozen=True, slots=True)
class Shelved:
    """A ClickHouse database as its migrations left it: how each table was created, and how many rows it held then."""

    name: str
    tables: dict[str, tuple[str, int]]


@pytest.fixture(scope="session")
def shelf() -> list[Shelved]:
    """Databases with the schema in place that tests have given back."""
    return []


def _tables(sink: Sink) -> dict[str, tuple[str, int]]:
    return {
        name: (created, rows)
        for name, created, rows in sink.query(
            "looking at tables",
            "SELECT name, create_table_query, ifNull(total_rows, 0) FROM system.tables WHERE database = %(database)s",
            {"database": sink.database},
        )
    }


def _unmutated(sink: Sink) -> None:
    """Puts tables whose columns migrations changed in place anew, as they are: an emptied table that was ever mutated
    waits for ever for its next mutation."""
    mutated = "SELECT DISTINCT table FROM system.mutations WHERE database = %(database)s"
    for (name,) in sink.query("looking for mutations", mutated, {"database": sink.database}):
        fresh = f"{name}_unmutated"
        sink.command("making it anew", f"CREATE TABLE {quoted(fresh)} AS {quoted(name)}")
        sink.command("putting it in place", f"EXCHANGE TABLES {quoted(fresh)} AND {quoted(name)}")
        sink.command("dropping the other", f"DROP TABLE {quoted(fresh)} SYNC")


def _emptied(sink: Sink, pristine: Shelved) -> bool:
    """Makes the database what it was, which costs a tenth of making one; False if a test changed more than rows."""
    left = _tables(sink)
    if {name: created for name, (created, _) in left.items()} != {n: c for n, (c, _) in pristine.tables.items()}:
        return False
    # After TRUNCATE a table that was mutated waits for ever for its next mutation.
    mutations = "SELECT count() FROM system.mutations WHERE database = %(database)s"
    if sink.query("looking for mutations", mutations, {"database": sink.database})[0][0]:
        return False
    changed = {name for name, (_, rows) in left.items() if rows != pristine.tables[name][1]}
    if any(pristine.tables[name][1] for name in changed):
        return False
    for name in changed:
        sink.command("emptying a table", f"TRUNCATE TABLE {quoted(name)} SYNC")
    return True


@pytest.fixture
def settings(bare_settings: Settings, shelf: list[Shelved]) -> Iterator[Settings]:
    """Settings for fresh databases with both schemas in place."""
    made = bare_settings
    if shelf:
        pristine = shelf.pop()
        made = made.model_copy(update={"clickhouse_dsn": in_database(made.clickhouse_dsn, pristine.name)})
    else:
        with Sink(made) as sink:
            migrate.migrate(sink, made)
            _unmutated(sink)
            pristine = Shelved(sink.database, _tables(sink))
    yield made
    # A test that dropped its database leaves nothing to empty.
    with suppress(SchemaMismatch), Sink(bare_settings, database=pristine.name) as sink:
        if _emptied(sink, pristine):
            shelf.append(pristine)
            return
    with Sink(bare_settings, database="default") as sink:
        sink.command("cleaning up", f"DROP DATABASE IF EXISTS {quoted(pristine.name)} SYNC")


@pytest.fixture
def servers(settings: Settings) -> Iterator[Servers]:
    """The three servers, on fresh databases with both schemas."""
    opened = Servers.open(settings)
    yield opened
    opened.close()


@pytest.fixture
def writer(settings: Settings) -> Iterator[Connection]:
    """A connection that writes to the source; autocommit."""
    connection = psycopg2.connect(settings.source_dsn)
    connection.autocommit = True
    yield connection
    connection.close()
