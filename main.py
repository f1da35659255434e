"""`python main.py …`: the original project's commands, and beyond them the whole `retailmedia` command line."""

from __future__ import annotations

import sys

ORIGINAL_COMMANDS = frozenset(
    {"advertisers", "campaigns", "impressions", "clicks", "batch", "stats", "reset", "stream"}
)
"""Commands that stood at the top of the original `main.py`; they live under `retailmedia seed` now."""


def main(args: list[str] | None = None) -> None:
    """Runs the command line and exits with its code. `args` defaults to the program's own."""
    given = sys.argv[1:] if args is None else args
    if given and given[0] in ORIGINAL_COMMANDS:
        import seed.cli

        seed.cli.main(given)
    else:
        # Here, not above: seeding must not wait for Celery and all its imports.
        import worker.cli

        worker.cli.main(given)


if __name__ == "__main__":
    main()
