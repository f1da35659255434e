"""Redis as deploy/redis starts it: its one user is enough for the whole product, and can do no more than that."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from psycopg2.extensions import connection as Connection

from embedded import process
from embedded.redis import binary
from tests.agreement import assert_agreement
from tests.integration.test_flower import PASSWORD as LOGIN
from tests.integration.test_flower import USER, fetched, shown
from tests.integration.test_pipeline import add, campaigns
from tests.nursery import Child
from tests.processes import ROOT, celery, end, ready, until
from worker import doctor, runs
from worker.celery import Servers, create_app
from worker.config import Settings
from worker.streams import STREAMS

PASSWORD = "p-word"
PATIENCE = 180
RULES = (ROOT / "deploy/redis/users.acl").read_text()


def started(folder: Path, rules: str) -> tuple[subprocess.Popen[bytes], int]:
    """Redis as compose starts it, by `deploy/redis/start` and these rules, and its port."""
    port, given = process.free_port(), folder / "rules.acl"
    given.write_text(rules)
    with (folder / "redis.log").open("ab") as log:
        made = subprocess.Popen(
            [ROOT / "deploy/redis/start", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""],
            stdout=log, stderr=log, cwd=folder,
            env={
                **os.environ, "PATH": f"{binary().parent}:{os.environ['PATH']}", "REDISCLI_AUTH": PASSWORD,
                "RETAILMEDIA_REDIS_USERS": str(given), "TMPDIR": str(folder),
            },
        )  # fmt: skip

    def listens() -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    until(listens, "Redis listens")
    return made, port


WATCHER = "watcher"


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """The port of such a server, with a second user who may read what was refused."""
    folder = tmp_path / "redis"
    folder.mkdir()
    watching = f"\nuser {WATCHER} on >{PASSWORD} +acl|log"
    # Of two users each has a line of its own.
    made, port = started(folder, RULES)
    made.kill()
    made.wait()
    users = folder / "users.acl"
    users.write_text(users.read_text() + watching.strip() + "\n")
    with (folder / "redis.log").open("ab") as log:
        command = [
            str(binary()),
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(folder),
            "--aclfile",
            str(users),
        ]
        server = subprocess.Popen([*command, "--save", ""], stdout=log, stderr=log, cwd=folder)
    address = f"redis://{WATCHER}:{PASSWORD}@127.0.0.1:{port}/0"

    def answers() -> bool:
        with suppress(redis.ConnectionError):
            client = redis.Redis.from_url(address)
            client.acl_log_reset()
            return True
        return False

    until(answers, "Redis answers")
    yield port
    server.kill()
    server.wait()


def denied(port: int) -> list[tuple[str, str, str]]:
    """What the server refused since it started: reason, object, user."""
    client: Any = redis.Redis(port=port, username=WATCHER, password=PASSWORD, decode_responses=True)
    with client:
        return [(one["reason"], one["object"], one["username"]) for one in client.acl_log()]


@pytest.fixture
def settings(settings: Settings, port: int) -> Settings:
    return settings.model_copy(
        update={"redis_url": f"redis://retailmedia:{PASSWORD}@127.0.0.1:{port}/0", "lease_seconds": 5}
    )


def metrics_of(servers: Servers) -> int:
    return int(servers.sink.query("counting", "SELECT sum(impressions_count) FROM daily_campaign_performance")[0][0])


@contextmanager
def working(settings: Settings, folder: Path) -> Iterator[dict[str, Child]]:
    """A worker for fresh data, one for backfills, and beat, their logs in the folder."""
    (settings.retailmedia_home / "beat").mkdir(parents=True, exist_ok=True)
    commands = {
        "fresh": ["worker", "-n", "fresh@localhost", "-Q", "realtime,maintenance", "-c", "2"],
        "bulk": ["worker", "-n", "bulk@localhost", "-Q", "backfill", "-c", "1"],
        "beat": ["beat"],
    }
    started = {name: celery(settings, words, folder / f"{name}.log") for name, words in commands.items()}
    try:
        for name in ("fresh", "bulk"):
            until(lambda name=name: ready(settings, f"{name}@localhost"), f"worker {name} answers", PATIENCE)  # type: ignore[misc]
        yield started
    finally:
        for one in started.values():
            end(one)


def test_its_user_is_enough_for_everything(
    settings: Settings, servers: Servers, writer: Connection, port: int, tmp_path: Path
) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 500)
    with working(settings, tmp_path) as running:
        until(lambda: metrics_of(servers) == 500, "beat's ticks load and count", PATIENCE)
        app = create_app(settings)
        try:
            streams = [STREAMS["impressions"], STREAMS["clicks"]]
            for task in (runs.PIPELINE, runs.REFRESH):
                runs.require_workers(app, servers.store, task)
                run_id = task.rpartition(".")[2].replace("_", "-")
                *_, last = runs.follow(servers, app, task, run_id, streams, metrics_update=True, timeout=PATIENCE)
                assert last.run is not None
                assert last.run.state == "succeeded"
            # What a killed worker held goes back into the queue.
            running["fresh"].send_signal(signal.SIGKILL)
            add(writer, "impressions", campaign, 300)
            with shown(settings, tmp_path / "flower") as address:
                until(lambda: metrics_of(servers) == 800, "what came after a worker was killed is counted", PATIENCE)
                for page in ("/workers", "/tasks", "/broker", "/api/workers?refresh=1", "/api/queues/length"):
                    assert fetched(address + page, f"{USER}:{LOGIN}")[0] == 200, page
                assert asked(address, "/api/task/send-task/worker.tasks.maintenance.converge", {})["task-id"]
            assert app.control.inspect(timeout=5).active()
        finally:
            app.close()
        findings = list(doctor.examine(settings, now=servers.source.now, workers=dict, queues=frozenset({"realtime"})))
    assert_agreement(writer, servers)
    assert [(one.what, one.state) for one in findings if one.about == "Redis" and one.what == "rights"] == [
        ("rights", "ok")
    ]
    # The doctor's own question was whether it may; what clients tell of themselves they try, and go on without.
    refusals = {what for _, what, who in denied(port) if who == "retailmedia"}
    assert refusals <= {"config", "config|get", "client", "client|maint_notifications"}


def asked(address: str, path: str, content: dict[str, Any]) -> Any:
    request = urllib.request.Request(  # noqa: S310 - our own address
        address + path, json.dumps(content).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    request.add_header("Authorization", "Basic " + base64.b64encode(f"{USER}:{LOGIN}".encode()).decode())
    with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
        return json.loads(answer.read())


FORBIDDEN = (
    "CONFIG SET dir /tmp", "CONFIG GET *", "SAVE", "BGSAVE", "BGREWRITEAOF", "FLUSHALL", "FLUSHDB", "KEYS *", "MONITOR",
    "DEBUG SLEEP 0", "SHUTDOWN NOSAVE", "REPLICAOF 127.0.0.1 1", "SLAVEOF 127.0.0.1 1", "CLIENT LIST", "CLIENT KILL ID 1",
    "ACL LIST", "ACL SETUSER other on", "MODULE LOAD /x.so", "SCRIPT FLUSH", "SWAPDB 0 1", "MIGRATE 127.0.0.1 1 k 0 1",
    "RESTORE retailmedia:x 0 x", "SORT retailmedia:x", "OBJECT ENCODING retailmedia:x", "GET elsewhere", "SET elsewhere 1",
    "PUBLISH elsewhere x", "SUBSCRIBE elsewhere", "PSUBSCRIBE *", "RANDOMKEY", "DBSIZE", "RENAME realtime x",
    "EVAL return{redis.call('GET','elsewhere')} 0", "EVAL return{redis.call('CONFIG','GET','dir')} 0",
)  # fmt: skip


@pytest.mark.parametrize("command", FORBIDDEN)
def test_it_can_do_no_more(port: int, command: str) -> None:
    client: Any = redis.Redis(port=port, username="retailmedia", password=PASSWORD)
    with (
        client,
        pytest.raises(redis.ResponseError, match=r"(?i)no.?perm|permission|can't access|not allowed from scripts"),
    ):
        client.execute_command(*command.split(" "))


def test_nobody_comes_in_without_the_password(port: int) -> None:
    logins: list[dict[str, Any]] = [{}, {"password": PASSWORD}, {"username": "retailmedia", "password": "wrong"}]
    for login in logins:
        client: Any = redis.Redis(port=port, **login)
        with (
            client,
            pytest.raises(redis.RedisError, match=r"(?i)authenticated|authentication|wrongpass|invalid username"),
        ):
            client.ping()


def test_the_password_stands_in_no_file_and_no_argument(tmp_path: Path) -> None:
    server, _ = started(tmp_path, RULES)
    try:
        told = (tmp_path / "users.acl").read_text() + Path(f"/proc/{server.pid}/cmdline").read_text()
        assert PASSWORD not in told
        assert (tmp_path / "users.acl").stat().st_mode & 0o077 == 0
    finally:
        server.kill()
        server.wait()


def test_every_command_of_ours_is_allowed() -> None:
    text = "".join(path.read_text() for path in (ROOT / "worker").rglob("*.py"))
    given = {name.lower() for name in re.findall(r"redis\.call\('(\w+)'", text)}
    methods = set(re.findall(r"(?:self\._redis|pipe)\.(\w+)\(", text)) - {"pipeline", "execute", "close"}
    given |= {{"delete": "del", "scan_iter": "scan"}.get(name, name) for name in methods} - {"config_get"}
    allowed = set(re.findall(r"\+([a-z]+)", RULES))
    assert given
    assert given <= allowed
