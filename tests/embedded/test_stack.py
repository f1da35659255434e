"""The stack as a whole: started, found, stopped, killed; from anywhere, by anyone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import pytest
import redis
from clickhouse_driver import Client

from embedded import process, stack

ROOT = Path(__file__).resolve().parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Path]:
    """A home whose stack, if any, is stopped in the end."""
    folder = tmp_path / "a home, with 'quotes' & (more)?x=1"
    yield folder
    stack.stop(folder)
    assert stack.daemons(folder) == []


def check(found: stack.Addresses) -> None:
    """All three answer, as the product will ask them."""
    connection = psycopg2.connect(found.postgres_dsn)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT current_database(), current_setting('wal_level'), current_setting('fsync'), "
            "current_setting('max_connections'), current_setting('max_prepared_transactions'), "
            "current_setting('TimeZone'), current_setting('server_encoding'), current_setting('password_encryption')"
        )
        assert cursor.fetchone() == ("retailmedia", "logical", "on", "200", "20", "UTC", "UTF8", "scram-sha-256")
    connection.close()
    parts = urlsplit(found.clickhouse_dsn)
    client = Client(host="127.0.0.1", port=parts.port, user=parts.username, password=parts.password, database="default")
    assert client.execute("SELECT 1") == [(1,)]
    client.disconnect()
    broker = redis.Redis.from_url(found.redis_url)
    assert broker.ping()
    assert broker.config_get("appendonly") == {"appendonly": "yes"}
    assert broker.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    broker.close()


def pids(home: Path) -> dict[str, int | None]:
    return {name: one.pid for name, one in stack.status(home).items()}


def test_a_life(fresh: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert stack.addresses(fresh) is None
    assert stack.stop(fresh) == []
    steps: list[str] = []
    found = stack.start(fresh, on_step=steps.append)
    check(found)
    assert len(steps) == 4
    assert stack.addresses(fresh) == found
    told = json.loads((fresh / "stack.json").read_text())
    assert told == {
        "POSTGRES_DSN": found.postgres_dsn,
        "CLICKHOUSE_DSN": found.clickhouse_dsn,
        "REDIS_URL": found.redis_url,
    }
    assert {path.name: path.stat().st_mode & 0o777 for path in fresh.glob("*.json")} == {
        "stack.json": 0o600,
        "state.json": 0o600,
    }
    before = pids(fresh)
    assert stack.start(fresh) == found
    assert pids(fresh) == before
    assert stack.stop(fresh) == ["postgres", "redis", "clickhouse"]
    assert stack.addresses(fresh) is None
    assert not (fresh / "stack.json").exists()
    assert stack.stop(fresh) == []
    # Ports and passwords are kept.
    assert stack.start(fresh) == found
    check(found)
    assert capfd.readouterr().out == ""


def test_after_a_kill_of_everything(fresh: Path) -> None:
    found = stack.start(fresh)
    client = psycopg2.connect(found.postgres_dsn)
    for service in stack.SERVICES:
        stack.kill(fresh, service, signal.SIGKILL)
    client.close()
    assert stack.addresses(fresh) is None
    assert not any(one.running for one in stack.status(fresh).values())
    assert stack.start(fresh) == found
    check(found)


def test_only_what_is_dead_is_started(fresh: Path) -> None:
    stack.start(fresh)
    before = pids(fresh)
    stack.kill(fresh, "redis")
    check(stack.start(fresh))
    after = pids(fresh)
    assert [name for name in before if before[name] != after[name]] == ["redis"]


def test_a_restart_keeps_the_port(fresh: Path) -> None:
    found = stack.start(fresh)
    for service in stack.SERVICES:
        stack.kill(fresh, service)
        with pytest.raises(stack.StackError, match="not running"):
            stack.kill(fresh, service)
        stack.restart(fresh, service)
    assert stack.addresses(fresh) == found
    check(found)


def test_a_taken_port_is_replaced(fresh: Path) -> None:
    first = stack.start(fresh)
    stack.stop(fresh)
    port = stack.status(fresh)["redis"].port
    assert port is not None
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(stack.StackError, match="taken"):
            stack.restart(fresh, "redis")
        second = stack.start(fresh)
        check(second)
    assert second.redis_url != first.redis_url
    assert second.postgres_dsn == first.postgres_dsn


def test_a_recycled_process_id_is_left_alone(fresh: Path) -> None:
    stack.start(fresh)
    stack.stop(fresh)
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        state = json.loads((fresh / "state.json").read_text())
        for service in stack.SERVICES:
            state["processes"][service] = {"pid": bystander.pid, "started": "another boot:1"}
        (fresh / "state.json").write_text(json.dumps(state))
        (fresh / "postgres" / "postmaster.pid").write_text(
            f"{bystander.pid}\n{fresh / 'postgres'}\n1\n1\n\n127.0.0.1\n1 1\n"
        )
        assert stack.addresses(fresh) is None
        assert stack.stop(fresh) == []
        check(stack.start(fresh))
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_damaged_state_is_no_obstacle(fresh: Path) -> None:
    stack.start(fresh)
    for name in ("state.json", "stack.json"):
        (fresh / name).write_text("{")
    assert stack.addresses(fresh) is None
    # The servers are ended all the same, and the data stays usable under new passwords.
    assert stack.stop(fresh) == []
    assert stack.daemons(fresh) == []
    check(stack.start(fresh))


def test_two_starts_at_once(fresh: Path) -> None:
    command = [sys.executable, "-m", "embedded", "up", "--home", str(fresh)]
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: subprocess.run(command, cwd=ROOT, capture_output=True, text=True), range(3)))
    assert [one.returncode for one in done] == [0, 0, 0], [one.stderr for one in done]
    assert [one.stdout for one in done] == ["", "", ""]
    found = stack.addresses(fresh)
    assert found is not None
    check(found)
    assert {who.pid for who in stack.daemons(fresh)} == set(pids(fresh).values())


def test_a_start_that_is_killed_leaves_no_obstacle(fresh: Path) -> None:
    for wait_for in ("state.json", "postgres.new", "postgres"):
        starter = subprocess.Popen(
            [sys.executable, "-m", "embedded", "up", "--home", str(fresh)], cwd=ROOT, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while not (fresh / wait_for).exists() and starter.poll() is None:
            assert time.monotonic() < deadline
        starter.kill()
        starter.wait()
    check(stack.start(fresh))
    assert {who.pid for who in stack.daemons(fresh)} == set(pids(fresh).values())


def test_a_process_that_ended_since_it_was_found_is_no_daemon(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a session of PostgreSQL may, between the look at working directories and the one at parents."""
    short = subprocess.Popen(["sleep", "60"])
    who = process.identify(short.pid)
    assert who is not None
    monkeypatch.setattr(stack, "working_in", lambda folder, program: [who])
    assert who in stack.daemons(fresh)
    short.kill()
    short.wait()
    assert stack.daemons(fresh) == []


