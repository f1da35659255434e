"""Workers, beat and Flower as processes of this machine: started, found again, stopped. One set per home.

`<home>/run/` remembers each with the moment it started, so that an id the system has given to another process is
never mistaken for ours. Whoever brought them up (`up` or `demo`) owns them while it lives: it holds a lock that dies
with it. The servers themselves are the embedded stack's business, or somebody else's.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedded import process
from embedded.process import Identity
from worker.config import Settings
from worker.errors import RetailMediaError

ROOT = Path(__file__).resolve().parent.parent
"""Where the Celery app and beat's schedule are found."""

BEAT, FRESH, BULK, FLOWER = "beat", "worker-fresh", "worker-bulk", "flower"
WORKERS = (FRESH, BULK)
STOP_ORDER = ((BEAT,), WORKERS, (FLOWER,))
"""No new work, then the end of what is under way, then the screen that shows it."""

TITLES = {BEAT: "beat", FRESH: "the worker for fresh data", BULK: "the worker for backfills", FLOWER: "Flower"}

WORKER_OPTIONS = ("--without-mingle", "--without-gossip", "--pool", "prefork", "--concurrency", "2")
COMMANDS: dict[str, tuple[str, ...]] = {
    BEAT: ("beat", "--pidfile="),
    FRESH: ("worker", "--hostname", "fresh@%h", "--queues", "realtime,maintenance", *WORKER_OPTIONS),
    BULK: ("worker", "--hostname", "bulk@%h", "--queues", "backfill", *WORKER_OPTIONS),
    FLOWER: ("flower", "--address=127.0.0.1", "--tasks_columns=name,kwargs,result,state,received,runtime,worker"),
}
STOP_SIGNALS = {
    # Warm: the tasks under way are finished. Then soft: they are given ten seconds and handed back.
    **dict.fromkeys(WORKERS, ((signal.SIGTERM, 30.0), (signal.SIGQUIT, 15.0), (signal.SIGKILL, 10.0))),
    **dict.fromkeys((BEAT, FLOWER), ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0))),
}
STRAY_SIGNALS = ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0))
OWNER_SIGNALS = ((signal.SIGTERM, 120.0), (signal.SIGKILL, 10.0))

READY_SECONDS = 60.0
MARK = "RETAILMEDIA_BROUGHT_UP_IN"
"""Set to the home in the environment of each process started here, by which strays are known."""

ROOT_WARNING = "ignore:You're running the worker with superuser privileges"

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Owner:
    """Who brought a home up: the command, its process, and which server settings came from its environment.

    A detached `up` has no living process, and its programs are all there is of it.
    """

    command: str
    who: Identity
    named: tuple[str, ...]
    detached: bool = False


@dataclass(frozen=True, slots=True)
class FlowerAddress:
    """Where Flower listens, and the login it asks for."""

    url: str
    user: str
    password: str


