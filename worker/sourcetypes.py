"""What a column's type at the source can lose on its way into ClickHouse, told by its name alone. Pure.

`Judgement` "wrong" stands where the type holds values that cannot be read or will be refused, "note" where something is
taken for something else; a type that is kept whole has none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from worker import money
from worker.columns import source_type
from worker.streams import STREAMS, Extra, Stream

Kind = Literal["id", "money", "day", "instant", "text"]

_KEPT: dict[str, dict[str, Kind]] = {
    "advertiser": {"id": "id", "name": "text", "created_at": "instant", "updated_at": "instant"},
    "campaign": {
        "id": "id", "name": "text", "advertiser_id": "id", "bid": "money", "budget": "money", "start_date": "day",
        "end_date": "day", "created_at": "instant", "updated_at": "instant",
    },
    "impressions": {"id": "id", "campaign_id": "id", "created_at": "instant", "inserted_at": "instant"},
    "clicks": {"id": "id", "campaign_id": "id", "created_at": "instant", "inserted_at": "instant"},
}  # fmt: skip
"""What is read of each source table, and as what."""

_NUMERIC = re.compile(r"numeric(?:\((\d+),(-?\d+)\))?")
_TYPMOD = re.compile(r"\(\d+(?:,-?\d+)?\)")


@dataclass(frozen=True, slots=True)
class Judgement:
    """A column of a source table whose type can lose something, and what to do about it."""

    column: str
    state: Literal["wrong", "note"]
    found: str
    mend: str = ""


def columns(table: str) -> tuple[str, ...]:
    """The columns read of a source table, a stream's further ones included."""
    return (*_KEPT[table], *(extra.name for extra in _extra(table)))


def judge(table: str, types: Mapping[str, str]) -> list[Judgement]:
    """What the types of a source table's columns, as PostgreSQL's `format_type` writes them, can lose, by column."""
    result = []
    for column, kind in _KEPT[table].items():
        if column not in types:
            mend = "bring the column back under this name; seed/schema.sql has the types"
            result.append(Judgement(column, "wrong", "it is missing, so the table cannot be read", mend))
        elif (found := _JUDGES[kind](types[column])) is not None:
            result.append(Judgement(column, *found))
    for extra in _extra(table):
        if extra.name not in types:
            result.append(
                Judgement(extra.name, "wrong", "it is missing, so the table cannot be read", "add the column")
            )
        elif (found := _further(extra, types[extra.name])) is not None:
            result.append(Judgement(extra.name, *found))
    return result


def readable_money(table: str, types: Mapping[str, str]) -> bool:
    """Whether every column of money is of a type whose values can be read as decimal numbers."""
    return all(
        _plain(types.get(column, "")) in {"numeric", "real", "double precision", "smallint", "integer", "bigint"}
        for column, kind in _KEPT[table].items()
        if kind == "money"
    )


def _extra(table: str) -> tuple[Extra, ...]:
    streams: list[Stream] = [stream for stream in STREAMS.values() if stream.source_table == table]
    return tuple(extra for stream in streams for extra in stream.extra)


def _plain(kind: str) -> str:
    """A type without its length or precision."""
    return _TYPMOD.sub("", kind)


Found = tuple[Literal["wrong", "note"], str, str]


def _id(kind: str) -> Found | None:
    if kind in {"smallint", "integer", "bigint"}:
        return None
    numeric = _NUMERIC.fullmatch(kind)
    if numeric and numeric[2] == "0" and int(numeric[1]) <= 18:
        return None
    mend = "make it bigint"
    if numeric:
        return (
            "wrong",
            f"{kind} is read as bigint: fractions are rounded, and what is beyond 2^63 stops the table",
            mend,
        )
    return "wrong", f"{kind} is no whole number, and ids are kept as such", mend


def _money(kind: str) -> Found | None:
    before = money.DIGITS - money.DECIMALS
    limit = f"amounts with more than {money.DECIMALS} decimals or {before} digits before the point are refused"
    mend = f"make it numeric({money.DIGITS}, {money.DECIMALS}) or less"
    if kind in {"smallint", "integer"}:
        return None
    if kind in {"bigint", "numeric"}:
        return "note", f"{kind} can hold more than is kept: {limit}", ""
    numeric = _NUMERIC.fullmatch(kind)
    if numeric:
        precision, scale = int(numeric[1]), int(numeric[2])
        if scale <= money.DECIMALS and precision - scale <= before:
            return None
        return "wrong", f"{kind} holds more than is kept: {limit}", mend
    if kind in {"real", "double precision"}:
        return (
            "wrong",
            f"{kind} is no exact number: sums such as 0.1 + 0.2 have more decimals than are kept; {limit}",
            mend,
        )
    if kind == "money":
        return "wrong", "money depends on lc_monetary and cannot be read as a number", mend
    return "wrong", f"{kind} cannot be read as an amount", mend


def _day(kind: str) -> Found | None:
    if kind == "date":
        return None
    if kind.startswith("timestamp"):
        return "note", f"{kind} is kept as a day: its time of day is dropped", ""
    return "wrong", f"{kind} cannot be read as a day", "make it date"


def _instant(kind: str) -> Found | None:
    plain = _plain(kind)
    if plain == "timestamp with time zone":
        return None
    if plain == "timestamp without time zone":
        return "note", "timestamp without time zone is taken to be UTC", "make it timestamptz if it holds local time"
    if plain == "date":
        return "note", "date is taken as midnight UTC", ""
    return "wrong", f"{kind} cannot be read as an instant", "make it timestamptz"


def _text(kind: str) -> Found | None:
    if _plain(kind) in {"text", "character varying", "character", "name", "citext"}:
        return None
    return "wrong", f"{kind} cannot be read as text", "make it text"


_JUDGES = {"id": _id, "money": _money, "day": _day, "instant": _instant, "text": _text}


def _further(extra: Extra, kind: str) -> Found | None:
    """A stream's further column beside the type it is declared with. Rows with values that do not fit are quarantined."""
    read = extra.source_type or source_type(extra.type)
    bounds = re.search(r"Decimal\((\d+),\s*(\d+)\)", extra.type)
    numeric = _NUMERIC.fullmatch(kind)
    if read == "numeric" and bounds and numeric:
        digits, decimals = int(bounds[1]), int(bounds[2])
        if numeric[1] is None:
            return "note", f"numeric can hold more than {extra.type}: rows whose value does not fit are quarantined", ""
        if int(numeric[2]) > decimals or int(numeric[1]) - int(numeric[2]) > digits - decimals:
            told = f"{kind} holds more than {extra.type}: rows whose value does not fit are quarantined"
            return "wrong", told, f"make it numeric({digits}, {decimals}) or less, or widen the kept column"
        return None
    if _plain(kind) == read or (read == "text" and _text(kind) is None):
        return None
    if read == "timestamp with time zone" or _plain(kind).startswith("timestamp"):
        return "note", f"{kind} is read as {read}; without a time zone it is taken to be UTC", ""
    return "note", f"{kind} is read as {read}, and rows it cannot be read of stop their window", ""
