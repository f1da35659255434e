"""The embedded stack as a whole: started, found, stopped. One folder, its home, holds everything it writes.

`<home>/state.json` remembers passwords, ports and processes from one start to the next; `<home>/stack.json` exists
while the stack is meant to run and tells its addresses to the product. Both hold passwords and have mode 0600.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from embedded import postgres, redis
from embedded.clickhouse import daemon as clickhouse
from embedded.process import (
    Identity,
    StackError,
    alive,
    await_end,
    await_port,
    end,
    free_port,
    parent,
    port_is_free,
    signal_to,
    working_in,
)

Service = Literal["postgres", "redis", "clickhouse"]
SERVICES: Final[tuple[Service, ...]] = get_args(Service)
USER: Final = postgres.USER
DATABASE: Final = postgres.DATABASE

_TITLES: Final = {"postgres": "PostgreSQL", "redis": "Redis", "clickhouse": "ClickHouse"}
_STOP_SIGNALS: Final = {
    "postgres": postgres.STOP_SIGNALS,
    "redis": redis.STOP_SIGNALS,
    "clickhouse": clickhouse.STOP_SIGNALS,
}
_PROGRAMS: Final = {"postgres": "postgres", "redis": "redis-server", "clickhouse": "embedded.clickhouse"}
_STRAY_SIGNALS: Final = ((signal.SIGINT, 10.0), (signal.SIGKILL, 10.0))
"""Each of the three takes SIGINT for a quick clean end."""
_ATTEMPTS: Final = 3
_PORT_SECONDS: Final = 3.0

__all__ = [
    "SERVICES",
    "Addresses",
    "Service",
    "ServiceStatus",
    "StackError",
    "addresses",
    "daemons",
    "kill",
    "restart",
    "start",
]
__all__ += ["status", "stop"]


@dataclass(frozen=True)
class Addresses:
    """Where the three servers are, passwords included."""

    postgres_dsn: str
    clickhouse_dsn: str
    redis_url: str


@dataclass(frozen=True)
class ServiceStatus:
    """Whether a service runs; its process id if so; the port it has or last had (None: never started)."""

    running: bool
    pid: int | None
    port: int | None


@dataclass
class _State:
    """What `state.json` holds."""

    passwords: dict[str, str]
    ports: dict[str, int]
    processes: dict[str, Identity]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a file in one step, readable by its owner only."""
    building = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(building, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(building, path)


def _load(home: Path) -> _State:
    content = _read_json(home / "state.json")
    processes: dict[str, Identity] = {}
    for name, told in content.get("processes", {}).items():
        with contextlib.suppress(KeyError, TypeError, ValueError):
            processes[name] = Identity(int(told["pid"]), str(told["started"]))
    return _State(dict(content.get("passwords", {})), dict(content.get("ports", {})), processes)


def _save(home: Path, state: _State) -> None:
    processes = {name: {"pid": who.pid, "started": who.started} for name, who in state.processes.items()}
    _write_json(home / "state.json", {"passwords": state.passwords, "ports": state.ports, "processes": processes})


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    """One starter or stopper of a home at a time; the lock dies with its holder."""
    try:
        file = open(home / ".lock", "w")  # noqa: SIM115 - closed below
    except PermissionError:
        raise StackError(f"{home} belongs to another user; choose another folder.") from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _addresses(state: _State) -> Addresses:
    passwords, ports = state.passwords, state.ports
    return Addresses(
        f"postgresql://{USER}:{passwords['postgres']}@127.0.0.1:{ports['postgres']}/{DATABASE}",
        f"clickhouse://{USER}:{passwords['clickhouse']}@127.0.0.1:{ports['clickhouse']}/{DATABASE}",
        f"redis://:{passwords['redis']}@127.0.0.1:{ports['redis']}/0",
    )


def _launch(home: Path, service: Service, port: int, password: str) -> Identity:
    if service == "postgres":
        return postgres.start(home, port, password)
    if service == "redis":
        return redis.start(home, port, password)
    return clickhouse.start(home, port, USER, password)


def _start_one(home: Path, state: _State, service: Service, *, same_port: bool) -> Identity:
    """Start a service that is not running, on its last port if that is free."""
    for attempt in range(1, _ATTEMPTS + 1):
        port = state.ports.get(service)
        if port is None or not await_port(port, _PORT_SECONDS if same_port else 0):
            if same_port:
                raise StackError(f"Port {port} of {_TITLES[service]} is taken by another program.")
            port = free_port(tuple(state.ports.values()))
            state.ports[service] = port
        try:
            return _launch(home, service, port, state.passwords[service])
        except StackError:
            # Another program may have taken the port between our look and the server's bind.
            if attempt == _ATTEMPTS or port_is_free(port) or same_port:
                raise
    raise AssertionError("unreachable")


def daemons(home: Path) -> list[Identity]:
    """The living daemons of a home by their working directories, whether its state knows them or not."""
    home = home.resolve()
    found = [who for service in SERVICES for who in working_in(home / service, _PROGRAMS[service])]
    pids = {who.pid for who in found}
    # A server's own children end with it; who has no parent has ended since it was found.
    return [who for who in found if parent(who.pid) not in {None, *pids}]


def _strays(home: Path, state: _State) -> list[Identity]:
    """Daemons of this home that its state does not know, such as those of a start that was itself killed."""
    known = {who.pid for who in state.processes.values()}
    return [who for who in daemons(home) if who.pid not in known and parent(who.pid) not in known]


def start(home: Path, *, on_step: Callable[[str], None] | None = None) -> Addresses:
    """Make the stack run and return its addresses. Finds a running one; starts only what is not running.

    `on_step` is told in a few words what is being done. Raises `StackError`, after which what did start keeps running
    and a further start continues.
    """
    tell = on_step or (lambda _: None)
    home = home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    (home / "logs").mkdir(exist_ok=True)
    with _locked(home):
        state = _load(home)
        for service in SERVICES:
            state.passwords.setdefault(service, secrets.token_hex(16))
        missing = [service for service in SERVICES if not alive(state.processes.get(service))]
        if missing:
            for service in missing:
                state.processes.pop(service, None)
            for stray in _strays(home, state):
                end(stray, _STRAY_SIGNALS)
            for service in missing:
                if service not in state.ports or not port_is_free(state.ports[service]):
                    state.ports[service] = free_port(tuple(state.ports.values()))
            # Passwords are on disk before a server that wants them exists.
            _save(home, state)
            for service in missing:
                tell(f"Starting {_TITLES[service]}")
            with ThreadPoolExecutor(len(missing)) as pool:
                starting = {
                    service: pool.submit(_start_one, home, state, service, same_port=False) for service in missing
                }
            problems = []
            for service, outcome in starting.items():
                problem = outcome.exception()
                if problem is None:
                    state.processes[service] = outcome.result()
                else:
                    problems.append(problem)
            _save(home, state)
            if problems:
                raise problems[0]
        found = _addresses(state)
        told = {
            "POSTGRES_DSN": found.postgres_dsn,
            "CLICKHOUSE_DSN": found.clickhouse_dsn,
            "REDIS_URL": found.redis_url,
        }
        if _read_json(home / "stack.json") != told:
            _write_json(home / "stack.json", told)
        tell("The stack is running")
        return found


def stop(home: Path) -> list[str]:
    """Stop what runs, cleanly; return the names of the services stopped. A home that is gone is no error."""
    home = home.resolve()
    if not home.is_dir():
        for stray in daemons(home):
            end(stray, _STRAY_SIGNALS)
        return []
    with _locked(home):
        state = _load(home)
        with contextlib.suppress(FileNotFoundError):
            (home / "stack.json").unlink()
        running = [service for service in SERVICES if alive(state.processes.get(service))]
        with ThreadPoolExecutor(len(SERVICES)) as pool:
            list(pool.map(lambda service: end(state.processes[service], _STOP_SIGNALS[service]), running))
        for stray in _strays(home, state):
            end(stray, _STRAY_SIGNALS)
        state.processes.clear()
        if state.passwords:
            _save(home, state)
        return list(running)


def addresses(home: Path) -> Addresses | None:
    """The addresses of the stack, or None unless all three services run."""
    home = home.resolve()
    told = _read_json(home / "stack.json")
    if not told or not all(one.running for one in status(home).values()):
        return None
    return Addresses(told["POSTGRES_DSN"], told["CLICKHOUSE_DSN"], told["REDIS_URL"])


def status(home: Path) -> dict[str, ServiceStatus]:
    """Each service: whether it runs, its process id and its port."""
    state = _load(home.resolve())
    found: dict[str, ServiceStatus] = {}
    for service in SERVICES:
        who = state.processes.get(service)
        running = who is not None and alive(who)
        found[service] = ServiceStatus(running, who.pid if who and running else None, state.ports.get(service))
    return found


def kill(home: Path, service: Service, number: int = signal.SIGKILL) -> None:
    """Send a signal to one service; after SIGKILL, return once it is gone. For tests of faults."""
    who = _load(home.resolve()).processes.get(service)
    if not signal_to(who, number):
        raise StackError(f"{_TITLES[service]} is not running.")
    if number == signal.SIGKILL:
        await_end(who, 10)


def restart(home: Path, service: Service) -> None:
    """Start one service again on the port it had, stopping it first if it runs. Raises `StackError`."""
    home = home.resolve()
    with _locked(home):
        state = _load(home)
        if service not in state.ports:
            raise StackError(f"{_TITLES[service]} was never started in {home}.")
        end(state.processes.pop(service, None), _STOP_SIGNALS[service])
        state.processes[service] = _start_one(home, state, service, same_port=True)
        _save(home, state)
