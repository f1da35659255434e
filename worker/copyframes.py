"""Takes the answer to a COPY … TO STDOUT (FORMAT binary) apart, as PostgreSQL's protocol 3 puts it on the wire. Pure.

Every row comes as a CopyData message: 'd', a length, the row. Where all rows have the same size, messages lie at a
fixed stride, and a buffer full of them is recognised at once; rows of any size are stepped over from length to length,
the only step taken row by row. Anything else between them (the format's header, notices, parameter changes, errors,
the end) is taken singly.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"PGCOPY\n\xff\r\n\x00"
HEADER_BYTES = 19
TRAILER = b"\xff\xff"
MESSAGE_HEAD = 5
SMALLEST_ROW = 7
"""Length of a message that holds a row: itself, the number of fields, a field. The one that ends a copy has 6."""
LARGEST_MESSAGE = 2**30

OnRows = Callable[[memoryview, "NDArray[np.int64] | None"], None]
_HEAD = struct.Struct(">Bi")
_SIZE = struct.Struct(">i")


class ProtocolError(Exception):
    """What came is not what the protocol allows, or not rows of the size that was promised."""


class CopyFrames:
    """Feeds on bytes as they come and hands rows on to `on_rows(rows, starts)`, whole, each with its message's head.

    `rows` is valid during the call only. `starts` says where each message begins, and is None where all rows have
    `row_bytes`. Without `row_bytes` a row may have any size.

    `failure` holds the fields of an error the server reported, by their one-letter names; `ready` is true once the
    server awaits the next statement, `complete` once the copy reached its end.
    """

    def __init__(self, row_bytes: int | None, on_rows: OnRows) -> None:
        self.failure: dict[str, str] | None = None
        self.complete = False
        self.ready = False
        self._on_rows = on_rows
        self._row_bytes = row_bytes
        self._stride = MESSAGE_HEAD + (row_bytes or 0)
        self._pending = bytearray()
        self._awaited = MESSAGE_HEAD
        self._dtype = np.dtype(
            {"names": ["kind", "size"], "formats": ["u1", ">i4"], "offsets": [0, 1], "itemsize": self._stride}
        )

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Takes the next bytes. Raises `ProtocolError`."""
        if self._pending:
            # A message longer than many pieces is looked at once it is all there.
            self._pending += data
            if len(self._pending) < self._awaited:
                return
            data = self._pending
        buffer = memoryview(data)
        position = 0
        while not self.ready:
            position += self._take_rows(buffer, position) if self._row_bytes else self._step(buffer, position)
            taken = self._take_message(buffer, position)
            if not taken:
                break
            position += taken
        self._pending = bytearray(buffer[position:])
        size = int.from_bytes(self._pending[1:MESSAGE_HEAD], "big") if len(self._pending) >= MESSAGE_HEAD else 0
        self._awaited = max(MESSAGE_HEAD, 1 + size)

    def _take_rows(self, buffer: memoryview, position: int) -> int:
        count = (len(buffer) - position) // self._stride
        if not count:
            return 0
        heads = np.frombuffer(buffer, self._dtype, count, position)
        plain = (heads["kind"] == ord("d")) & (heads["size"] == self._stride - 1)
        if not plain.all():
            count = int(plain.argmin())
        size = count * self._stride
        if size:
            self._on_rows(buffer[position : position + size], None)
        return size

    def _step(self, buffer: memoryview, begin: int) -> int:
        """Rows of any size, from the head of one to the next. What is no row, or not all there, ends them."""
        passed: list[int] = []
        note, read = passed.append, _SIZE.unpack_from
        position, end = begin, len(buffer)
        try:
            while True:
                # Messages of every kind say their length in the same place; which are rows is seen afterwards.
                (size,) = read(buffer, position + 1)
                if size < 4:
                    break
                note(position)
                position += size + 1
        except struct.error:
            pass
        if passed and position > end:
            position = passed.pop()
        if not passed or buffer[begin + MESSAGE_HEAD : begin + MESSAGE_HEAD + len(SIGNATURE)] == SIGNATURE:
            return 0
        starts = np.array(passed, np.int64)
        ends = np.append(starts[1:], position)
        rows = (np.frombuffer(buffer, np.uint8)[starts] == ord("d")) & (ends - starts > SMALLEST_ROW)
        count = len(rows) if rows.all() else int(rows.argmin())
        if count:
            position = int(ends[count - 1])
            self._on_rows(buffer[begin:position], starts[:count] - begin)
            return position - begin
        return 0

    def _take_message(self, buffer: memoryview, position: int) -> int:
        """One message, whatever it is; returns its length, 0 while it is not all there."""
        if len(buffer) - position < MESSAGE_HEAD:
            return 0
        kind = bytes(buffer[position : position + 1])
        size = int.from_bytes(buffer[position + 1 : position + 5], "big", signed=True)
        if size < 4 or size > LARGEST_MESSAGE:
            raise ProtocolError(f"a message of {size} bytes")
        whole = size + 1
        if len(buffer) - position < whole:
            return 0
        body = bytes(buffer[position + MESSAGE_HEAD : position + whole])
        if kind == b"d":
            self._take_data(body)
        elif kind == b"E":
            self.failure = fields(body)
        elif kind == b"c":
            pass
        elif kind == b"Z":
            self.ready = True
        elif kind not in (b"H", b"C", b"N", b"S", b"A"):
            raise ProtocolError(f"a message of kind {kind!r}")
        return whole

    def _take_data(self, body: bytes) -> None:
        if body.startswith(SIGNATURE):
            extension = int.from_bytes(body[15:19], "big")
            body = body[HEADER_BYTES + extension :]
        if body == TRAILER or (self._row_bytes and body[self._row_bytes :] == TRAILER):
            self.complete = True
            body = body[: -len(TRAILER)]
        if body and len(body) != (self._row_bytes or len(body)):
            raise ProtocolError(f"a row of {len(body)} bytes where {self._row_bytes} were promised")
        if body:
            row = _HEAD.pack(ord("d"), len(body) + 4) + body
            self._on_rows(memoryview(row), None if self._row_bytes else np.zeros(1, np.int64))


def fields(body: bytes) -> dict[str, str]:
    """The fields of an ErrorResponse or NoticeResponse, by their one-letter names (`C` is the SQLSTATE)."""
    return {
        part[:1].decode("ascii", "replace"): part[1:].decode("utf-8", "replace")
        for part in body.rstrip(b"\x00").split(b"\x00")
        if part
    }
