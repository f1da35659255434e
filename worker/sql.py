"""Loads the SQL this product runs: named statements beside the code, and the analyst's files under `clickhouse/`.

A statement file holds statements each headed by `-- name: …`; what follows up to the next head, comments included,
is the statement. Nothing here talks to a server or fills in a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_HEAD = re.compile(r"^-- name: (?P<name>[a-z_]+)[ \t]*$", re.MULTILINE)
_STATEMENTS = Path(__file__).parent / "sql"

CLICKHOUSE = Path(__file__).parent.parent / "clickhouse"
"""The folder of migrations, queries and checks that analysts read."""


@cache
def statements(file: str) -> dict[str, str]:
    """The named statements of `worker/sql/<file>.sql`. Raises `ValueError` for a name given twice."""
    text = (_STATEMENTS / f"{file}.sql").read_text(encoding="utf-8")
    heads = list(_HEAD.finditer(text))
    found: dict[str, str] = {}
    for head, following in zip(heads, [*heads[1:], None], strict=True):
        name = head["name"]
        if name in found:
            raise ValueError(f"{file}.sql names {name!r} twice")
        found[name] = text[head.end() : following.start() if following else len(text)].strip().rstrip(";")
    return found


def named(file: str, name: str) -> str:
    """One statement. Raises `KeyError` if the file has none of that name."""
    return statements(file)[name]


def chunks(values: Sequence[T], size: int) -> Iterator[list[T]]:
    """The values, so many at a time: servers limit how long a statement may be."""
    for begin in range(0, len(values), size):
        yield list(values[begin : begin + size])
