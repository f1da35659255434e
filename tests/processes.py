"""Celery's own processes, for tests that need the real thing."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.nursery import Child, Nursery
from worker.config import Settings

ROOT = Path(__file__).parents[1]


def environment(settings: Settings, **extra: str) -> dict[str, str]:
    """The environment of a process that works on these servers."""
    return {
        **os.environ,
        "POSTGRES_DSN": settings.postgres_dsn,
        "CLICKHOUSE_DSN": settings.clickhouse_dsn,
        "REDIS_URL": settings.redis_url,
        "RETAILMEDIA_HOME": str(settings.retailmedia_home),
        "HORIZON_MARGIN_MS": str(settings.horizon_margin_ms),
        "LEASE_SECONDS": str(settings.lease_seconds),
        "WINDOW_ROWS": str(settings.window_rows),
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        **extra,
    }


@functools.cache
def nursery() -> Nursery:
    """This process's own; it ends with it."""
    return Nursery(ROOT)


def celery(
    settings: Settings,
    arguments: Sequence[str],
    log: Path,
    extra: Mapping[str, str] | None = None,
    module: str = "celery",
) -> Child:
    """`celery -A worker …` in a process group of its own, its output in `log`; `module` stands in for celery's own."""
    log.parent.mkdir(parents=True, exist_ok=True)
    return nursery().start(module, ["-A", "worker", *arguments], environment(settings, **(extra or {})), log)


def end(process: Child | subprocess.Popen[bytes], number: int = signal.SIGTERM, patience: float = 30) -> int:
    """Sends a signal to the process and waits; kills its whole group if it does not end."""
    if process.poll() is None:
        process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Waits for a condition, looking often; fails naming it."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)


def ready(settings: Settings, node: str) -> bool:
    """Whether the worker of that name answers."""
    from worker.celery import create_app

    app = create_app(settings)
    try:
        return bool(app.control.ping(destination=[node], timeout=1.0))
    finally:
        app.close()


@contextmanager
def workers(settings: Settings, *, beat: bool = False, logs: Path | None = None) -> Iterator[dict[str, Child]]:
    """One worker for fresh data and upkeep, one for backfills, beat if wanted."""
    folder = logs or settings.retailmedia_home / "logs"
    started = {
        name: celery(settings, ["worker", "-n", f"{name}@localhost", "-Q", queues, "-c", "2"], folder / f"{name}.log")
        for name, queues in (("fresh", "realtime,maintenance"), ("bulk", "backfill"))
    }
    try:
        for name in started:
            until(lambda name=name: ready(settings, f"{name}@localhost"), f"worker {name} answers")  # type: ignore[misc]
        if beat:
            (settings.retailmedia_home / "beat").mkdir(parents=True, exist_ok=True)
            started["beat"] = celery(settings, ["beat"], folder / "beat.log")
        yield started
    finally:
        for process in reversed(list(started.values())):
            end(process)
