"""Blocks in ClickHouse's Native format: where one ends, and what its columns are called. Values are never decoded.

A block does not say how long it is, so finding its end means walking it, and walking needs the layout of each type.
Types with a fixed width cost one addition per column; strings cost one step per value.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import BinaryIO, Final, NamedTuple

from embedded.clickhouse.wire import MAX_BYTES, Malformed, Source, string, varint

Column = tuple[str, str]
"""Name and type of a column."""

_MAX_COLUMNS: Final = 100_000
_U64: Final = struct.Struct("<Q")
_I32: Final = struct.Struct("<i")

_WIDTHS: Final = {
    "Int8": 1, "Int16": 2, "Int32": 4, "Int64": 8, "Int128": 16, "Int256": 32,
    "UInt8": 1, "UInt16": 2, "UInt32": 4, "UInt64": 8, "UInt128": 16, "UInt256": 32,
    "Float32": 4, "Float64": 8, "BFloat16": 2, "Bool": 1, "Nothing": 1, "UUID": 16, "IPv4": 4, "IPv6": 16,
    "Date": 2, "Date32": 4, "DateTime": 4, "DateTime32": 4, "DateTime64": 8, "Time": 4, "Time64": 8,
    "Enum8": 1, "Enum16": 2, "Decimal32": 4, "Decimal64": 8, "Decimal128": 16, "Decimal256": 32,
}  # fmt: skip
_ALIASES: Final = {
    "Point": "Tuple(Float64, Float64)",
    "Ring": "Array(Tuple(Float64, Float64))",
    "LineString": "Array(Tuple(Float64, Float64))",
    "MultiLineString": "Array(Array(Tuple(Float64, Float64)))",
    "Polygon": "Array(Array(Tuple(Float64, Float64)))",
    "MultiPolygon": "Array(Array(Array(Tuple(Float64, Float64))))",
}
_QUOTED: Final = re.compile(r"'(?:[^'\\]|\\.|'')*'|`(?:[^`\\]|\\.|``)*`|\"(?:[^\"\\]|\\.|\"\")*\"", re.S)


class UnknownLayout(Exception):
    """A type whose bytes this module cannot walk (JSON, Variant, Dynamic, aggregate states)."""


class Block(NamedTuple):
    """A block: its columns, its number of rows, and its Native bytes (without the block info before them)."""

    columns: tuple[Column, ...]
    rows: int
    body: bytes


class Layout(NamedTuple):
    """How a type is laid out: `prefix` consumes what precedes the column once, `values` consumes n values."""

    prefix: Callable[[Source], None]
    values: Callable[[Source, int], None]


def _no_prefix(source: Source) -> None:
    """Most types have none."""


def _fixed(width: int) -> Layout:
    return Layout(_no_prefix, lambda source, count: source.skip(width * count))


def _skip_strings(source: Source, count: int) -> None:
    buf = source.buf
    pos = source.pos
    while count:
        available = len(buf)
        # The inner loop is the only per-value Python in the server: locals only, and no call per value.
        try:
            while count:
                length = buf[pos]
                if length < 0x80:
                    pos += 1 + length
                else:
                    step, shift, length = 1, 7, length & 0x7F
                    while True:
                        byte = buf[pos + step]
                        length |= (byte & 0x7F) << shift
                        step += 1
                        if byte < 0x80:
                            break
                        shift += 7
                        if shift > 63:
                            raise Malformed("A string's length does not end.")
                    if length > MAX_BYTES:
                        raise Malformed(f"A string of {length} bytes is over the limit of {MAX_BYTES}.", 131)
                    pos += step + length
                count -= 1
        except IndexError:
            source.need(max(pos - source.pos, available - source.pos) + 1)
    source.skip(pos - source.pos)


def _array(item: Layout) -> Layout:
    def values(source: Source, count: int) -> None:
        if not count:
            return
        source.skip(8 * (count - 1))
        (total,) = source.fixed(_U64)
        if total > MAX_BYTES:
            raise Malformed(f"An array column of {total} items is over the limit of {MAX_BYTES}.", 128)
        item.values(source, total)

    return Layout(item.prefix, values)


def _tuple(items: Sequence[Layout]) -> Layout:
    def prefix(source: Source) -> None:
        for item in items:
            item.prefix(source)

    def values(source: Source, count: int) -> None:
        for item in items:
            item.values(source, count)
        if not items:
            source.skip(count)

    return Layout(prefix, values)


def _nullable(item: Layout) -> Layout:
    def values(source: Source, count: int) -> None:
        source.skip(count)
        item.values(source, count)

    return Layout(item.prefix, values)


def _low_cardinality(item: Layout) -> Layout:
    def values(source: Source, count: int) -> None:
        while count > 0:
            (flags,) = source.fixed(_U64)
            if flags & 0xFF > 3 or flags & 0x100:
                raise Malformed("A LowCardinality column has an unknown index type.", 117)
            if flags & 0x200:
                (keys,) = source.fixed(_U64)
                if keys > MAX_BYTES:
                    raise Malformed("A LowCardinality dictionary is over the limit.", 131)
                item.values(source, keys)
            (indexes,) = source.fixed(_U64)
            if not 0 < indexes <= count:
                raise Malformed("A LowCardinality column has a wrong number of rows.", 117)
            source.skip(indexes << (flags & 0xFF))
            count -= indexes

    return Layout(lambda source: source.skip(8), values)


def _split(arguments: str) -> list[str]:
    """The arguments of a type, cut at the commas of the outermost level."""
    parts: list[str] = []
    depth = start = at = 0
    while at < len(arguments):
        if quoted := _QUOTED.match(arguments, at):
            at = quoted.end()
            continue
        char = arguments[at]
        if char == "(":
            depth += 1
        elif char == ")":
            depth -= 1
        elif char == "," and not depth:
            parts.append(arguments[start:at].strip())
            start = at + 1
        at += 1
    parts.append(arguments[start:].strip())
    return [part for part in parts if part]


def _without_name(element: str) -> str:
    """The type in a tuple's `name Type` or plain `Type`."""
    if quoted := _QUOTED.match(element):
        return element[quoted.end() :].strip()
    name = re.match(r"[^\s(,]+\s+(?=\S)", element)
    return element[name.end() :] if name else element