def folder(home: Path) -> Path:
    """Where processes of this home are remembered."""
    path = home / "run"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def log_of(home: Path, name: str) -> Path:
    """The log of one of them."""
    path = home / "logs"
    path.mkdir(parents=True, exist_ok=True)
    return path / f"{name}.log"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    building = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(building, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
    os.replace(building, path)


# Ownership


@contextlib.contextmanager
def owning(home: Path, command: str, named: tuple[str, ...], *, detached: bool = False) -> Iterator[Owner | None]:
    """Makes this process the owner of the home for the block and gives None, or the owner there is already."""
    path = folder(home)
    try:
        lock = open(path / ".lock", "w")  # noqa: SIM115 - closed below
    except PermissionError:
        raise RetailMediaError(f"{home} belongs to another user; choose another folder by RETAILMEDIA_HOME.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Between taking the lock and writing its name, an owner is nameless.
            yield owner(home) or Owner("starting command", Identity(0, ""), ())
            return
        standing = owner(home)
        if standing is not None:
            yield standing
            return
        me = process.identify(os.getpid()) or Identity(os.getpid(), "")
        content = {"command": command, "pid": me.pid, "started": me.started, "named": named, "detached": detached}
        _write(path / "owner.json", content)
        yield None


def owner(home: Path) -> Owner | None:
    """Who brought the home up and still answers for it, or None."""
    if not (home / "run").is_dir():
        return None
    told = _read(home / "run" / "owner.json")
    try:
        found = Owner(
            told["command"], Identity(int(told["pid"]), told["started"]), tuple(told["named"]), bool(told["detached"])
        )
    except (KeyError, TypeError, ValueError):
        return None
    if process.alive(found.who):
        return found
    standing = recorded(home)
    if found.detached and all(process.alive(standing.get(name)) for name in (BEAT, *WORKERS)):
        return found
    return None


def disown(home: Path) -> None:
    """Forgets who brought the home up; for the owner, once everything is stopped."""
    (home / "run" / "owner.json").unlink(missing_ok=True)


# Processes


def environment(home: Path, servers: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """What the processes of this home are given beyond our own environment. Secrets travel here, never as arguments."""
    quiet = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS", ""), ROOT_WARNING)))
    return {"RETAILMEDIA_HOME": str(home), MARK: str(home), "PYTHONWARNINGS": quiet, **servers, **more}


def launch(home: Path, name: str, env: Mapping[str, str], *arguments: str) -> Identity:
    """Starts one program. Raises `StackError` if it cannot be."""
    (home / "beat").mkdir(mode=0o700, exist_ok=True)
    command = [sys.executable, "-m", "celery", "--app", "worker", "--quiet", *COMMANDS[name], *arguments]
    who = process.spawn(command, log=log_of(home, name), cwd=ROOT, env=env)
    kept = _read(folder(home) / f"{name}.json")
    _write(folder(home) / f"{name}.json", {**kept, "pid": who.pid, "started": who.started})
    return who


def await_workers(home: Path, answering: Callable[[], dict[str, set[str]]]) -> None:
    """Waits until both workers answer. Raises `StackError` with the end of its log for one that does not."""
    for name in WORKERS:
        who = recorded(home).get(name) or Identity(0, "")
        queue = COMMANDS[name][COMMANDS[name].index("--queues") + 1].split(",")[0]

        def ready(queue: str = queue) -> bool:
            return any(queue in queues for queues in answering().values())

        process.await_ready(who, ready, TITLES[name].capitalize(), log_of(home, name), READY_SECONDS)


def launch_flower(home: Path, settings: Settings, env: Mapping[str, str]) -> FlowerAddress:
    """Starts Flower on the loopback interface behind a login, on the port wanted or, if that is taken, a free one."""
    password = settings.flower_password or secrets.token_urlsafe(12)
    wanted = settings.flower_port
    port = wanted if wanted and process.port_is_free(wanted) else process.free_port()
    login = {"FLOWER_BASIC_AUTH": f"{settings.flower_user}:{password}"}
    prefix = os.environ.get("FLOWER_URL_PREFIX", "").strip("/")
    url = f"http://127.0.0.1:{port}{f'/{prefix}' if prefix else ''}"
    found = FlowerAddress(url, settings.flower_user, password)
    path = folder(home) / f"{FLOWER}.json"
    _write(path, {"url": found.url, "user": found.user, "password": password, "port": port})
    who = launch(home, FLOWER, {**env, **login}, f"--port={port}")
    process.await_ready(who, lambda: _listens(port), TITLES[FLOWER], log_of(home, FLOWER), READY_SECONDS)
    return found


def relaunch(home: Path, name: str, env: Mapping[str, str]) -> Identity:
    """Starts one that ended by itself, as it was."""
    if name != FLOWER:
        return launch(home, name, env)
    told = _read(folder(home) / f"{FLOWER}.json")
    login = {"FLOWER_BASIC_AUTH": f"{told.get('user')}:{told.get('password')}"}
    return launch(home, FLOWER, {**env, **login}, f"--port={told.get('port')}")


def flower(home: Path) -> FlowerAddress | None:
    """Where Flower runs, or None."""
    told = _read(home / "run" / f"{FLOWER}.json")
    if not process.alive(recorded(home).get(FLOWER)):
        return None
    return FlowerAddress(str(told.get("url")), str(told.get("user")), str(told.get("password")))


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def recorded(home: Path) -> dict[str, Identity]:
    """Every program this home remembers, whether it lives or not."""
    found = {}
    for name in COMMANDS:
        told = _read(home / "run" / f"{name}.json")
        with contextlib.suppress(KeyError, TypeError, ValueError):
            found[name] = Identity(int(told["pid"]), str(told["started"]))
    return found


def strays(home: Path) -> list[Identity]:
    """Living processes that carry this home's mark, recorded or not. Linux only; elsewhere none are found."""
    wanted = f"{MARK}={home}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                who = process.identify(int(entry.name))
                if who is not None and who.pid != os.getpid():
                    found.append(who)
    return found


def stop(home: Path, tell: Tell) -> list[str]:
    """Stops the programs of this home in order; returns the names of those that ran."""
    known = recorded(home)
    stopped = []
    for names in STOP_ORDER:
        running = [name for name in names if process.alive(known.get(name))]
        if running:
            tell(f"Stopping {' and '.join(TITLES[name] for name in running)}")
        # All are told before any is waited for.
        for name in running:
            process.signal_to(known[name], STOP_SIGNALS[name][0][0])
        for name in running:
            if not process.await_end(known[name], STOP_SIGNALS[name][0][1]):
                process.end(known[name], STOP_SIGNALS[name][1:])
        stopped += running
    for stray in strays(home):
        process.end(stray, STRAY_SIGNALS)
    for name in COMMANDS:
        (home / "run" / f"{name}.json").unlink(missing_ok=True)
    return stopped


def end_owner(home: Path) -> str:
    """Ends the `up` or `demo` that owns the home, which stops what it started; returns its command, or nothing."""
    found = owner(home)
    if found is None or found.detached or found.who.pid == os.getpid():
        return ""
    process.end(found.who, OWNER_SIGNALS)
    return found.command
