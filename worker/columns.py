"""Columns on their way from PostgreSQL's binary COPY to ClickHouse's Native format, a whole column at a time. Pure.

Values of a fixed width are gathered by numpy from where each row has them. Text is copied value by value nowhere:
values of one length have one layout, so each length's are moved at once. Parsing COPY as CSV instead, say by Arrow,
would give the same columns; but PostgreSQL then spends longer writing text than all of this takes, numbers and times
would be parsed back out of it, and the loader would need a library half its own size.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from worker.errors import BadInput

Int64s = NDArray[np.int64]
UInt64s = NDArray[np.uint64]
Bools = NDArray[np.bool_]
Refusals = list[tuple[str, Bools]]
"""Why rows cannot be loaded: each rule with the rows it refuses."""

EPOCH_2000 = 946_684_800_000_000
"""Microseconds from 1970 to 2000, where PostgreSQL counts from."""
EPOCH_2000_DAYS = 10_957

# ClickHouse keeps DateTime64(6) and Date32 from 1900 to 2299; a day's distance keeps every time zone's day inside.
EARLIEST = -2_208_902_400_000_000  # 1900-01-02
LATEST = 10_413_705_600_000_000  # 2299-12-30
_EARLIEST_DAY, _LATEST_DAY = -25_567, 120_529  # 1900-01-01 and 2299-12-31

_HIGHEST, _LOWEST = np.iinfo(np.int64).max, np.iinfo(np.int64).min
_E19 = 10**19
_TENS = np.array([10**power for power in range(20)], np.uint64)
_NULL_WORD = np.uint64(0x9E3779B97F4A7C15)

_FIXED = {
    # ClickHouse's type: PostgreSQL's, and a value's bytes there
    "Bool": ("boolean", "|u1"),
    "Int16": ("smallint", ">i2"),
    "Int32": ("integer", ">i4"),
    "Int64": ("bigint", ">i8"),
    "Float32": ("real", ">f4"),
    "Float64": ("double precision", ">f8"),
    "Date32": ("date", ">i4"),
    "DateTime64(6)": ("timestamptz", ">i8"),
}
_DECIMAL = re.compile(r"Decimal\((\d+),(\d+)\)")


@dataclass(frozen=True, slots=True)
class Text:
    """Byte strings as Native has them, each behind its length; value i is `native[starts[i]:starts[i + 1]]`.

    `sizes` are the lengths without what says them. Eight bytes of nothing follow the last one.
    """

    native: NDArray[np.uint8]
    starts: Int64s
    sizes: Int64s

    def __len__(self) -> int:
        return len(self.sizes)

    def take(self, which: Any) -> Text:
        """The values a numpy index selects. Costs a step per value."""
        chosen = np.arange(len(self))[which]
        parts = [self.native[self.starts[i] : self.starts[i + 1]] for i in chosen]
        starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        return Text(np.concatenate([*parts, np.zeros(8, np.uint8)]), starts, self.sizes[chosen])

    @classmethod
    def joined(cls, parts: Sequence[Text]) -> Text:
        """The values of all parts, one part after the other."""
        ends = np.cumsum([0, *(part.starts[-1] for part in parts)])
        native = [part.native[: part.starts[-1]] for part in parts]
        starts = [part.starts[:-1] + end for part, end in zip(parts, ends[:-1], strict=True)]
        return cls(
            np.concatenate([*native, np.zeros(8, np.uint8)]),
            np.concatenate([*starts, ends[-1:]]),
            np.concatenate([part.sizes for part in parts]),
        )

    def value(self, i: int) -> bytes:
        """One value."""
        end = int(self.starts[i + 1])
        return self.native[end - int(self.sizes[i]) : end].tobytes()


@dataclass(frozen=True, slots=True)
class Column:
    """Values of one ClickHouse type, named without Nullable, time zone and spaces; `nulls` where they may be NULL.

    Values wider than eight bytes have two words a row.
    """

    kind: str
    values: Any
    nulls: Bools | None = None

    def __len__(self) -> int:
        return len(self.values)

    def take(self, which: Any) -> Column:
        """The rows a numpy index selects."""
        values = self.values.take(which) if isinstance(self.values, Text) else self.values[which]
        return Column(self.kind, values, None if self.nulls is None else self.nulls[which])

    @classmethod
    def joined(cls, parts: Sequence[Column]) -> Column:
        """The values of all parts, one part after the other."""
        if isinstance(parts[0].values, Text):
            values: Any = Text.joined([part.values for part in parts])
        else:
            values = np.concatenate([part.values for part in parts])
        nulls = None if parts[0].nulls is None else np.concatenate([part.nulls for part in parts])
        return cls(parts[0].kind, values, nulls)

    def native(self) -> list[memoryview]:
        """The values' bytes as Native has them, without those that say which are NULL."""
        if isinstance(self.values, Text):
            return [_bytes(self.values.native[: self.values.starts[-1]])]
        return [_bytes(self.values)] if len(self.values) else []

    def words(self) -> list[UInt64s]:
        """Numbers that tell values apart, for the content hash; `events.sql` computes the same in ClickHouse.

        Of text: its length, its first eight bytes and its last eight.
        """
        if isinstance(self.values, Text):
            words = _text_words(self.values)
        elif self.values.ndim == 2:
            words = [self.values[:, 0].view(np.uint64), self.values[:, 1].view(np.uint64)]
        elif self.values.dtype.kind == "f":
            words = [self.values.view(f"<u{self.values.itemsize}").astype(np.uint64)]
        else:
            words = [self.values.astype(np.int64).view(np.uint64)]
        return words if self.nulls is None else [np.where(self.nulls, _NULL_WORD, word) for word in words]

    def shown(self, i: int) -> Any:
        """One value, as JSON has it."""
        if self.nulls is not None and self.nulls[i]:
            return None
        if isinstance(self.values, Text):
            return self.values.value(i).decode("utf-8", "replace")
        value = self.values[i]
        if self.kind == "UUID":
            return str(UUID(int=int(value[0]) << 64 | int(value[1])))
        if self.kind.startswith("Decimal"):
            scale = int(self.kind.rpartition(",")[2][:-1])
            number = int(value) if self.values.ndim == 1 else int(value[0]) + (int(value[1].view(np.int64)) << 64)
            return str(Decimal(number).scaleb(-scale))
        if self.kind == "Date32":
            return (date(1970, 1, 1) + timedelta(days=int(value))).isoformat()
        if self.kind == "DateTime64(6)":
            return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(value))).isoformat()
        return bool(value) if self.kind == "Bool" else repr(float(value)) if value.dtype.kind == "f" else int(value)


