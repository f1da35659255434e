"""Daemons: starting them detached, knowing them again, stopping them. Knows nothing of what they serve.

A process is known by its id together with the moment it started (and the boot it belongs to), so that an id the
system has given to another process is never mistaken for ours, still less killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_LAUNCHER: Final = Path(__file__).with_name("launch.py")
_POLL_SECONDS: Final = 0.02
_PORTS: Final = range(15_000, 32_000)
_HAS_PROC: Final = Path("/proc/self/stat").exists()


class StackError(Exception):
    """The embedded stack could not do what it was asked; the message says what happened and where to look."""


@dataclass(frozen=True)
class Identity:
    """A process: its id and when it started."""

    pid: int
    started: str


@dataclass(frozen=True)
class Drop:
    """The user a command runs as, and whether it must be let through folders closed to that user."""

    uid: int
    gid: int
    traverse: bool


def _stat(pid: int) -> list[str] | None:
    try:
        content = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The command's name, in parentheses, may hold anything.
    return content[content.rindex(")") + 2 :].split()


def _threads(pid: int) -> int:
    """Threads that are left. While there are others, a dead main thread's process still holds its files and ports."""
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/task"))
    return 0


def started(pid: int) -> str | None:
    """When a living process started, as an opaque string; None if there is none (a zombie is not living)."""
    if _HAS_PROC:
        fields = _stat(pid)
        if fields is None or (fields[0] in "ZX" and _threads(pid) < 2):
            return None
        boot = ""
        with contextlib.suppress(OSError):
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{fields[19]}"
    told = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, since = told.stdout.strip().partition(" ")
    return since.strip() if since and not state.startswith("Z") else None


def identify(pid: int) -> Identity | None:
    """The identity of a living process."""
    since = started(pid)
    return Identity(pid, since) if since else None


def alive(who: Identity | None) -> bool:
    """Whether this very process still lives."""
    return who is not None and started(who.pid) == who.started


def _order(command: Sequence[str], log: Path | None, drop: Drop | None, cwd: Path, umask: int) -> list[str]:
    order: dict[str, object] = {"command": list(command), "log": str(log) if log else None, "cwd": str(cwd)}
    order["umask"] = umask
    if drop is not None:
        order |= {"uid": drop.uid, "gid": drop.gid, "traverse": drop.traverse}
    return [sys.executable, "-I", "-S", str(_LAUNCHER), json.dumps(order)]


def run(command: Sequence[str], *, drop: Drop | None, cwd: Path, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as another user if told to; `given` is its standard input."""
    return subprocess.run(
        _order(command, None, drop, cwd, 0o077),
        input=given,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def spawn(
    command: Sequence[str],
    *,
    log: Path,
    cwd: Path,
    drop: Drop | None = None,
    env: Mapping[str, str] | None = None,
) -> Identity:
    """Start a daemon: detached, in a session of its own, its output appended to `log`. Raises `StackError`."""
    told = subprocess.run(
        _order(command, log, drop, cwd, 0o077),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(env or {})},
    )
    if not told.stdout.isdigit():
        raise StackError(f"{command[0]} could not be started: {told.stderr.strip().splitlines()[-1:]}")
    pid = int(told.stdout)
    who = identify(pid)
    # A command that failed at once has no start time any more; the caller sees that it is not alive.
    return who or Identity(pid, "gone")


def await_ready(who: Identity, ready: Callable[[], bool], what: str, log: Path, seconds: float) -> None:
    """Wait until a daemon serves. Raises `StackError` with the end of its log if it ends or takes too long."""
    deadline = time.monotonic() + seconds
    while not ready():
        if not alive(who):
            raise StackError(f"{what} ended while starting. {tail(log)}")
        if time.monotonic() > deadline:
            raise StackError(f"{what} did not get ready within {seconds:.0f} s. {tail(log)}")
        time.sleep(_POLL_SECONDS)


def tail(log: Path) -> str:
    """Where the log is and how it ends, for an error message."""
    try:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return f"Log: {log}" + "".join(f"\n  {line}" for line in lines[-5:])


def signal_to(who: Identity | None, number: int) -> bool:
    """Send a signal to this very process. Returns whether it was there."""
    if who is None or not alive(who):
        return False
    try:
        os.kill(who.pid, number)
    except ProcessLookupError:
        return False
    return True


def await_end(who: Identity | None, seconds: float) -> bool:
    """Wait until a process has ended."""
    deadline = time.monotonic() + seconds
    while alive(who):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def end(who: Identity | None, signals: Sequence[tuple[int, float]]) -> bool:
    """End a process: each signal in turn, waiting so many seconds after each. Returns whether it was there."""
    if who is None or not alive(who):
        return False
    for number, patience in signals:
        signal_to(who, number)
        if await_end(who, patience):
            return True
    return True


def parent(pid: int) -> int | None:
    """The id of a process's parent. Linux only; elsewhere None."""
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def working_in(folder: Path, program: str) -> list[Identity]:
    """Living processes of a program whose working directory is, or was until it was deleted, this folder.

    `program` is the name of an executable or of a Python module. Linux only; elsewhere none are found.
    """
    found = []
    wanted = {os.path.realpath(folder), f"{os.path.realpath(folder)} (deleted)"}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(entry / "cwd") in wanted and _runs(entry, program):
                who = identify(int(entry.name))
                if who is not None:
                    found.append(who)
    return found


def _runs(entry: Path, program: str) -> bool:
    if os.path.basename(os.readlink(entry / "exe").removesuffix(" (deleted)")) == program:
        return True
    words = (entry / "cmdline").read_bytes().split(b"\0")
    return words[1:3] == [b"-m", program.encode()]


def kill_all(processes: Sequence[Identity]) -> None:
    """Kill these processes and wait until they are gone."""
    for who in processes:
        with contextlib.suppress(PermissionError):
            signal_to(who, signal.SIGKILL)
    for who in processes:
        await_end(who, 10)


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError:
            return False
    return True


def await_port(port: int, seconds: float) -> bool:
    """Wait until a server could listen on this port."""
    deadline = time.monotonic() + seconds
    while not port_is_free(port):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def free_port(taken: Sequence[int] = ()) -> int:
    """A loopback port nobody listens on, of those the system does not give to outgoing connections.

    One of the others could be somebody's by the time its server is started again.
    """
    for port in random.SystemRandom().sample(_PORTS, 200):
        if port not in taken and port_is_free(port):
            return port
    raise StackError(f"None of 200 ports tried between {_PORTS.start} and {_PORTS.stop} is free.")
