"""How soon Celery's processes notice that a broker is back."""

from __future__ import annotations

import socket

import pytest
from kombu.exceptions import OperationalError

from worker.celery import create_app
from worker.config import load


def test_a_broker_that_was_away_for_long_is_looked_for_every_second(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:
        # Nobody listens there.
        bound.bind(("127.0.0.1", 0))
        app = create_app(load(redis_url=f"redis://127.0.0.1:{bound.getsockname()[1]}/0"))
        slept: list[float] = []
        monkeypatch.setattr("kombu.utils.functional.sleep", slept.append)
        with pytest.raises(OperationalError), app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=20)
        app.close()
    assert sum(slept) == 20
    assert max(slept) == 1