@pytest.mark.parametrize("gone", ["services", "home"])
def test_stopping_when_the_folder_was_deleted(tmp_path: Path, gone: str) -> None:
    home = tmp_path / "gone"
    stack.start(home)
    if gone == "home":
        shutil.rmtree(home)
    else:
        for service in stack.SERVICES:
            shutil.rmtree(home / service)
    stopped = stack.stop(home)
    assert stopped == ([] if gone == "home" else ["postgres", "redis", "clickhouse"])
    assert stack.daemons(home) == []


def test_the_stack_survives_its_starter_and_prints_nothing(fresh: Path) -> None:
    def run(action: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "embedded", action, "--home", str(fresh)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, start_new_session=True)

    assert run("up").stdout == ""
    found = stack.addresses(fresh)
    assert found is not None
    check(found)
    told = run("status").stdout
    assert told.count("running, process") == 3
    assert all(secret not in told for secret in json.loads((fresh / "state.json").read_text())["passwords"].values())
    assert run("down").stdout == ""
    assert run("status").stdout.count("not running") == 3


def test_passwords_are_on_no_command_line(home: Path) -> None:
    secrets = json.loads((home / "state.json").read_text())["passwords"].values()
    for pid in pids(home).values():
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        assert not any(secret.encode() in command for secret in secrets)


@as_root
def test_root_below_a_folder_closed_to_others(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    home = closed / "below" / "home"
    try:
        found = stack.start(home)
        check(found)
        assert (home / "postgres").stat().st_uid != 0
        pid = pids(home)["postgres"]
        held = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
        assert held["Uid"].split()[1] != "0"
        # Reading and searching, nothing else: no writing, no becoming root again.
        assert int(held["CapPrm"], 16) == 1 << 2
        stack.kill(home, "postgres")
        stack.restart(home, "postgres")
        check(found)
    finally:
        stack.stop(home)


@as_root
def test_root_in_an_open_folder_gives_up_every_capability() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        home = Path(folder) / "home"
        try:
            check(stack.start(home))
            status = Path(f"/proc/{pids(home)['postgres']}/status").read_text()
            fields = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
            if not process_must_traverse():
                assert int(fields["CapPrm"], 16) == 0
        finally:
            stack.stop(home)


def process_must_traverse() -> bool:
    """Whether this very installation lies below a folder closed to other users."""
    folders = [ROOT, *ROOT.parents, *Path(sys.executable).resolve().parents, *Path(sys.prefix).parents]
    return any(not folder.stat().st_mode & 0o001 for folder in folders)


@as_root
def test_an_ordinary_user() -> None:
    """Everything as another user, in a folder of its own."""
    uid = 65534
    # Let through the folders of this installation, which may be root's own; otherwise a user like any other.
    user = process.Drop(uid, uid, traverse=process_must_traverse())
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, uid, uid)
        home = Path(folder) / "its home"

        def run(action: str) -> subprocess.CompletedProcess[str]:
            return process.run([sys.executable, "-m", "embedded", action, "--home", str(home)], drop=user, cwd=ROOT)

        up = run("up")
        try:
            assert up.returncode == 0, up.stderr
            found = stack.addresses(home)
            assert found is not None
            check(found)
            for pid in pids(home).values():
                assert Path(f"/proc/{pid}").stat().st_uid == uid
        finally:
            assert run("down").returncode == 0
        assert stack.daemons(home) == []
