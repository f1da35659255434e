"""`python -m tests.chaos`: plays faults or a mutant, and prints what it found.

    python -m tests.chaos --seed 7 --faults 1000
    python -m tests.chaos --mutant all

Exit code 0 if the promise held (with --mutant: if every mutant was caught), 1 if not, 2 for a wrong argument.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys

from tests.chaos import run as runs
from tests.chaos.faults import FAULTS
from tests.chaos.mutants import MUTANTS
from worker import logs
from worker.config import load


def main() -> int:
    """Does what the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=None, help="names the schedule; drawn and printed if not given")
    parser.add_argument("--faults", type=int, default=40, help="how many")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=sorted(FAULTS),
        metavar="FAULT",
        help="restrict the kinds; may be given more than once",
    )
    parser.add_argument(
        "--mutant", choices=[*MUTANTS, "all"], metavar="NAME", help=f"one of {', '.join(MUTANTS)}, or all"
    )
    parser.add_argument("--huge", type=int, default=100_000, metavar="ROWS", help="rows of the huge transaction")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--keep", action="store_true", help="leave the folder with data and logs")
    parser.add_argument("--list", action="store_true", help="print the schedule and do nothing")
    given = parser.parse_args()
    logs.configure(load(log_level="ERROR"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    seed = given.seed if given.seed is not None else random.randrange(10**6)
    if given.list:
        for step in runs.schedule(seed, given.faults, only=given.only):
            print(step.told())
        return 0
    if given.mutant:
        from tests.chaos import hunt

        caught = hunt.hunt(list(MUTANTS) if given.mutant == "all" else [given.mutant], seed=seed)
        print(json.dumps([one.figures() for one in caught], indent=2) if given.json else hunt.text(caught))
        return 0 if all(one.caught for one in caught) else 1
    report = runs.run(seed, given.faults, only=given.only, huge_rows=given.huge, keep=given.keep)
    print(json.dumps(report.figures(), indent=2) if given.json else report.text())
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
