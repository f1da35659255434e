"""`python -m bench`: measures, prints a table, writes `results.json`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench import report
from bench.measures import Findings, Line
from bench.stage import Options, Stage, staged

RESULTS = Path(__file__).with_name("results.json")
PATIENCE_SECONDS = 440.0
"""No case is begun later than this after the first, so that everything ends within ten minutes."""

CASES = ("path", "wide", "rebuild", "analytics", "reconcile", "idle", "ledger", "freshness", "memory", "scaling")


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The command line, taken apart."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure speed, on servers of its own.")
    parser.add_argument("--case", action="append", choices=CASES, help="only this one; may be given more than once")
    parser.add_argument("--rows", type=int, help="rows of the data path (default 2,000,000)")
    parser.add_argument("--rounds", type=int, help="rounds of the data path that count (default 5)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows: whether it works, not how fast")
    parser.add_argument("--full", action="store_true", help="10 million rows where it matters, 2 minutes of freshness")
    parser.add_argument("--json", action="store_true", help="print what results.json holds instead of tables")
    return parser.parse_args(arguments)


def options_of(told: argparse.Namespace) -> Options:
    """How much to measure. Ends the program with code 2 where that makes no sense."""
    rows = told.rows if told.rows is not None else 200_000 if told.quick else 2_000_000
    rounds = told.rounds if told.rounds is not None else 3 if told.quick else 5
    if rows < 1000 or rounds < 1 or (told.quick and told.full):
        print("Error: at least 1000 rows and one round, and not both --quick and --full.", file=sys.stderr)
        raise SystemExit(2)
    return Options(rows, rounds, told.quick, told.full)


def measure(stage: Stage, options: Options, chosen: list[str], tell: Callable[[str], None]) -> Findings:
    """The chosen cases one after the other. What goes wrong in one is a line of it; the others are still measured."""
    from bench import analytics, datapath, freshness, idle, ledger, memory, rebuild, reconcile, scaling, wide

    result = Findings()
    if {"path", "idle", "memory"} & set(chosen):
        tell(f"writing {options.rows:,} rows into PostgreSQL")
        narrow = datapath.narrow_source(stage, "narrow", options.rows)
    else:
        narrow = ""
    cases: dict[str, Callable[[], Findings]] = {
        "path": lambda: datapath.measure(stage, options, narrow),
        "wide": lambda: wide.measure(stage, options),
        "rebuild": lambda: rebuild.measure(stage, options),
        "analytics": lambda: analytics.measure(stage, options),
        "idle": lambda: idle.measure(stage, options, narrow),
        "ledger": lambda: ledger.measure(stage, options),
        "freshness": lambda: freshness.measure(stage, options),
        "memory": lambda: memory.measure(stage, options, narrow),
        "scaling": lambda: scaling.measure(stage, options),
        "reconcile": lambda: reconcile.measure(stage, options),
    }
    started = time.monotonic()
    for name in chosen:
        begun = time.monotonic()
        if begun - started > PATIENCE_SECONDS and not options.full:
            result.lines.append(Line(name, name, "", note="the cases before took too long", state="not measured"))
            continue
        tell(f"measuring {name}")
        try:
            result.add(cases[name]())
        except Exception as error:
            result.lines.append(Line(name, name, "", note=f"{type(error).__name__}: {error}"[:300], state="failed"))
        tell(f"measured {name} in {time.monotonic() - begun:.0f} s")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Do what the arguments say; 1 if a case failed, 130 if interrupted."""
    told = parsed(sys.argv[1:] if arguments is None else arguments)
    options = options_of(told)
    chosen = [case for case in CASES if not told.case or case in told.case]
    begun = time.monotonic()

    def tell(text: str) -> None:
        print(f"{time.monotonic() - begun:6.1f} s  {text}", file=sys.stderr, flush=True)

    try:
        before = report.machine()
        with staged() as stage:
            found = measure(stage, options, chosen, tell)
        content = report.content(found, before, report.load(), time.monotonic() - begun, sys.argv[1:])
        RESULTS.write_text(content + "\n", encoding="utf-8")
        if told.json:
            print(content)
        else:
            report.show(found, before)
    except KeyboardInterrupt:
        print("Interrupted; every process started here was ended.", file=sys.stderr)
        return 130
    return 1 if found.failed else 0


if __name__ == "__main__":
    sys.exit(main())
