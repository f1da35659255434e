"""Processes that are forked from one that has imported what they need, because importing it takes them seconds each.

A nursery imports libraries only, nothing of the product: a child begins as `python -m module` would, with its own
environment, and the product reads that environment as it is imported. `python -m tests.nursery FD` is the nursery.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

LIBRARIES = (
    "celery.bin.celery", "celery.bin.worker", "celery.bin.beat", "celery.apps.worker", "celery.apps.beat",
    "celery.concurrency.prefork", "celery.worker.consumer", "celery.backends.redis", "celery.app.amqp",
    "kombu.transport.redis", "clickhouse_driver.client", "numpy", "prometheus_client", "psycopg2.extensions",
    "psycopg2.sql", "pydantic_settings", "redis.sentinel", "structlog", "tenacity",
)  # fmt: skip
"""What a worker, beat and the product import."""

LARGEST = 1 << 20
"""Bytes of one message."""


class Child:
    """A process of a nursery, with as much of `subprocess.Popen` as tests need."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery = nursery
        self.pid = pid

    @property
    def returncode(self) -> int | None:
        """How it ended, as `Popen` has it; None while it runs."""
        return self._nursery.code(self.pid)

    def poll(self) -> int | None:
        """The same."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end. Raises `subprocess.TimeoutExpired`."""
        found = self._nursery.code(self.pid, wait=timeout if timeout is not None else threading.TIMEOUT_MAX)
        if found is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return found

    def send_signal(self, number: int) -> None:
        """Sends a signal; to a process that ended, none."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Nursery:
    """Starts processes. Thread-safe; ends with the process that made it."""

    def __init__(self, folder: Path) -> None:
        self._lock = threading.Lock()
        self._told = threading.Condition()
        self._codes: dict[int, int] = {}
        self._born: list[int] = []
        self._lost = False
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.nursery", str(theirs.fileno())],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(folder), "PYTHONWARNINGS": "ignore"},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        threading.Thread(target=self._listen, name="nursery", daemon=True).start()

    def start(self, module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Child:
        """`python -m module arguments…` in a session of its own, with just this environment, its output in `log`."""
        asked = {
            "module": module,
            "arguments": list(arguments),
            "environment": dict(environment),
            "log": str(log.absolute()),
        }
        with self._lock:
            self._channel.send(json.dumps(asked).encode())
            with self._told:
                self._told.wait_for(lambda: self._born or self._lost)
                if not self._born:
                    raise RuntimeError("The nursery has ended.")
                return Child(self, self._born.pop())

    def code(self, pid: int, wait: float = 0) -> int | None:
        """How a child ended; None if it has not after so many seconds."""
        with self._told:
            self._told.wait_for(lambda: pid in self._codes or self._lost, wait)
            return self._codes.get(pid, -signal.SIGKILL if self._lost else None)

    def _listen(self) -> None:
        while True:
            try:
                message = self._channel.recv(LARGEST)
            except OSError:
                message = b""
            with self._told:
                if not message:
                    self._lost = True
                    self._told.notify_all()
                    return
                told = json.loads(message)
                if "born" in told:
                    # The system gives a number again.
                    self._codes.pop(told["born"], None)
                    self._born.append(told["born"])
                else:
                    self._codes[told["ended"]] = told["code"]
                self._told.notify_all()


def main() -> None:
    """Serves one `Nursery`, or, in a child, becomes what was asked for."""
    asked = _serve(socket.socket(fileno=int(sys.argv[1])))
    if asked is not None:
        _become(asked)


def _serve(channel: socket.socket) -> dict[str, Any] | None:
    """Forks as asked until the other side is gone; in a child, returns what it is to become."""
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    while True:
        readable, _, _ = select.select([channel.fileno(), woken], [], [])
        if woken in readable:
            os.read(woken, 4096)
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                channel.send(json.dumps({"ended": pid, "code": os.waitstatus_to_exitcode(status)}).encode())
        if channel.fileno() not in readable:
            continue
        message = channel.recv(LARGEST)
        if not message:
            return None
        if os.fork():
            continue
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        # By the child itself: whoever is told of it may at once send signals to its group.
        channel.send(json.dumps({"born": os.getpid()}).encode())
        channel.close()
        os.close(woken)
        os.close(wake)
        asked: dict[str, Any] = json.loads(message)
        return asked


def _become(asked: Mapping[str, Any]) -> None:
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(log, standard)
    os.close(log)
    os.environ.clear()
    os.environ.update(asked["environment"])
    time.tzset()
    # Two children of one mother must not draw the same waits.
    random.seed()
    sys.argv = [asked["module"], *asked["arguments"]]
    runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
