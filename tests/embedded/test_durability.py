"""Nothing acknowledged is lost, and nothing half done is kept, when a server is killed in the middle of it."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import redis
from clickhouse_driver import Client
from clickhouse_driver.errors import Error

from embedded import stack


@pytest.fixture
def table(address: dict[str, Any]) -> Iterator[str]:
    database = f"d_{uuid.uuid4().hex[:8]}"
    client = Client(**address)
    client.execute(f"CREATE DATABASE {database}")
    client.execute(
        f"CREATE TABLE {database}.t (chunk UInt64, n UInt64) ENGINE = MergeTree ORDER BY (chunk, n) "
        "SETTINGS non_replicated_deduplication_window = 1000"
    )
    client.disconnect()
    yield f"{database}.t"
    client.execute(f"DROP DATABASE {database} SYNC")
    client.disconnect()


def test_clickhouse_killed_again_and_again(home: Path, address: dict[str, Any], table: str) -> None:
    rows = 5000
    acknowledged: list[int] = []
    sent = 0
    for round_number in range(5):
        enough = threading.Event()

        def insert(wanted: int = len(acknowledged) + 5 + 3 * round_number, enough: threading.Event = enough) -> None:
            nonlocal sent
            client = Client(**address, compression="lz4")
            try:
                while True:
                    sent += 1
                    columns = [[sent] * rows, list(range(rows))]
                    client.execute(
                        f"INSERT INTO {table} VALUES",
                        columns,
                        columnar=True,
                        settings={"insert_deduplication_token": f"chunk-{sent}"},
                    )
                    acknowledged.append(sent)
                    if len(acknowledged) >= wanted:
                        enough.set()
            except (Error, OSError, EOFError):
                enough.set()
            finally:
                client.disconnect()

        thread = threading.Thread(target=insert)
        thread.start()
        assert enough.wait(60)
        stack.kill(home, "clickhouse")
        thread.join(60)
        stack.restart(home, "clickhouse")
        client = Client(**address)
        found = dict(client.execute(f"SELECT chunk, count() FROM {table} GROUP BY chunk"))
        assert set(acknowledged) <= set(found), "an acknowledged chunk is lost"
        assert set(found.values()) == {rows}, "a chunk is there in part"
        # The chunk whose outcome nobody knows is sent again with its token: it is there once either way.
        client.execute(
            f"INSERT INTO {table} VALUES",
            [[sent] * rows, list(range(rows))],
            columnar=True,
            settings={"insert_deduplication_token": f"chunk-{sent}"},
        )
        assert client.execute(f"SELECT count() FROM {table} WHERE chunk = {sent}") == [(rows,)]
        acknowledged.append(sent)
        client.disconnect()
    assert len(acknowledged) > 25


def test_postgres_killed(home: Path, running: stack.Addresses) -> None:
    name = f"d_{uuid.uuid4().hex[:8]}"
    with psycopg2.connect(running.postgres_dsn) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {name} (n int)")
        cursor.execute(f"INSERT INTO {name} SELECT generate_series(1, 1000)")
    connection.commit()
    with connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO {name} VALUES (0)")
    # A backend at work when its postmaster dies does not see it until it has finished.
    busy = psycopg2.connect(running.postgres_dsn)
    sleeper = threading.Thread(target=_work, args=(busy,))
    sleeper.start()
    stack.kill(home, "postgres")
    stack.restart(home, "postgres")
    sleeper.join(60)
    for stale in (connection, busy):
        stale.close()
    again = psycopg2.connect(running.postgres_dsn)
    with again.cursor() as cursor:
        cursor.execute(f"SELECT count(*), min(n) FROM {name}")
        assert cursor.fetchone() == (1000, 1)
        cursor.execute(f"DROP TABLE {name}")
    again.commit()
    again.close()


def _work(connection: Any) -> None:
    with connection.cursor() as cursor, pytest.raises(psycopg2.Error):
        cursor.execute("SELECT count(*) FROM generate_series(1, 2000000000)")


def test_redis_killed(home: Path, running: stack.Addresses) -> None:
    client = redis.Redis.from_url(running.redis_url)
    key = f"d_{uuid.uuid4().hex}"
    client.set(key, "kept")
    # Redis writes its log before it answers; only what the kernel had not stored yet could be lost, with the machine.
    stack.kill(home, "redis")
    stack.restart(home, "redis")
    again = redis.Redis.from_url(running.redis_url)
    assert again.get(key) == b"kept"
    again.delete(key)
    for one in (client, again):
        one.close()
