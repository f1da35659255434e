"""Nothing goes wrong for a while: what a running product holds on to must not grow.

Writers and `seed stream` write, beat ticks, two workers load and rebuild. Every two seconds the memory and open files of
each process, the keys of Redis, the connections of PostgreSQL and the parts of ClickHouse are read; the first third of
the time is warming up, and what is held in the last third is compared with the second.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests import processes
from tests.chaos import checker
from tests.chaos.faults import PATIENCE
from tests.chaos.run import aloud
from tests.chaos.stage import Stage, Violation, open_stage
from tests.chaos.writers import Writers

EVERY_SECONDS = 2.0

TICK_SECONDS = 2.0
"""Quicker than under faults: what each tick leaves behind is what is looked for."""

STREAM_RATE = 20.0
"""Impressions a second of `seed stream`, with the clicks on them."""

ALLOWED = {
    "memory": (0.02, 3.0),
    "open files": (0.0, 4.0),
    "redis keys": (0.0, 6.0),
    "postgres": (0.0, 3.0),
    "clickhouse parts": (0.1, 20.0),
}
"""By what a name begins with: by which part of itself, and by how much besides, a quantity may differ and be flat."""


@dataclass(frozen=True, slots=True)
class Held:
    """One quantity: its median in the second and in the last third, in its unit, and by how much it may have grown."""

    name: str
    before: float
    after: float
    allowed: float

    @property
    def flat(self) -> bool:
        """Whether it did not grow."""
        return self.after <= self.before + self.allowed


@dataclass(frozen=True, slots=True)
class Soaked:
    """What a soak found."""

    seconds: float
    rows: int
    held: tuple[Held, ...]
    violations: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Whether everything was flat and the totals agreed at the end."""
        return not self.violations and all(one.flat for one in self.held)

    def figures(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {**asdict(self), "good": self.good}

    def text(self) -> str:
        """For people."""
        width = max((len(one.name) for one in self.held), default=0)
        lines = [f"{self.seconds:.0f} s, {self.rows} rows compared: {'flat' if self.good else 'NOT FLAT'}"]
        for one in self.held:
            says = "" if one.flat else f"   GREW by more than {one.allowed:.1f}"
            lines.append(f"  {one.name:<{width}}  {one.before:8.1f} → {one.after:8.1f}{says}")
        return "\n".join([*lines, *(f"VIOLATION {told}" for told in self.violations)])


def judged(samples: Sequence[Mapping[str, float]]) -> tuple[Held, ...]:
    """Compares the last third of the samples with the second, by name; names that are not in both are left out.

    Raises `ValueError` for fewer than nine samples: a third of them says nothing.
    """
    if len(samples) < 9:
        raise ValueError(f"{len(samples)} samples are too few to compare thirds")
    third = len(samples) // 3
    second, last = samples[third : 2 * third], samples[2 * third :]
    found = []
    for name in sorted({name for sample in last for name in sample}):
        before, after = ([sample[name] for sample in part if name in sample] for part in (second, last))
        if len(before) < third // 2 or len(after) < third // 2:
            continue
        part, besides = next(limits for begins, limits in ALLOWED.items() if name.startswith(begins))
        found.append(Held(name, median(before), median(after), part * median(before) + besides))
    return tuple(found)


def soak(seconds: float, *, seed: int, tell: Callable[[str], None] = aloud) -> Soaked:
    """Runs the product for that long under writers and returns what it held on to."""
    samples: list[dict[str, float]] = []
    violations: list[str] = []
    rows = 0
    with open_stage(tick_seconds=TICK_SECONDS) as stage:
        writers = Writers(stage, random.Random(seed).getrandbits(32))
        writers.start()
        try:
            with _stream(stage, seconds):
                began = time.monotonic()
                while (now := time.monotonic() - began) < seconds:
                    samples.append(sample(stage))
                    if len(samples) % 30 == 1:
                        tell(f"{now:.0f} s: " + ", ".join(f"{name} {value:.0f}" for name, value in samples[-1].items()))
                    # A measurement at a steady pace, not a wait for something to happen.
                    time.sleep(max(0.0, len(samples) * EVERY_SECONDS - (time.monotonic() - began)))
            writers.pause()
            findings, _ = checker.check(stage, seconds=PATIENCE)
            rows = findings.rows
            if not findings.good:
                violations.append(findings.told())
            died = {one.name: one.starts - 1 for one in stage.processes.values() if one.starts > 1}
            if died:
                violations.append(f"processes ended by themselves: {died}")
        except Violation as violation:
            violations.append(str(violation))
        finally:
            writers.close()
    return Soaked(seconds, rows, judged(samples), tuple(violations))


@contextmanager
def _stream(stage: Stage, seconds: float) -> Iterator[None]:
    """`retailmedia seed stream` on the stage's source for the length of the block. Raises `Violation` if it ended before."""
    log = stage.home / "logs" / "stream.log"
    # For longer than it may need, and then it is interrupted: that is no error of its.
    options = ["--rate", f"{STREAM_RATE:g}", "--duration", f"{2 * seconds + 600:.0f}"]
    command = [sys.executable, "-m", "worker.cli", "seed", "stream", *options]
    with log.open("wb") as told:
        process = subprocess.Popen(
            command,
            cwd=processes.ROOT,
            env=processes.environment(stage.settings),
            stdout=told,
            stderr=told,
            start_new_session=True,
        )
        try:
            yield
            if process.poll() is not None:
                raise Violation(f"seed stream ended with {process.returncode}: {log.read_text()[-300:]}")
        finally:
            processes.end(process, signal.SIGINT)


def sample(stage: Stage) -> dict[str, float]:
    """What is held now: memory in MiB, else numbers."""
    found: dict[str, float] = {}
    for name, process in stage.processes.items():
        if process.popen is None:
            continue
        pids = [(name, process.popen.pid)]
        pids += [(f"{name} child {number}", pid) for number, pid in enumerate(sorted(stage.children(name)), 1)]
        for what, pid in pids:
            with suppress(OSError):
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                found[f"memory of {what}"] = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
                found[f"open files of {what}"] = float(len(list(Path(f"/proc/{pid}/fd").iterdir())))
    with stage.redis() as client:
        # Results expire by themselves after an hour: as many as are made in one.
        found["redis keys that stay"] = float(sum(client.ttl(key) < 0 for key in client.scan_iter(count=1000)))
    found["postgres connections"] = float(
        stage.write(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' "
            "AND application_name NOT LIKE 'chaos%%'"
        )[0][0]
    )
    with stage.servers() as servers:
        found["clickhouse parts"] = float(
            servers.sink.query(
                "counting parts", "SELECT count() FROM system.parts WHERE active AND database = currentDatabase()"
            )[0][0]
        )
    return found
