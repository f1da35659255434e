"""What the columns of a dimension's rows mean: in which form they are read, and what becomes of each value. Pure.

Values come as exact text, so that none of them stops the statement, and are judged one by one: a row with a value that
cannot be kept is refused by name, and every other row loads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Context, Decimal
from typing import Literal

from worker import money
from worker.errors import SourceMismatch

Kind = Literal["id", "reference", "text", "money", "date", "time"]
Raw = bytes | str | None

SHOWN = 200
"""Characters of a value that are kept for people."""

FIRST_DAY, LAST_DAY = date(1900, 1, 1), date(2299, 12, 31)
"""What ClickHouse's Date32 holds."""

EARLIEST, LATEST = datetime(1900, 1, 2, tzinfo=UTC), datetime(2299, 12, 30, tzinfo=UTC)
"""Times outside are kept as NULL."""

FLOAT_DIGITS = Context(prec=15)
"""A double precision number holds so many decimal digits; what follows is noise of its binary form."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,6})?", re.ASCII)
_DAY = re.compile(r"(\d{4,})-(\d\d)-(\d\d)(?:[ T][0-9:.+-]*)?( BC)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Field:
    """A column of a source table, and the column of ClickHouse that it fills."""

    source: str
    target: str
    kind: Kind


_TIMES = (Field("created_at", "created_at", "time"), Field("updated_at", "updated_at", "time"))

FIELDS: dict[str, tuple[Field, ...]] = {
    "advertisers": (Field("id", "advertiser_id", "id"), Field("name", "advertiser_name", "text"), *_TIMES),
    "campaigns": (
        Field("id", "campaign_id", "id"),
        Field("name", "campaign_name", "text"),
        Field("advertiser_id", "advertiser_id", "reference"),
        Field("bid", "bid_amount", "money"),
        Field("budget", "budget_amount", "money"),
        Field("start_date", "start_date", "date"),
        Field("end_date", "end_date", "date"),
        *_TIMES,
    ),
}
"""By stream. The first is the id."""


@dataclass(frozen=True, slots=True)
class SourceColumn:
    """A column as the source has it: `base` is its type, or that of its domain; `category` as pg_type says."""

    name: str
    type: str
    base: str
    category: str


_CATEGORIES: dict[Kind, tuple[str, str]] = {
    # pg_type.typcategory: D times, E enums, N numbers, S text, U others
    "id": ("NS", "a whole number"),
    "reference": ("NS", "a whole number"),
    "money": ("NS", "an amount of money"),
    "date": ("DS", "a date"),
    "time": ("DS", "a time"),
    "text": ("SENUDB", "text"),
}
_NEVER: dict[Kind, set[str]] = {"date": {"time", "timetz"}, "time": {"time", "timetz"}, "text": {"bytea"}}


def form_of(field: Field, table: str, columns: Sequence[SourceColumn]) -> str:
    """The name of the expression in `source.sql` by which the column is read.

    Raises `SourceMismatch` naming the column where the table has none of that name, or one of a type that says nothing.
    """
    stays = f"nothing of {table} is loaded until then, and what was loaded before stays as it is"
    if not columns:
        raise SourceMismatch(f"PostgreSQL has no table {table}; create it or give it its name back: {stays}.")
    found = next((column for column in columns if column.name == field.source), None)
    if found is None:
        others = ", ".join(column.name for column in columns)
        raise SourceMismatch(
            f"Table {table} has no column {field.source} any more (it has {others}); give it that name back, or name it so "
            f"in a view: {stays}."
        )
    categories, wanted = _CATEGORIES[field.kind]
    if found.category not in categories or found.base in _NEVER.get(field.kind, ()):
        raise SourceMismatch(
            f"Column {field.source} of table {table} is of type {found.type}, which cannot be read as {wanted}; give it a "
            f"type that can: {stays}."
        )
    if field.kind == "text" or found.category == "S":
        return "as_bytes"
    return "as_number" if found.base == "money" else "as_text"


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that cannot be loaded: its id as the source shows it and, where that is one, as a number; why; the row."""

    key: str
    row_id: int
    rule: str
    row: str


