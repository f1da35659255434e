"""`retailmedia demo` from nothing, again, and after everything was killed in the middle."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_cli import home_environment, in_home, processes_of
from tests.processes import ROOT, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One home for the demos of this module, in a path with a space in it."""
    folder = tmp_path_factory.mktemp("a demo") / "home"
    yield folder
    in_home(folder, "down")


def demo(home: Path, **extra: str) -> str:
    """Runs it, expects it to be right and to leave nothing behind, and returns what it printed."""
    done = in_home(home, "demo", **extra)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert processes_of(home) == []
    assert "\x1b" not in done.stdout + done.stderr
    totals = re.findall(
        r"^(advertisers|campaigns|impressions|clicks|spend) +([\d,.]+) +([\d,.]+) +equal *$", done.stdout, re.M
    )
    assert [name for name, _, _ in totals] == ["advertisers", "campaigns", "impressions", "clicks", "spend"]
    assert all(ours == theirs for _, ours, theirs in totals)
    assert "priced by cpc (clicks × bid)" in done.stdout
    assert re.search(r"^all \d+ campaigns +[\d,]+ +[\d,]+ +[\d,.]+ +[\d.]+% +[\d,.]+ +[\d,.]+ *$", done.stdout, re.M)
    assert "What to try next" in done.stdout
    return done.stdout + done.stderr


def test_twice_and_after_a_kill_of_everything(home: Path) -> None:
    first = demo(home)
    assert re.search(r"PostgreSQL filled: (19\d|20\d),\d{3} impressions", first)
    # Servers named in the environment are somebody's; the demo writes to its own.
    second = demo(home, POSTGRES_DSN="postgresql://somebody@127.0.0.1:9/theirs")
    assert "POSTGRES_DSN is left alone" in second
    assert "already held" in second

    told = home.parent / "dying.txt"
    with told.open("wb") as screen:
        dying = subprocess.Popen(
            [sys.executable, "-m", "worker.cli", "demo"],
            cwd=ROOT,
            env=home_environment(home),
            stdout=screen,
            stderr=screen,
        )
    until(lambda: "workers and beat are up" in told.read_text(), "the workers are up", 120)
    dying.kill()
    dying.wait()
    for pid in [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if runs_in(entry, home)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    until(lambda: processes_of(home) == [], "everything is dead", 20)
    assert "already held" in demo(home)


def runs_in(entry: Path, home: Path) -> bool:
    """Whether a process belongs to this home."""
    try:
        told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        return str(home).encode() in told or os.readlink(entry / "cwd").startswith(str(home))
    except OSError:
        return False
