"""A broker that is restarted under those who send."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import redis
from kombu.exceptions import OperationalError

from embedded.process import free_port
from embedded.redis import binary
from tests.processes import until
from worker.celery import create_app
from worker.config import load


@contextmanager
def broker(port: int, folder: Path) -> Iterator[redis.Redis]:
    """A Redis of its own, empty at first."""
    started = subprocess.Popen(
        [binary(), "--port", str(port), "--save", "", "--dir", str(folder)], stdout=subprocess.DEVNULL
    )
    client = redis.Redis(port=port)

    def answers() -> bool:
        with suppress(redis.RedisError):
            return bool(client.ping())
        return False

    try:
        until(answers, "Redis answers")
        yield client
    finally:
        client.close()
        started.kill()
        started.wait()


def test_a_sender_goes_on_after_its_broker_was_restarted_empty(tmp_path: Path) -> None:
    port = free_port()
    app = create_app(load(redis_url=f"redis://127.0.0.1:{port}/0"))
    try:
        with broker(port, tmp_path) as first:
            # As beat does: one connection, kept.
            producer = app.amqp.Producer(app.connection_for_write().ensure_connection(), auto_declare=False)

            def send() -> None:
                app.send_task("worker.tasks.sync.plan", queue="realtime", ignore_result=True, producer=producer)

            send()
            assert first.llen("realtime") == 1
        with pytest.raises(OperationalError):
            send()
        with broker(port, tmp_path) as second:
            send()
            send()
            assert second.llen("realtime") == 2
    finally:
        app.close()