class _Unloadable(Exception):
    """Why a value cannot be kept; completes «bid cannot be loaded: …»."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Turns rows of one stream, values in the order of its fields, into rows for ClickHouse.

    `encoding` is that of the text, as Python names it, and `label` as people do; `floats` are the places of values that
    are binary fractions.
    """

    stream: str
    encoding: str
    label: str
    floats: frozenset[int] = frozenset()

    def row(self, raw: Sequence[Raw]) -> tuple[object, ...] | Refused:
        """The row's values, or why it cannot be loaded."""
        values: list[object] = []
        for place, (field, value) in enumerate(zip(FIELDS[self.stream], raw, strict=True)):
            try:
                values.append(self._value(field, value, place in self.floats))
            except _Unloadable as reason:
                return self.refused(raw, f"{field.source} cannot be loaded: {reason}")
        return tuple(values)

    def refused(self, raw: Sequence[Raw], rule: str) -> Refused:
        """The row as one that cannot be loaded for that reason."""
        told = {field.source: self._shown(value) for field, value in zip(FIELDS[self.stream], raw, strict=True)}
        key = told["id"] or ""
        try:
            row_id = _whole(key)
        except _Unloadable:
            row_id = 0
        return Refused(key, row_id, rule[:400], json.dumps(told))

    def _shown(self, value: Raw) -> str | None:
        if isinstance(value, bytes):
            # A character has up to four bytes; a megabyte need not be decoded for its beginning.
            value = value[: 4 * SHOWN].decode(self.encoding, "backslashreplace")
        return value if value is None or len(value) <= SHOWN else f"{value[:SHOWN]}…"

    def _value(self, field: Field, value: Raw, is_float: bool) -> object:
        if field.kind == "text":
            return self._text(value)
        text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
        if text is None:
            if field.kind == "id":
                raise _Unloadable("NULL is no id")
            return Decimal(0) if field.kind == "money" else None
        match field.kind:
            case "id":
                number = _whole(text)
                if number == 0:
                    raise _Unloadable(f"0 stands for no {self.stream.removesuffix('s')}")
                return number
            case "reference":
                return _whole(text)
            case "money":
                return _amount(text, is_float)
            case "date":
                return _day(text)
        return _time(text)

    def _text(self, value: Raw) -> str:
        if value is None or isinstance(value, str):
            return value or ""
        try:
            return value.decode(self.encoding)
        except UnicodeDecodeError as error:
            near = value[max(error.start - 20, 0) : error.end + 20]
            raise _Unloadable(f"{near!r} is not {self.label}") from None


def _told(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")


def _whole(text: str) -> int:
    text = text.strip()
    number = Decimal(text) if _NUMBER.fullmatch(text) else None
    if number is None:
        raise _Unloadable(f"{_told(text)} is no whole number")
    # Looked at first: to write out 1e999999 would take a while.
    if number and number.adjusted() > 18:
        raise _Unloadable(f"{_told(text)} is outside 64 bits")
    if number != int(number):
        raise _Unloadable(f"{_told(text)} is no whole number")
    if not -(2**63) <= int(number) < 2**63:
        raise _Unloadable(f"{_told(text)} is outside 64 bits")
    return int(number)


def _amount(text: str, is_float: bool) -> Decimal:
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        raise _Unloadable(f"{_told(text)} is no amount")
    amount = FLOAT_DIGITS.create_decimal(text) if is_float else Decimal(text)
    if money.fits(amount) is not None:
        raise _Unloadable(f"{_told(text)} does not fit, {money.LIMITS}")
    return amount


def _day(text: str) -> date:
    """A flight that begins or ends outside of what can be kept does so at its edge."""
    if text in ("infinity", "-infinity"):
        return LAST_DAY if text == "infinity" else FIRST_DAY
    found = _DAY.fullmatch(text.strip())
    if not found:
        raise _Unloadable(f"{_told(text)} is no date")
    year, month, day, before_christ = found.groups()
    if before_christ or int(year) < FIRST_DAY.year:
        return FIRST_DAY
    if int(year) > LAST_DAY.year:
        return LAST_DAY
    try:
        return date(int(year), int(month), int(day))
    except ValueError:
        raise _Unloadable(f"{_told(text)} is no date") from None


def _time(text: str) -> datetime | None:
    """In UTC; a source column without time zone is taken to hold UTC."""
    if text in ("infinity", "-infinity"):
        return None
    found = _DAY.match(text)
    if found and (text.endswith(" BC") or len(found[1]) > 4):
        return None
    try:
        value = datetime.fromisoformat(text.strip())
        value = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError:
        return None
    except ValueError:
        raise _Unloadable(f"{_told(text)} is no time") from None
    return value if EARLIEST <= value <= LATEST else None
