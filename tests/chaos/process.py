"""`python -m tests.chaos.process …`: `celery …`, with the steps, the mutant and the clock that the environment names.

CHAOS_FOLDER is where traps are laid, CHAOS_MUTANT the mutant to be (none if empty), CHAOS_CLOCK the seconds by which
this process's clock is wrong, CHAOS_TICK those from tick to tick. What is patched before the pool forks holds in its
children.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Becomes `celery` with the arguments given."""
    offset = float(os.environ.get("CHAOS_CLOCK") or 0)
    if offset:
        from tests.chaos.clock import shift

        shift(offset)
    from tests.chaos import mutants, points

    mutants.apply(os.environ.get("CHAOS_MUTANT", ""))
    points.install()
    _sweep_soon()
    _tick_slower(float(os.environ["CHAOS_TICK"]))

    from celery.__main__ import main as celery

    sys.argv = ["celery", *sys.argv[1:]]
    sys.exit(celery())


def _sweep_soon() -> None:
    """A table is abandoned after three times the longest a task may run; here tasks may run for less."""
    from worker.config import load
    from worker.tasks import maintenance

    maintenance.ABANDONED_SECONDS = 3 * load().task_time_limit_seconds


def _tick_slower(seconds: float) -> None:
    """Fewer ticks than in production, so that stages share two processors and each fault meets idle ones.

    With a tick a second they were busy with ticks alone, and every fault waited for the work of those before it.
    """
    from beat_schedule import PROFILES

    for entry in PROFILES["realtime"].values():
        if entry["schedule"] == 1.0:
            entry["schedule"] = seconds
        elif entry["task"].startswith(("worker.tasks.quality.", "worker.tasks.alerts.")) and entry["schedule"] in (
            15.0,
            20.0,
        ):
            entry["schedule"] = 300.0


if __name__ == "__main__":
    main()
