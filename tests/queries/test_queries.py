"""Every query on small inputs with answers worked out by hand; a case is a folder: `<query>/<case>/`.

`campaigns.csv`, `advertisers.csv`, `events.csv` (so many impressions and clicks at an instant) and tables by name are
what there is; the metrics are rebuilt from it. `parameters.json` and `settings.json` say how it is asked. The columns
of `expected.csv` must come out as they stand there, in that order of rows; a query's other columns are not looked at.
"""

from __future__ import annotations

import csv
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.queries.cases import fill
from worker import queries
from worker.config import Settings
from worker.sink import Sink
from worker.sql import CLICKHOUSE

HERE = Path(__file__).parent
CASES = sorted(path.parent for path in HERE.glob("*/*/expected.csv"))


def same(found: Any, expected: str) -> bool:
    """Whether a value is what the case says; money exactly, ratios to nine digits, nothing for NULL."""
    match found:
        case None:
            return expected == ""
        case bool():
            return expected == str(found).lower()
        case int() | Decimal():
            return expected != "" and Decimal(found) == Decimal(expected)
        case float():
            return expected != "" and found == pytest.approx(float(expected), rel=1e-9, abs=1e-12)
        case list():
            return [str(item) for item in found] == expected.split()
    return str(found) == expected


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.relative_to(HERE)))
def test_case(sink: Sink, settings: Settings, case: Path) -> None:
    options = json.loads((case / "settings.json").read_text()) if (case / "settings.json").exists() else {}
    given = json.loads((case / "parameters.json").read_text()) if (case / "parameters.json").exists() else {}
    fill(sink, settings.model_copy(update=options), case)
    answer = queries.run(sink, queries.find(case.parent.name), given)
    with (case / "expected.csv").open(newline="", encoding="utf-8") as file:
        columns, *rows = list(csv.reader(file))
    assert set(columns) <= set(answer.columns)
    places = [answer.columns.index(column) for column in columns]
    found = [[row[place] for place in places] for row in answer.rows]
    assert len(found) == len(rows), found
    for number, (ours, expected) in enumerate(zip(found, rows, strict=True)):
        for column, value, wanted in zip(columns, ours, expected, strict=True):
            assert same(value, wanted), f"row {number}, {column}: {value!r}, not {wanted!r}; the row is {ours}"


def test_every_query_has_cases_and_an_empty_database_among_them() -> None:
    cases: dict[str, set[str]] = {}
    for case in CASES:
        cases.setdefault(case.parent.name, set()).add(case.name)
    for query in queries.queries():
        assert {"empty"} < cases.get(query.name, set()), query.name


@pytest.mark.parametrize("query", queries.queries(), ids=lambda query: query.name)
def test_a_file_says_what_it_is(query: queries.Query) -> None:
    assert query.title.endswith((".", "?"))
    assert "?" in query.title
    assert query.grain
    assert query.example.startswith(f"retailmedia query {query.name}")
    placed = set(re.findall(r"\{(\w+):", query.statement))
    assert placed == {parameter.name for parameter in query.parameters}
    queries.filled(query, dict(pair.split("=", 1) for pair in re.findall(r"--param (\S+)", query.example)))


@pytest.mark.parametrize("path", sorted((CLICKHOUSE / "queries").glob("*.sql")), ids=lambda path: path.stem)
def test_a_file_runs_in_the_engine_as_it_stands(settings: Settings, path: Path) -> None:
    """Statement by statement, as `clickhouse-client < file` sends them; nothing of ours fills anything in."""
    text = path.read_text(encoding="utf-8")
    statements = [part for part in re.split(r";(?= --|\n|$)", text) if part.strip()]
    with Sink(settings) as bare:
        for statement in statements[:-1]:
            bare.command("setting a parameter", re.sub(r"^\s*--.*$", "", statement, flags=re.M).strip())
        bare.query("asking", re.sub(r"\A ?--[^\n]*", "", statements[-1]))


def test_no_query_reads_events_where_a_rebuilt_table_answers() -> None:
    for query in queries.queries():
        assert "ad_events" not in query.statement, query.name
