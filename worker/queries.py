"""Runs the analyst's queries in `clickhouse/queries/`. Holds no query and no rendering.

A query is one SELECT in a file of its own. The comment at its head asks the question and gives grain and example; then
each parameter is a line `SET param_first_day = '2026-01-01'; -- the first day that counts`: name, default and meaning
at once, and what ClickHouse's own client reads, so the files run there as they stand. In the statement a parameter
stands as `{first_day:Date32}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.errors import BadInput, RefusedRows
from worker.sink import Sink, literal
from worker.sql import CLICKHOUSE

QUERIES = CLICKHOUSE / "queries"

_NAME = re.compile(r"^[a-z][a-z0-9_]*$")
_PARAMETER = re.compile(
    r"^SET param_(?P<name>[a-z][a-z0-9_]*) = '(?P<default>[^'\\]*)'; -- (?P<meaning>.+)$", re.MULTILINE
)
_GRAIN, _EXAMPLE = "Grain: ", "Example: "
_PLACE = re.compile(r"\{(?P<name>[a-z][a-z0-9_]*):(?P<type>[A-Za-z0-9_(), ']+)\}")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A value a query takes, as text; ClickHouse reads it as the type the statement names."""

    name: str
    default: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Query:
    """A file of `clickhouse/queries/`: the question it answers, one row of what it gives, a call, what it takes."""

    name: str
    title: str
    grain: str
    example: str
    parameters: tuple[Parameter, ...]
    statement: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Column names, their ClickHouse types, and rows, in the query's order."""

    columns: tuple[str, ...]
    types: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def read(path: Path) -> Query:
    """The query in a file."""
    text = path.read_text(encoding="utf-8")
    head = []
    for line in text.splitlines():
        if not line.startswith("--"):
            break
        head.append(line.removeprefix("--").strip())
    parameters = tuple(Parameter(**found.groupdict()) for found in _PARAMETER.finditer(text))
    return Query(
        path.stem,
        " ".join(line for line in head if line and not line.startswith((_GRAIN, _EXAMPLE))),
        next((line.removeprefix(_GRAIN) for line in head if line.startswith(_GRAIN)), ""),
        next((line.removeprefix(_EXAMPLE) for line in head if line.startswith(_EXAMPLE)), ""),
        parameters,
        _PARAMETER.sub("", text).strip().rstrip(";"),
    )


def queries(folder: Path = QUERIES) -> list[Query]:
    """Every query there is, by name."""
    return [read(path) for path in sorted(folder.glob("*.sql")) if _NAME.match(path.stem)]


def find(name: str, folder: Path = QUERIES) -> Query:
    """The query of that name. Raises `BadInput` naming the ones there are."""
    path = folder / f"{name}.sql"
    if not _NAME.match(name) or not path.is_file():
        names = ", ".join(query.name for query in queries(folder))
        raise BadInput(f"There is no query {name!r}; the queries are {names}.")
    return read(path)


def filled(query: Query, given: Mapping[str, str]) -> str:
    """The statement with every parameter in place. Raises `BadInput` for one it does not take."""
    known = {parameter.name: parameter.default for parameter in query.parameters}
    for name in given:
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise BadInput(f"The query {query.name} has no parameter {name!r}; {takes}.")
    values = {**known, **given}
    return _PLACE.sub(
        lambda place: f"CAST({literal(values[place['name']])}, {literal(place['type'])})", query.statement
    )


def run(sink: Sink, query: Query, given: Mapping[str, str]) -> Answer:
    """Asks ClickHouse. Raises `BadInput` for a parameter, or a value ClickHouse cannot read as its type."""
    statement = filled(query, given)
    try:
        columns, types, rows = sink.described(f"answering {query.name}", statement)
    except RefusedRows as error:
        told = ", ".join(f"{name}={value}" for name, value in given.items())
        raise BadInput(f"A value in {told or query.name} cannot be used: {error}") from None
    return Answer(tuple(columns), tuple(types), rows)
