"""Imports go down only; siblings in one layer do not import each other; each driver has one user."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "worker"

LAYERS: dict[str, float] = {
    **dict.fromkeys(
        (
            "config",
            "calendar",
            "windows",
            "columns",
            "streams",
            "errors",
            "sql",
            "logs",
            "copyframes",
            "transient",
            "rules",
            "money",
            "dimension_rows",
            "relied",
            "coverage",
            "idshape",
            "careful",
            "messages",
            "remote",
        ),
        1,
    ),
    "sessions": 1,
    "sourcetypes": 1,
    # Between the servers and what is done with them: whether a reading may be used at all.
    "setbacks": 2.5,
    **dict.fromkeys(
        (
            "source",
            "sink",
            "watermarks",
            "ledger",
            "calendars",
            "broker",
            "ending",
            "flower",
            "failing",
            "mending",
            "retention",
        ),
        2,
    ),
    **dict.fromkeys(
        (
            "pipeline",
            "dimensions",
            "planner",
            "metrics",
            "quality",
            "reconcile",
            "replay",
            "seals",
            "migrate",
            "refresh",
            "queries",
            "standing",
            "anomalies",
            "observe",
        ),
        3,
    ),
    **dict.fromkeys(("quarantine", "alerts", "report"), 3),
    **dict.fromkeys(("celery", "cli", "tasks", "screens", "quiet", "local", "doctor", "runs", "demo", "prometheus"), 4),
}

# Leaves that other leaves stand on, lowest first; and the entries, which wire each other.
WITHIN_LEAVES = (
    "errors",
    "calendar",
    "config",
    "windows",
    "columns",
    "streams",
    "sql",
    "logs",
    "copyframes",
    "transient",
    "rules",
    "money",
    "dimension_rows",
    "sessions",
    "sourcetypes",
    "relied",
    "coverage",
    "idshape",
    "careful",
    "messages",
    "remote",
)

DRIVERS = {"psycopg2": "source", "clickhouse_driver": "sink", "redis": "watermarks", "apprise": "alerts"}


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """Modules imported when the file is run; what only type checkers read does not count."""
    tree = ast.parse(path.read_text())
    only_types = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in only_types:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    name = module_of(path)
    assert name in LAYERS, f"{name} has no layer"
    for imported in imports(path):
        if not imported.startswith("worker."):
            continue
        other = imported.split(".")[1]
        if other == name or other not in LAYERS:
            continue
        if LAYERS[name] == LAYERS[other] == 1:
            assert WITHIN_LEAVES.index(other) < WITHIN_LEAVES.index(name), f"{name} imports {other}"
        elif LAYERS[name] == LAYERS[other] == 4:
            continue
        else:
            assert LAYERS[other] < LAYERS[name], f"{name} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_driver_has_one_user(path: Path) -> None:
    roots = {imported.split(".")[0] for imported in imports(path)}
    for driver, user in DRIVERS.items():
        assert driver not in roots or module_of(path) == user, f"{path.name} uses {driver}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_settings_read_the_environment(path: Path) -> None:
    if module_of(path) in {"config", "local"}:  # local.py hands its environment on to the processes it starts
        return
    text = path.read_text()
    assert "os.environ" not in text
    assert "getenv" not in text
