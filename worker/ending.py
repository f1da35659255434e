"""A worker that was told to end is gone in time: Celery itself waits for its pool without a limit.

Docker and systemd kill what does not end; whoever sends a signal or `celery control shutdown` has nobody to do that, and
a worker that hangs half closed takes no task, holds what it had, and is never started again.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import structlog
from billiard.common import REMAP_SIGTERM
from celery import bootsteps

log = structlog.get_logger()

STOP_SLACK = "retailmedia_stop_slack_seconds"
"""Celery's name for what a worker gets to end beyond the time its tasks have."""

EX_STUCK = 70
"""Exit code of a worker that had to end itself: sysexits.h calls it an internal software error."""


class Deadline(bootsteps.StartStopStep):
    """Ends the process, and the children of its pool, that long after it was told to stop.

    A warm shutdown lets tasks run on to their hard limit; a soft or a cold one gives them the soft shutdown's time. The
    messages of tasks that were cut off come back as those of any killed worker do.
    """

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        conf = worker.app.conf
        self._slack = float(conf[STOP_SLACK])
        self._warm, self._cold = float(conf.task_time_limit), float(conf.worker_soft_shutdown_timeout)
        self._process = os.getpid()
        self._told = 0.0
        self._until = float("inf")
        self._thread: threading.Thread | None = None

    def start(self, worker: Any) -> None:
        """Hears of signals before Celery does: its answer to SIGQUIT is where it can hang."""
        cold = {signal.SIGQUIT}
        if REMAP_SIGTERM == "SIGQUIT":
            cold.add(signal.SIGTERM)
        for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT):
            answer = signal.getsignal(number)
            if callable(answer):
                self._hear(worker, number, answer, self._cold if number in cold else self._warm)

    def close(self, worker: Any) -> None:
        """Whatever else ends a worker, such as `celery control shutdown`, comes by here first."""
        if self._thread is None:
            self._begin(worker, self._warm)

    def _hear(self, worker: Any, number: int, answer: Callable[..., Any], seconds: float) -> None:
        def heard(received: int, frame: FrameType | None) -> None:
            self._begin(worker, seconds)
            answer(received, frame)
            following = signal.getsignal(number)
            if number == signal.SIGINT and callable(following) and following is not heard:
                # To Ctrl-C Celery answers with a handler for the next one, which is a cold shutdown.
                self._hear(worker, number, following, self._cold)

        signal.signal(number, heard)

    def _begin(self, worker: Any, seconds: float) -> None:
        # A child that replaces another is forked with these handlers; its end is the pool's affair.
        if os.getpid() != self._process:
            return
        # A second signal can only bring the end nearer.
        now = time.monotonic()
        self._until = min(self._until, now + seconds + self._slack)
        if self._thread is None:
            self._told = now
            self._thread = threading.Thread(target=self._watch, args=(worker,), name="deadline", daemon=True)
            self._thread.start()

    def _watch(self, worker: Any) -> None:
        while (left := self._until - time.monotonic()) > 0:
            time.sleep(min(left, 0.5))
        children = [child.pid for child in getattr(getattr(worker.pool, "_pool", None), "_pool", None) or ()]
        log.error("worker.ended_itself", waited_seconds=round(time.monotonic() - self._told, 1), children=len(children))
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        sys.stderr.flush()
        # Not sys.exit: the main thread is what hangs.
        os._exit(EX_STUCK)
