"""Celery workers and beat as processes of their own, and what the system tells about them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from worker.celery import create_app
from worker.config import Settings

ROOT = Path(__file__).parents[1]
_PASSED_ON = (
    "postgres_dsn",
    "clickhouse_dsn",
    "redis_url",
    "retailmedia_home",
    "window_rows",
    "window_limit",
    "chunk_rows",
    "log_level",
    "horizon_margin_ms",
)


@dataclass(frozen=True, slots=True)
class Node:
    """A worker to start: its name, the queues it serves, and the number of its processes."""

    name: str
    queues: str
    processes: int


PRODUCT = (Node("fresh", "realtime,maintenance", 2), Node("bulk", "backfill", 2))
"""The workers of the product: fresh data and upkeep never wait behind a backfill."""


class Fault(Exception):
    """A process did not do what a benchmark needs of it."""


def await_that(condition: Callable[[], bool], what: str, seconds: float, every: float = 0.05) -> None:
    """Waits for a condition, asked `every` so many seconds. Raises `Fault` naming it."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Fault(f"not within {seconds:g} s: {what}")
        time.sleep(every)


def environment(settings: Settings) -> dict[str, str]:
    """The environment of a process that works by these settings."""
    told = {name.upper(): str(getattr(settings, name)) for name in _PASSED_ON}
    return {**os.environ, **told, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


def _start(settings: Settings, arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "worker", *arguments],
            cwd=ROOT,
            env=environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def end(process: subprocess.Popen[bytes], patience: float = 8) -> None:
    """Ends a process and whatever is left of its group."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def working(settings: Settings, nodes: Sequence[Node] = PRODUCT, *, beat: bool = False) -> Iterator[dict[str, int]]:
    """Workers that answer, and beat if wanted; ended on leaving. Yields the process ids of the nodes by name."""
    logs = settings.retailmedia_home / "logs"
    started: list[subprocess.Popen[bytes]] = []
    try:
        pids: dict[str, int] = {}
        for node in nodes:
            arguments = ["worker", "-n", f"{node.name}@localhost", "-Q", node.queues, "-c", str(node.processes)]
            process = _start(settings, [*arguments, "--without-gossip", "--without-mingle"], logs / f"{node.name}.log")
            started.append(process)
            pids[node.name] = process.pid
        app = create_app(settings)
        try:
            wanted = {f"{node.name}@localhost" for node in nodes}

            def answer() -> bool:
                found = app.control.ping(timeout=0.5) or []
                return wanted <= {name for each in found for name in each}

            await_that(answer, "the workers answer", 60)
        finally:
            app.close()
        if beat:
            (settings.retailmedia_home / "beat").mkdir(parents=True, exist_ok=True)
            started.append(_start(settings, ["beat"], logs / "beat.log"))
        yield pids
    finally:
        for process in reversed(started):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in reversed(started):
            end(process)


def children(pid: int) -> list[int]:
    """Process ids of the living children of a process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError, ValueError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found.append(int(path.parent.name))
    return sorted(found)


def peak_memory(pid: int) -> int:
    """The most memory a process has held resident so far, in bytes. Raises `Fault` where the system does not tell."""
    with suppress(OSError):
        told = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        if told:
            return int(told[1]) * 1024
    raise Fault(f"the peak memory of process {pid} is not known")
