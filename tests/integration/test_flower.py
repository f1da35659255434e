"""Flower as people open it: behind a password, with the tasks of a run in words that can be read."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from celery import Celery
from celery.events.state import State
from psycopg2.extensions import connection as Connection

from embedded import process
from tests.integration.test_pipeline import add, campaigns
from tests.processes import celery, end, ready, until
from worker import pipeline
from worker.celery import Servers, create_app
from worker.config import Settings
from worker.tasks.sync import PROGRESS
from worker.windows import to_micros

USER, PASSWORD = "someone", "pass-word,Sécret:π"


def fetched(url: str, login: str = "") -> tuple[int, str]:
    request = urllib.request.Request(url)  # noqa: S310 - our own address
    if login:
        request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"window_rows": 1000, "chunk_rows": 500})


@pytest.fixture
def app(settings: Settings) -> Iterator[Celery[Any]]:
    made = create_app(settings)
    yield made
    made.close()


@contextlib.contextmanager
def shown(settings: Settings, folder: Path) -> Iterator[str]:
    """Flower and the worker `shown`, their logs in the folder; Flower's address."""
    port = process.free_port()
    worker = celery(
        settings, ["worker", "-n", "shown@localhost", "-Q", "realtime,maintenance,backfill", "-c", "2"], folder / "worker.log",
        {"CHUNK_ROWS": "500"},
    )  # fmt: skip
    screen = celery(
        settings, ["flower", "--address=127.0.0.1", f"--port={port}"], folder / "flower.log",
        {
            "FLOWER_BASIC_AUTH": f"{USER}:{PASSWORD}",
            # As Kubernetes tells a pod in a namespace with a service called flower.
            "FLOWER_PORT": "tcp://10.0.0.1:5555", "FLOWER_PORT_5555_TCP_ADDR": "10.0.0.1", "FLOWER_SERVICE_HOST": "x",
        },
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"

    def up() -> bool:
        try:
            return fetched(f"{address}/healthcheck")[0] == 200
        except OSError:
            return False

    try:
        until(up, "Flower answers")
        until(lambda: ready(settings, "shown@localhost"), "the worker answers")
        yield address
    finally:
        end(screen)
        end(worker)


@pytest.fixture
def flower(settings: Settings, tmp_path: Path) -> Iterator[str]:
    """Flower's address, a worker being there."""
    with shown(settings, tmp_path) as address:
        yield address


def test_whoever_has_no_password_sees_nothing(flower: str) -> None:
    half, rest = PASSWORD.split(",")
    for page in ("/", "/workers", "/tasks", "/broker", "/api/tasks", "/api/workers", "/metrics"):
        for login in (
            "",
            f"{USER}:wrong",
            f"{USER}:{half}",
            rest,
            f"{USER}:ü",
            USER,
            f"{USER}:",
            f"{USER}:{PASSWORD}x",
        ):
            assert fetched(flower + page, login)[0] == 401, (page, login)
        assert fetched(flower + page, f"{USER}:{PASSWORD}")[0] == 200, page
    for header in ("Basic", "Basic ?", "Bearer x", "Basic w7w="):
        assert asked(f"{flower}/workers", header).status == 401, header
    assert fetched(f"{flower}/healthcheck") == (200, "OK")


def asked(url: str, authorization: str) -> http.client.HTTPResponse:
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.netloc, timeout=20)
    connection.request("GET", place.path, headers={"Authorization": authorization})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


def test_no_page_can_be_framed_or_run_a_script_of_others(flower: str) -> None:
    login = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    for page in ("/", "/tasks", "/nothing", "/static/js/flower.js", "/metrics", "/api/workers", "/healthcheck"):
        answer = asked(flower + page, login)
        policy = str(answer.headers["Content-Security-Policy"])
        assert "frame-ancestors 'none'" in policy, page
        assert "default-src 'none'" in policy, page
        assert "script-src 'self' 'unsafe-inline'" not in policy
        assert (answer.headers["X-Frame-Options"], answer.headers["Server"]) == ("DENY", None), page
    # What its own pages hold is allowed by them.
    _, text = fetched(f"{flower}/workers", f"{USER}:{PASSWORD}")
    scripts = re.findall(r"<script(?![^>]*src=)[^>]*>(.*?)</script>", text, re.DOTALL)
    assert scripts
    for script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy, script
    assert not re.search(r"\son\w+=\"|(?:src|href)=\"(?:https?:)?//[^\"]+\.(?:js|css)", text)


def test_the_tasks_of_a_run_are_shown_in_short(
    flower: str, app: Celery[Any], servers: Servers, writer: Connection
) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 2500)
    seen: Any = State()
    states, receiving = set(), threading.Event()

    def noticed(event: dict[str, Any]) -> None:
        seen.event(event)
        if event["type"] == "task-progress":
            task = seen.tasks[event["uuid"]]
            states.add((task.state, task.result))

    def listen() -> None:
        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": noticed})
            receiving.set()
            # Ends with the test's servers at the latest, however Redis words that.
            with contextlib.suppress(Exception):
                receiver.capture(limit=None, timeout=45, wakeup=False)

    threading.Thread(target=listen, daemon=True).start()
    assert receiving.wait(10)
    run_id = pipeline.new_run_id(to_micros(servers.source.now()))
    app.send_task("worker.tasks.pipeline.run", kwargs={"run_id": run_id, "streams": ["impressions"]}, queue="realtime")

    def ended() -> bool:
        found = servers.ledger.run(run_id)
        return found is not None and found.state == "succeeded"

    until(ended, "the run succeeds")

    def listed() -> dict[str, dict[str, Any]]:
        status, text = fetched(f"{flower}/api/tasks?limit=500", f"{USER}:{PASSWORD}")
        assert status == 200
        found: dict[str, dict[str, Any]] = json.loads(text)
        return found

    def complete() -> bool:
        names = [task["name"] for task in listed().values() if task["state"] == "SUCCESS"]
        return {"worker.tasks.pipeline.run", "worker.tasks.pipeline.step"} <= set(names) and names.count(
            "worker.tasks.sync.load_window"
        ) >= 2

    until(complete, "Flower shows the tasks")
    tasks = listed()
    assert all(task["name"].startswith("worker.tasks.") for task in tasks.values() if task["name"])
    windows = [
        task
        for task in tasks.values()
        if task["name"] == "worker.tasks.sync.load_window" and task["state"] == "SUCCESS"
    ]
    assert all("'stream': 'impressions'" in task["kwargs"] and len(task["kwargs"]) < 300 for task in windows)
    assert all("'rows':" in task["result"] and len(task["result"]) < 120 for task in windows)
    assert (PROGRESS, "500 rows of impressions") in states, states