def _bytes(values: NDArray[Any]) -> memoryview:
    return memoryview(np.ascontiguousarray(values).data).cast("B")


def plain(kind: str) -> tuple[str, bool]:
    """A ClickHouse type without LowCardinality, Nullable, time zone, names of an Enum and spaces; and if nullable."""
    kind = kind.strip()
    nullable = False
    for wrapper in ("LowCardinality(", "Nullable("):
        if kind.startswith(wrapper):
            kind, nullable = kind[len(wrapper) : -1].strip(), nullable or wrapper == "Nullable("
    if kind.startswith("Enum8("):
        return "Enum8", nullable
    kind = kind.replace(" ", "")
    return re.sub(r"^DateTime64\(6,.*\)$", "DateTime64(6)", kind), nullable


def source_type(kind: str) -> str:
    """The PostgreSQL type that a column of this ClickHouse type is read as. Raises `BadInput` for one not known here."""
    name, _ = plain(kind)
    if name in _FIXED:
        return _FIXED[name][0]
    if name in ("String", "UUID"):
        return {"String": "text", "UUID": "uuid"}[name]
    decimal = _DECIMAL.fullmatch(name)
    if decimal and 1 <= int(decimal[1]) <= 38 and int(decimal[2]) <= int(decimal[1]):
        return "numeric"
    raise BadInput(
        f"A column of type {kind} cannot be synced; String, UUID, Decimal(up to 38, s), {', '.join(_FIXED)} can, each "
        "also Nullable."
    )


def word_statement(kind: str) -> str:
    """The name of the statement in `events.sql` that computes `Column.words` of this type."""
    name, _ = plain(kind)
    if name.startswith("Decimal"):
        precision = int(name[8:].partition(",")[0])
        return "words_small_decimal" if precision <= 9 else "words_decimal" if precision <= 18 else "words_wide"
    kinds = {"String": "text", "UUID": "wide", "Date32": "date", "DateTime64(6)": "instant"}
    return f"words_{kinds.get(name) or ('float' if name.startswith('Float') else 'number')}"


