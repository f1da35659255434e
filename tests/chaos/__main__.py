"""`python -m tests.chaos`: plays faults or a mutant, and prints what it found.

    python -m tests.chaos --seed 7 --faults 1000
    python -m tests.chaos --mutant all
    python -m tests.chaos --soak 300
    python -m tests.chaos --outage 300

Exit code 0 if the promise held (with --mutant: if every mutant was caught; with --soak: if nothing grew; with --outage:
if every process came back to its server), 1 if not, 2 for a wrong argument.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
from types import FrameType

from embedded.stack import SERVICES
from tests.chaos import hunt, lanes, outage, soak
from tests.chaos import run as runs
from tests.chaos.faults import FAULTS
from tests.chaos.mutants import MUTANTS
from worker import logs
from worker.config import load

LANES = 3

SOAK_SECONDS = 30.0
"""The least a soak takes: a third of it is warming up."""


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
        "--mutant",
        choices=[*MUTANTS, "all", hunt.CONTROL],
        metavar="NAME",
        help=f"one of {', '.join(MUTANTS)}, or all",
    )
    parser.add_argument("--chapter", type=int, default=0, metavar="N", help="play only that chapter of the run")
    parser.add_argument("--lanes", type=int, default=LANES, metavar="N", help=f"stages at once, {LANES} if not given")
    parser.add_argument(
        "--soak", type=float, default=0.0, metavar="SECONDS", help="break nothing for that long, and see what grows"
    )
    parser.add_argument(
        "--outage", type=float, default=0.0, metavar="SECONDS", help="take each server away for that long"
    )
    parser.add_argument("--server", choices=SERVICES, default=SERVICES[0], help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument(
        "--raw", action="store_true", help="play here, and print the report for another process to read"
    )
    parser.add_argument("--keep", action="store_true", help="leave the folder with data and logs")
    parser.add_argument("--list", action="store_true", help="print the schedule and do nothing")
    given = parser.parse_args()
    logs.configure(load(log_level="ERROR"))
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, _end)

    seed = given.seed if given.seed is not None else random.randrange(10**6)
    if given.list:
        for number, chapter in enumerate(runs.cut(runs.schedule(seed, given.faults, only=given.only), given.faults), 1):
            for step in chapter:
                print(f"[{number}] {step.told()}")
        return 0
    if given.soak:
        if given.soak < SOAK_SECONDS:
            parser.error(f"--soak {given.soak:g}: too short to say what grows; give {SOAK_SECONDS:g} seconds or more")
        soaked = soak.soak(given.soak, seed=seed)
        print(json.dumps(soaked.figures(), indent=2) if given.json else soaked.text())
        return 0 if soaked.good else 1
    if given.outage < 0:
        parser.error(f"--outage {given.outage:g}: give the seconds each server is to be away")
    if given.outage and not given.raw:
        reports = outage.outages(given.outage, seed=seed, lanes=given.lanes)
        found = outage.figures(given.outage, reports)
        print(json.dumps(found, indent=2) if given.json else outage.text(given.outage, reports))
        return 0 if all(one.good for one in reports) else 1
    if given.mutant and not given.raw:
        hunted = hunt.hunt(list(MUTANTS) if given.mutant == "all" else [given.mutant], seed=seed, lanes=given.lanes)
        print(json.dumps([one.figures() for one in hunted], indent=2) if given.json else hunt.text(hunted))
        return 0 if hunt.good(hunted) else 1
    if given.raw:
        if given.outage:
            report = outage.outage(given.server, given.outage, seed=seed)
        elif given.mutant:
            report = hunt.chase("" if given.mutant == hunt.CONTROL else given.mutant, seed)
        else:
            report = runs.run(seed, given.faults, chapter=given.chapter, only=given.only, keep=given.keep)
        print(report.to_json())
    else:
        report = spread(seed, given)
        print(json.dumps(report.figures(), indent=2) if given.json else report.text())
    return 0 if report.good else 1


def spread(seed: int, given: argparse.Namespace) -> runs.Report:
    """Plays the chapters in lanes, and adds their reports up."""
    report = runs.Report(seed, given.faults, given.chapter, given.only)
    began = time.monotonic()
    cut = runs.cut(runs.schedule(seed, given.faults, only=given.only), given.faults)
    base = ["--seed", str(seed), "--faults", str(given.faults)]
    base += [word for name in given.only for word in ("--only", name)]
    base += ["--keep"] if given.keep else []
    chapters = [given.chapter] if given.chapter else runs.longest_first(cut)
    commands = [[*base, "--chapter", str(number)] for number in chapters]
    for played in lanes.play(commands, given.lanes, names=chapters):
        report.add(played)
        if not played.good:
            report.chapter = played.chapter
    report.seconds = time.monotonic() - began
    return report


def _end(number: int, _frame: FrameType | None) -> None:
    # Once is enough: a second Ctrl-C must not break off the ending of what was started.
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