@lru_cache(maxsize=4096)
def layout(kind: str) -> Layout:
    """The layout of a type as ClickHouse writes its name. Raises `UnknownLayout`."""
    if kind.count("(") > 64:
        raise UnknownLayout("a type nested too deeply")
    kind = _ALIASES.get(kind, kind)
    head, bracket, rest = kind.partition("(")
    head = head.strip()
    if head == "String":
        return Layout(_no_prefix, _skip_strings)
    if head == "Decimal" and bracket:
        precision = int(_number(rest))
        return _fixed(4 if precision <= 9 else 8 if precision <= 18 else 16 if precision <= 38 else 32)
    if head == "FixedString" and bracket:
        return _fixed(_number(rest))
    if head in _WIDTHS:
        return _fixed(_WIDTHS[head])
    if head.startswith("Interval"):
        return _fixed(8)
    if not bracket or not rest.endswith(")"):
        raise UnknownLayout(kind)
    arguments = _split(rest[:-1])
    if head == "Tuple":
        return _tuple([layout(_without_name(argument)) for argument in arguments])
    if head == "Nested":
        return _array(_tuple([layout(_without_name(argument)) for argument in arguments]))
    if head == "Map" and len(arguments) == 2:
        return _array(_tuple([layout(argument) for argument in arguments]))
    if head == "Array" and len(arguments) == 1:
        return _array(layout(arguments[0]))
    if head == "Nullable" and len(arguments) == 1:
        return _nullable(layout(arguments[0]))
    if head == "LowCardinality" and len(arguments) == 1:
        inner = arguments[0]
        if inner.startswith("Nullable(") and inner.endswith(")"):
            inner = inner[len("Nullable(") : -1]
        return _low_cardinality(layout(inner))
    if head == "SimpleAggregateFunction" and len(arguments) == 2:
        return layout(arguments[1])
    raise UnknownLayout(kind)


def _number(rest: str) -> int:
    digits = re.match(r"\s*(\d{1,9})", rest)
    if not digits:
        raise UnknownLayout(rest)
    return int(digits.group(1))


def read_block_info(source: Source) -> None:
    """Consume the block info that precedes a block on the wire."""
    while field := source.varint():
        if field == 1:
            source.skip(1)
        elif field == 2:
            source.skip(4)
        else:
            raise Malformed(f"Unknown field {field} in a block's info.")


def read_block(source: Source, out: BinaryIO | None = None) -> Block:
    """Consume one block. Raises `UnknownLayout` at a column that cannot be walked.

    With `out`, a block of any rows is written there column by column as it comes, and its `body` is empty.
    """
    start = source.pos
    count, rows = source.varint(), source.varint()
    if count > _MAX_COLUMNS or rows > MAX_BYTES:
        raise Malformed(f"A block of {count} columns and {rows} rows is over the limit.", 131)
    columns = []
    for _ in range(count):
        name, kind = source.string(), source.string(1 << 20)
        columns.append((name, kind))
        if rows:
            try:
                how = layout(kind)
            except RecursionError:
                raise UnknownLayout("a type nested too deeply") from None
            how.prefix(source)
            how.values(source, rows)
            if out is not None:
                with memoryview(source.buf)[start : source.pos] as column:
                    out.write(column)
                source.compact()
                start = 0
    if out is not None and rows:
        return Block(tuple(columns), rows, b"")
    return Block(tuple(columns), rows, bytes(memoryview(source.buf)[start : source.pos]))


class _Bytes(Source):
    """Bytes that are all here."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.buf = bytearray(content)

    def _more(self, wanted: int) -> None:
        raise Malformed("A block ends too early.", 33)

    @property
    def exhausted(self) -> bool:
        return self.pos >= len(self.buf)


def split_blocks(content: bytes) -> list[Block]:
    """The blocks of a byte string that holds one after another. What cannot be walked comes as one block."""
    source = _Bytes(content)
    blocks: list[Block] = []
    while not source.exhausted:
        start = source.pos
        try:
            blocks.append(read_block(source))
        except UnknownLayout:
            rest = content[start:]
            blocks.append(Block((), rows_of(rest), rest))
            break
    return blocks


def rows_of(content: bytes) -> int:
    """The number of rows a Native block announces."""
    source = _Bytes(content[:20])
    source.varint()
    return source.varint()


def columns_of(content: bytes) -> tuple[Column, ...] | None:
    """The columns of a Native block, or None where it cannot be walked."""
    try:
        return read_block(_Bytes(content)).columns
    except UnknownLayout:
        return None


def header(columns: Sequence[Column]) -> bytes:
    """A Native block of these columns without rows."""
    return varint(len(columns)) + b"\0" + b"".join(string(name) + string(kind) for name, kind in columns)


BLOCK_INFO: Final = b"\x01\x00\x02" + _I32.pack(-1) + b"\x00"
"""Not an overflow row, no bucket, end."""