def multiplier(number: int) -> int:
    """What the content hash multiplies the word of that number with: odd, and another for each."""
    return (0x9E3779B97F4A7C15 * (2 * number + 5)) % 2**64 | 1


def since_1970(micros: Int64s) -> Int64s:
    """Instants counted from 2000, counted from 1970 in place; infinities stay extremes, what is later than int64 can
    say becomes the last finite one."""
    if len(micros) and (micros.min() == _LOWEST or micros.max() >= _HIGHEST - EPOCH_2000):
        infinite = (micros == _LOWEST) | (micros == _HIGHEST)
        moved = np.minimum(micros, _HIGHEST - EPOCH_2000 - 1) + EPOCH_2000
        np.copyto(micros, moved, where=~infinite)
    else:
        micros += EPOCH_2000
    return micros


def not_utf8(name: str, column: Column) -> Refusals:
    """The rows of a text column whose bytes are no UTF-8. Costs a step per value."""
    rows = np.zeros(len(column), np.bool_)
    for i in range(len(column)):
        try:
            column.values.value(i).decode()
        except UnicodeDecodeError:
            rows[i] = True
    return [(f"{name} is not UTF-8", rows)] if rows.any() else []


class Rows:
    """Rows of the binary COPY format in a buffer, gone through field by field; `at` is where each row's next one is."""

    def __init__(self, buffer: bytes | bytearray | memoryview, at: Int64s) -> None:
        self._buffer = buffer
        self._size = len(buffer)
        self.at = at

    def gather(self, dtype: str, at: Int64s) -> NDArray[Any]:
        """Values that begin at these places, wherever in the buffer, in this machine's order of bytes."""
        kind = np.dtype(dtype)
        values = np.ndarray((self._size - kind.itemsize + 1,), kind.newbyteorder("<"), self._buffer, 0, (1,))[at]
        # Turning the bytes round afterwards is three times as fast as on the way.
        return values.byteswap(inplace=True) if dtype[0] == ">" else values

    def field(self) -> tuple[Int64s, Int64s, Bools]:
        """Where the next field's value begins, its length (0 for NULL), and which are NULL; steps over the field."""
        sizes = self.gather(">i4", self.at).astype(np.int64)
        nulls = sizes < 0
        if nulls.any():
            sizes[nulls] = 0
        begin = self.at + 4
        self.at = begin + sizes
        return begin, sizes, nulls

    def column(self, name: str, kind: str) -> tuple[Column, Refusals]:
        """The next field as a column of this ClickHouse type, and the rows whose value that type cannot hold.

        There the column holds 0, or an empty text. Raises `ValueError` where a value has not the size of its type.
        """
        base, nullable = plain(kind)
        begin, sizes, nulls = self.field()
        refused: Refusals = []
        if base == "String":
            values: Any = _text(np.frombuffer(self._buffer, np.uint8), begin, sizes)
        elif base == "UUID":
            values = np.empty((len(begin), 2), "<u8")
            values[:, 0] = self._fixed(">u8", begin, sizes, nulls, 16)
            values[:, 1] = self._fixed(">u8", begin + 8, sizes, nulls, 16)
        elif base.startswith("Decimal"):
            precision, scale = (int(part) for part in base[8:-1].split(","))
            values, refused = self._decimal(begin, sizes, nulls, precision, scale)
        else:
            dtype = _FIXED[base][1]
            values = self._fixed(dtype, begin, sizes, nulls, np.dtype(dtype).itemsize)
            if base == "Date32":
                values, refused = _days(values, nulls)
            elif base == "DateTime64(6)":
                values, refused = _instants(values, nulls)
        if not nullable and nulls.any():
            refused.append(("is NULL", nulls))
        return Column(base, values, nulls if nullable else None), [(f"{name} {rule}", rows) for rule, rows in refused]

    def _fixed(self, dtype: str, begin: Int64s, sizes: Int64s, nulls: Bools, size: int) -> NDArray[Any]:
        some = bool(nulls.any())
        if not ((sizes == size) | nulls).all():
            raise ValueError(f"a value that has not {size} bytes")
        values = self.gather(dtype, np.where(nulls, 0, begin) if some else begin)
        if some:
            values[nulls] = 0
        return values

    def _decimal(
        self, begin: Int64s, sizes: Int64s, nulls: Bools, precision: int, scale: int
    ) -> tuple[NDArray[Any], Refusals]:
        """numeric: the number of digits of base 10,000, the power of the first, the sign, the scale shown; the digits.

        Gathered digit by digit into low + high * 10^19, which is then put into 64 or 128 bits.
        """
        if not ((sizes >= 8) | nulls).all():
            raise ValueError("a numeric of less than eight bytes")
        head = self._fixed(">u8", begin, np.where(nulls, 0, 8), nulls, 8)
        count = (head >> np.uint64(48)).astype(np.int64)
        weight = ((head >> np.uint64(32)) & np.uint64(0xFFFF)).astype(np.uint16).view(np.int16).astype(np.int64)
        sign = (head >> np.uint64(16)) & np.uint64(0xFFFF)
        special = (sign != 0) & (sign != 0x4000)
        # Neither the first digit nor the last is 0, so more digits than this are more than the precision.
        most = (precision - 2) // 4 + 2
        first = self.gather(">u2", np.where(count > 0, begin + 8, 0)).astype(np.int64) * (count > 0)
        room = precision - (4 * weight + scale)
        large = ~special & (first >= _TENS[np.clip(room, 0, 5)].view(np.int64)) & (count > 0)
        fine = ~special & ~large & (count > most)
        low, high = np.zeros(len(begin), np.uint64), np.zeros(len(begin), np.uint64)
        usable = ~(special | large | fine)
        for place in range(min(most, int(count[usable].max(initial=0)))):
            has = usable & (count > place)
            rows: Any = slice(None) if has.all() else np.flatnonzero(has)
            digit = self.gather(">u2", begin[rows] + (8 + 2 * place)).astype(np.uint64)
            power = 4 * (weight[rows] - place) + scale
            cut = _TENS[np.clip(-power, 0, 4)]
            lost = digit % cut != 0
            if lost.any():
                fine[np.arange(len(begin))[rows][lost]] = True
            digit //= cut
            power = np.maximum(power, 0)
            # A digit may lie astride 10^19.
            if precision <= 18:
                low[rows] += digit * _TENS[power]
                continue
            split = _TENS[np.clip(19 - power, 0, 4)]
            low[rows] += digit % split * _TENS[np.where(power < 19, power, 0)]
            high[rows] += digit // split * _TENS[np.clip(power - 19, 0, 19)]
        refused = special | large | fine
        low[refused] = 0
        high[refused] = 0
        rules = (
            ("is NaN or infinite", special),
            ("is too large for its type", large),
            ("has more digits than its type", fine),
        )
        values = _signed(low, high, sign == 0x4000, precision)
        return values, [(rule, rows) for rule, rows in rules if rows.any()]


