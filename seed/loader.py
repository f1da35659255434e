"""Rows into PostgreSQL by COPY: binary from numpy columns for events, text for the few advertisers and campaigns."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Literal

import numpy as np
from psycopg2.extensions import cursor as Cursor

from seed.model import Int64s
from seed.sql import statement

_EPOCH_2000 = 946_684_800_000_000  # microseconds from 1970 to 2000, where PostgreSQL counts from
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_EVENT = np.dtype(
    [("fields", ">i2"), ("length1", ">i4"), ("campaign_id", ">i8"), ("length2", ">i4"), ("created_at", ">i8")]
)
_TIME = np.dtype([("fields", ">i2"), ("length", ">i4"), ("instant", ">i8")])
_READ_BYTES = 1 << 18

_TEXT_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def encode_events(campaign_ids: Int64s, created_at: Int64s) -> bytes:
    """Two columns as the binary COPY format; `created_at` in microseconds since 1970 UTC."""
    rows = np.empty(len(created_at), dtype=_EVENT)
    rows["fields"] = 2
    rows["length1"] = rows["length2"] = 8
    rows["campaign_id"] = campaign_ids
    rows["created_at"] = created_at - _EPOCH_2000
    return _HEADER + rows.tobytes() + _TRAILER


def copy_events(
    cursor: Cursor, table: Literal["impressions", "clicks"], campaign_ids: Int64s, created_at: Int64s
) -> int:
    """Writes events; the database gives `id` and `inserted_at`. Returns the number of rows."""
    if not len(created_at):
        return 0
    buffer = io.BytesIO(encode_events(campaign_ids, created_at))
    cursor.copy_expert(statement(f"copy_{table}"), buffer, _READ_BYTES)
    return int(cursor.rowcount)


def copy_text(
    cursor: Cursor, name: Literal["copy_advertiser", "copy_campaign"], rows: Iterable[Iterable[object]]
) -> int:
    """Writes rows of values in the order of the statement's columns; None is NULL. Returns the number of rows."""
    lines = (
        "\t".join("\\N" if value is None else str(value).translate(_TEXT_ESCAPES) for value in row) for row in rows
    )
    text = "".join(line + "\n" for line in lines)
    if not text:
        return 0
    cursor.copy_expert(statement(name), io.BytesIO(text.encode("utf-8")), _READ_BYTES)
    return int(cursor.rowcount)


class TimesAt:
    """A target for COPY TO STDOUT (FORMAT binary) of one timestamptz column without NULLs, keeping some rows only.

    `wanted` are the ordinals to keep, rising from 0. Memory grows with what is kept, not with what passes by. libpq
    hands over a row at a time, so rows are gathered and decoded `block_bytes` at once.
    """

    def __init__(self, wanted: Int64s, block_bytes: int = 1 << 20) -> None:
        self._wanted = wanted
        self._block_bytes = block_bytes
        self._gathered = bytearray()
        self._header_passed = False
        self._rows_passed = 0
        self._kept: list[Int64s] = []

    def write(self, data: bytes) -> int:
        """Takes the next bytes of the stream, wherever they are cut."""
        self._gathered += data
        if len(self._gathered) >= self._block_bytes:
            self._decode()
        return len(data)

    def instants(self) -> Int64s:
        """The rows kept so far, in microseconds since 1970 UTC."""
        self._decode()
        return np.concatenate([np.empty(0, dtype=np.int64), *self._kept])

    def _decode(self) -> None:
        start = 0 if self._header_passed else len(_HEADER)
        if len(self._gathered) < start:
            return
        self._header_passed = True
        count = (len(self._gathered) - start) // _TIME.itemsize
        end = start + count * _TIME.itemsize
        rows = np.frombuffer(bytes(self._gathered[start:end]), dtype=_TIME)
        first, last = np.searchsorted(self._wanted, [self._rows_passed, self._rows_passed + count])
        self._kept.append(rows["instant"][self._wanted[first:last] - self._rows_passed].astype(np.int64) + _EPOCH_2000)
        self._rows_passed += count
        del self._gathered[:end]
