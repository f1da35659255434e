"""A ClickHouse database for the queries, without a source behind it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from embedded.stack import Addresses
from tests.conftest import in_database
from worker import migrate
from worker.config import Settings, load
from worker.sink import Sink


@pytest.fixture(scope="module")
def settings(stack: Addresses) -> Iterator[Settings]:
    """A ClickHouse database of this module's own; there is no source behind it."""
    made = load(clickhouse_dsn=in_database(stack.clickhouse_dsn, f"q{uuid.uuid4().hex[:12]}"))
    with Sink(made) as sink:
        migrate.migrate(sink, made)
        yield made
        sink.command("cleaning up", f"DROP DATABASE IF EXISTS {made.sink_address.database} SYNC")


@pytest.fixture(scope="module")
def sink(settings: Settings) -> Iterator[Sink]:
    """One session for all cases."""
    with Sink(settings) as opened:
        yield opened
