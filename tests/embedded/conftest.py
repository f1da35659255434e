"""One running stack for the whole folder, and clients of its ClickHouse."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from clickhouse_driver import Client
from hypothesis import HealthCheck, settings

from embedded import stack

settings.register_profile(
    "embedded", deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("embedded")

Connect = Callable[..., Client]


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a running stack, in a path with a space in it."""
    folder = tmp_path_factory.mktemp("the stack")
    stack.start(folder)
    yield folder
    stack.stop(folder)


@pytest.fixture(scope="session")
def running(home: Path) -> stack.Addresses:
    """Its addresses."""
    found = stack.addresses(home)
    assert found is not None
    return found


@pytest.fixture(scope="session")
def address(running: stack.Addresses) -> dict[str, Any]:
    """Host, port, user and password of its ClickHouse."""
    parts = urlsplit(running.clickhouse_dsn)
    return {"host": parts.hostname, "port": parts.port, "user": parts.username, "password": parts.password}


@pytest.fixture
def database(address: dict[str, Any]) -> Iterator[str]:
    """A database of the test's own."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    client = Client(**address)
    client.execute(f"CREATE DATABASE {name}")
    yield name
    client.execute(f"DROP DATABASE {name} SYNC")
    client.disconnect()


@pytest.fixture
def connect(address: dict[str, Any], database: str) -> Iterator[Connect]:
    """Clients in that database."""
    clients: list[Client] = []

    def make(**options: Any) -> Client:
        clients.append(Client(**{**address, "database": database, **options}))
        return clients[-1]

    yield make
    for client in clients:
        client.disconnect()


@pytest.fixture
def client(connect: Connect) -> Client:
    """One such client."""
    return connect()