def _signed(low: UInt64s, high: UInt64s, negative: Bools, precision: int) -> NDArray[Any]:
    """low + high * 10^19 with its sign, in 32 or 64 bits, or in two words of 64 where the precision needs them."""
    if precision <= 18:
        value = low.astype(np.int64)
        return np.where(negative, -value, value).astype("<i4" if precision <= 9 else "<i8")
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    factor_low, factor_high = np.uint64(_E19 & 0xFFFFFFFF), np.uint64(_E19 >> 32)
    a, b = high & mask, high >> half
    low_low, low_high, high_low = a * factor_low, a * factor_high, b * factor_low
    middle = (low_low >> half) + (low_high & mask) + (high_low & mask)
    product = (low_low & mask) | (middle << half)
    carried = b * factor_high + (low_high >> half) + (high_low >> half) + (middle >> half)
    total = product + low
    carried += (total < low).astype(np.uint64)
    carried = np.where(negative, ~carried + (total == 0).astype(np.uint64), carried)
    total = np.where(negative, ~total + np.uint64(1), total)
    return np.stack([total, carried], axis=1)


def _days(days: NDArray[np.int32], nulls: Bools) -> tuple[NDArray[np.int32], Refusals]:
    counted = days.astype(np.int64) + EPOCH_2000_DAYS
    outside = ((counted < _EARLIEST_DAY) | (counted > _LATEST_DAY)) & ~nulls
    counted[outside | nulls] = 0
    return counted.astype("<i4"), [("is not between 1900 and 2299", outside)] if outside.any() else []


