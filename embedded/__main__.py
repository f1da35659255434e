"""`python -m embedded up|down|status --home DIR`. Prints to standard error what happens, to standard output nothing
but the status asked for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from embedded import stack


def main() -> int:
    """Do what the arguments say; 1 if it failed."""
    parser = argparse.ArgumentParser(prog="python -m embedded", description="The embedded stack.")
    parser.add_argument("action", choices=["up", "down", "status"])
    parser.add_argument("--home", type=Path, default=Path(".retailmedia"), help="folder of its data and logs")
    arguments = parser.parse_args()
    try:
        if arguments.action == "up":
            stack.start(arguments.home, on_step=lambda step: print(step, file=sys.stderr))
        elif arguments.action == "down":
            stopped = stack.stop(arguments.home)
            print(f"Stopped: {', '.join(stopped) or 'nothing was running'}", file=sys.stderr)
        else:
            for name, one in stack.status(arguments.home).items():
                told = f"running, process {one.pid}" if one.running else "not running"
                print(f"{name}: {told}, port {one.port if one.port is not None else 'none yet'}")
    except stack.StackError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
