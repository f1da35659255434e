"""How soon Celery's processes notice that a broker is back."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from worker.celery import create_app
from worker.config import load


@contextmanager
def nobody_there() -> Iterator[Celery[Any]]:
    """An app whose broker does not listen."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        app = create_app(load(redis_url=f"redis://127.0.0.1:{bound.getsockname()[1]}/0"))
        try:
            yield app
        finally:
            app.close()


def test_a_broker_that_was_away_for_long_is_looked_for_every_second(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("kombu.utils.functional.sleep", slept.append)
    with nobody_there() as app, app.connection_for_read() as connection, pytest.raises(OperationalError):
        connection.ensure_connection(max_retries=20)
    assert sum(slept) == 20
    assert max(slept) == 1