def _instants(micros: Int64s, nulls: Bools) -> tuple[Int64s, Refusals]:
    micros = since_1970(micros)
    outside = ((micros < EARLIEST) | (micros >= LATEST)) & ~nulls
    micros[outside | nulls] = 0
    return micros, [("is not between 1900 and 2299", outside)] if outside.any() else []


def varint(value: int) -> bytes:
    """An unsigned LEB128 number."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _text(source: NDArray[np.uint8], begin: Int64s, sizes: Int64s) -> Text:
    """Values of these sizes at these places, put together as Native has them."""
    prefixes = 1 + sum((sizes >= 1 << bits).astype(np.int64) for bits in (7, 14, 21, 28))
    starts = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes + prefixes, out=starts[1:])
    native = np.zeros(int(starts[-1]) + 8, np.uint8)
    largest = int(sizes.max(initial=0))
    # Sorting small numbers takes no comparisons.
    order = np.argsort(sizes.astype(np.uint16 if largest < 1 << 16 else np.int64), kind="stable")
    ordered = sizes[order]
    edges = np.flatnonzero(np.diff(ordered, prepend=-1, append=largest + 1))
    for lo, hi in pairwise(edges):
        rows, size = order[lo:hi], int(ordered[lo])
        target = starts[rows]
        for place, byte in enumerate(varint(size)):
            native[target + place] = byte
        if size:
            _slices(native, size)[target + len(varint(size))] = _slices(source, size)[begin[rows]]
    return Text(native, starts, sizes)


def _slices(buffer: NDArray[np.uint8], size: int) -> NDArray[Any]:
    """Every run of `size` bytes in the buffer, as one value each."""
    return np.ndarray((len(buffer) - size + 1,), f"V{size}", buffer, 0, (1,))


def _text_words(text: Text) -> list[UInt64s]:
    words = np.ndarray((len(text.native) - 7,), "<u8", text.native, 0, (1,))
    begin = text.starts[1:] - text.sizes
    some = np.minimum(text.sizes, 8)
    # A shift by 64 would be none.
    mask = np.where(some == 8, ~np.uint64(0), (np.uint64(1) << (some % 8 * 8).astype(np.uint64)) - np.uint64(1))
    return [text.sizes.view(np.uint64), words[begin] & mask, words[begin + text.sizes - some] & mask]


def block(
    expected: Sequence[tuple[str, str]], columns: dict[str, Column], *, marks_serialization: bool
) -> list[bytes | memoryview]:
    """A Native block of the `expected` columns (name, type), in pieces to be sent one after another; nothing is copied.

    `marks_serialization`: from revision 54454 on each column says that it is serialised in the default way. Raises
    `BadInput` where a column has not the type that is expected.
    """
    rows = len(next(iter(columns.values())))
    pieces: list[bytes | memoryview] = []
    head = bytearray(varint(len(expected)) + varint(rows))
    for name, kind in expected:
        column = columns[name]
        base, nullable = plain(kind)
        if base != column.kind or (column.nulls is not None and not nullable):
            ours = f"Nullable({column.kind})" if column.nulls is not None else column.kind
            raise BadInput(f"column {name} has type {kind} in the table and {ours} in the stream")
        # Text is sent plain; the server makes the dictionary of a LowCardinality column itself.
        sent = kind.removeprefix("LowCardinality(")[:-1] if kind.startswith("LowCardinality(") else kind
        for word in (name.encode(), sent.encode()):
            head += varint(len(word)) + word
        if marks_serialization:
            head += b"\0"
        pieces.append(bytes(head))
        head.clear()
        if nullable:
            nulls = np.zeros(rows, np.uint8) if column.nulls is None else column.nulls.view(np.uint8)
            pieces.append(_bytes(nulls))
        pieces += column.native()
    return pieces


BLOCK_INFO = b"\x01\x00\x02" + struct.pack("<i", -1) + b"\x00"
"""Not an overflow row, no bucket, end."""
