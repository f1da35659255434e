"""Several stages at once: most of a fault's time is waiting, so the processors have room for more than one.

Each stage is a process of its own, `python -m tests.chaos … --raw`, which prints its report for this one to read.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from tests.chaos.run import Report, aloud
from tests.processes import ROOT

ENDING_SECONDS = 60.0
"""How long a stage may take to end its servers when told to."""


class LaneFailed(RuntimeError):
    """The harness itself failed in one of its processes."""


class _Lanes:
    """Commands waiting for a lane, and the reports of those that ended, in the order of the commands."""

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        names: Sequence[object],
        enough: Callable[[Report], bool],
        tell: Callable[[str], None],
    ):
        self._waiting = deque(enumerate(commands))
        self._names = names
        self._enough, self._tell = enough, tell
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self.reports: dict[int, Report] = {}
        self.failures: list[str] = []

    def work(self) -> None:
        """Plays one command after another until none is left or one of them was enough."""
        while True:
            with self._lock:
                if not self._waiting:
                    return
                position, command = self._waiting.popleft()
                process = subprocess.Popen(
                    [sys.executable, "-m", "tests.chaos", *command, "--raw"],
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                self._running.add(process)
            said: deque[str] = deque(maxlen=20)
            assert process.stdout is not None
            assert process.stderr is not None
            for line in process.stderr:
                said.append(line.rstrip())
                self._tell(f"[{self._names[position]}] {line.rstrip()}")
            printed = process.stdout.read()
            code = process.wait()
            with self._lock:
                self._running.discard(process)
                try:
                    self.reports[position] = Report.from_json(printed)
                except ValueError:
                    self.failures.append(f"{' '.join(command)} ended with exit code {code}:\n" + "\n".join(said))
                    self._waiting.clear()
                else:
                    for violation in self.reports[position].violations:
                        self._tell(f"[{self._names[position]}] VIOLATION {violation}")
                    if self._enough(self.reports[position]):
                        self._waiting.clear()

    def end(self) -> None:
        """Ends what is still running, with its servers."""
        with self._lock:
            self._waiting.clear()
            left = list(self._running)
        for process in left:
            process.send_signal(signal.SIGTERM)
        for process in left:
            with suppress(subprocess.TimeoutExpired):
                process.wait(ENDING_SECONDS)


@contextmanager
def _ended(lanes: _Lanes) -> Iterator[None]:
    try:
        yield
    finally:
        lanes.end()


def play(
    commands: Sequence[Sequence[str]],
    lanes: int,
    *,
    names: Sequence[object] = (),
    enough: Callable[[Report], bool] = lambda report: not report.good,
    tell: Callable[[str], None] = aloud,
) -> list[Report]:
    """Runs `python -m tests.chaos` with each of these arguments, `lanes` at a time; returns the reports there are.

    What they say is told under these `names`, or their numbers. After a report that is `enough` no further one is begun.
    Raises `LaneFailed` if one of them printed no report.
    """
    work = _Lanes(commands, names or range(1, len(commands) + 1), enough, tell)
    threads = [threading.Thread(target=work.work, daemon=True) for _ in range(min(lanes, len(commands)))]
    with _ended(work):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if work.failures:
        raise LaneFailed("\n".join(work.failures))
    return [work.reports[position] for position in sorted(work.reports)]
