"""Messages as somebody with the broker's password could write them, and a worker that only has a broker."""

from __future__ import annotations

import base64
import json
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from embedded.process import free_port
from embedded.redis import binary
from tests.nursery import Child
from tests.processes import celery, end, ready, until
from worker.config import Settings, load

STEP, RUN = "worker.tasks.pipeline.step", "20261128-000000-abcdef"
TURN = "retailmedia:turn:step:" + RUN


def encoded(body: object) -> str:
    """A body as kombu sends it."""
    return base64.b64encode(json.dumps(body).encode()).decode()


def task(name: str = STEP, kwargs: dict[str, Any] | None = None, **headers: Any) -> dict[str, Any]:
    """A task message just as Celery makes them. The default one needs no server but Redis, and says so in its result."""
    number = str(uuid.uuid4())
    kwargs = {"run_id": RUN, "turn": "0" * 16} if kwargs is None else kwargs
    return {
        "body": encoded([[], kwargs, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py", "task": name, "id": number, "shadow": None, "eta": None, "expires": None, "group": None,
            "group_index": None, "retries": 0, "timelimit": [None, None], "root_id": number, "parent_id": None,
            "argsrepr": "()", "kwargsrepr": "{}", "origin": "somebody@somewhere", "ignore_result": None,
            "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {}, **headers,
        },
        "properties": {
            "correlation_id": number, "reply_to": str(uuid.uuid4()), "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "realtime"}, "priority": 0, "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }  # fmt: skip


def told(exchange: str, body: object, routing_key: str = "", **headers: Any) -> dict[str, Any]:
    """A command or an event just as Celery makes them."""
    return {
        "body": encoded(body),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": {
            "delivery_mode": 1, "delivery_info": {"exchange": exchange, "routing_key": routing_key}, "priority": 0,
            "body_encoding": "base64", "delivery_tag": str(uuid.uuid4()),
        },
    }  # fmt: skip


@dataclass
class Wired:
    """A worker, its broker, and what it wrote."""

    settings: Settings
    client: redis.Redis
    log: Path
    worker: Child

    def put(self, message: object, queue: str = "realtime") -> None:
        """Adds a message to a queue: bytes as they are, anything else as JSON."""
        self.client.lpush(queue, message if isinstance(message, bytes) else json.dumps(message))

    def publish(self, message: object, topic: str = "celery.pidbox") -> None:
        """Tells it to all who listen."""
        database = self.settings.redis_url.rpartition("/")[2]
        self.client.publish(f"/{database}.{topic}", message if isinstance(message, bytes) else json.dumps(message))

    def serves(self, what: str = "", seconds: float = 30) -> None:
        """A good message, which must be served by the same worker."""
        message = task()
        self.put(message)
        key = f"celery-task-meta-{message['headers']['id']}"

        def done() -> bool:
            assert self.worker.poll() is None, f"the worker ended: {what}\n{self.log.read_text()[-3000:]}"
            found = self.client.get(key)
            return found is not None and json.loads(found)["status"] == "SUCCESS"

        until(done, f"the good message behind it is served: {what}", seconds)

    def refused(self) -> list[dict[str, Any]]:
        """What was refused, from the log."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if '"message.refused"' in line]


@contextmanager
def wired(home: Path, **extra: str) -> Iterator[Wired]:
    """A worker with two children and a broker of its own."""
    port = free_port()
    broker = subprocess.Popen(
        [binary(), "--port", str(port), "--save", "", "--dir", str(home)], stdout=subprocess.DEVNULL
    )
    client = redis.Redis(port=port)
    settings = load(
        postgres_dsn="postgresql://nobody@127.0.0.1:1/nothing",
        clickhouse_dsn="clickhouse://nobody@127.0.0.1:1/nothing",
        redis_url=f"redis://127.0.0.1:{port}/0",
        retailmedia_home=home,
    )
    log = home / f"worker-{time.monotonic_ns()}.log"
    try:
        until(lambda: _answers(client), "Redis answers")
        client.set(TURN, "somebody else's")
        arguments = ["worker", "-n", "wired@localhost", "-Q", "realtime,maintenance,backfill", "-c", "2"]
        worker = celery(settings, arguments, log, {"LOG_FORMAT": "json", **extra})
        try:
            until(lambda: ready(settings, "wired@localhost"), "the worker answers")
            yield Wired(settings, client, log, worker)
        finally:
            end(worker)
    finally:
        client.close()
        broker.kill()
        broker.wait()


def _answers(client: redis.Redis) -> bool:
    with suppress(redis.RedisError):
        return bool(client.ping())
    return False
