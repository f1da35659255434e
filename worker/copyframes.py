"""Takes the answer to a COPY … TO STDOUT (FORMAT binary) apart, as PostgreSQL's protocol 3 puts it on the wire. Pure.

Every row comes as a CopyData message: 'd', a length, the row. Where all rows have the same size, messages lie at a
fixed stride, and a buffer full of them is recognised at once instead of row by row. Anything else between them
(the format's header, notices, parameter changes, errors, the end) is taken singly.
"""

from __future__ import annotations

import struct

import numpy as np

SIGNATURE = b"PGCOPY\n\xff\r\n\x00"
HEADER_BYTES = 19
TRAILER = b"\xff\xff"
MESSAGE_HEAD = 5


class ProtocolError(Exception):
    """What came is not what the protocol allows, or not rows of the size that was promised."""


class CopyFrames:
    """Feeds on bytes as they come; `rows` grows by whole messages of one row each, head included.

    `failure` holds the fields of an error the server reported, by their one-letter names; `ready` is true once the
    server awaits the next statement, `complete` once the copy reached its end.
    """

    def __init__(self, row_bytes: int) -> None:
        self.stride = MESSAGE_HEAD + row_bytes
        self.rows = bytearray()
        self.failure: dict[str, str] | None = None
        self.complete = False
        self.ready = False
        self._row_bytes = row_bytes
        self._head = struct.pack(">ci", b"d", row_bytes + 4)
        self._pending = b""
        self._dtype = np.dtype(
            {"names": ["kind", "size"], "formats": ["u1", ">i4"], "offsets": [0, 1], "itemsize": self.stride}
        )

    def feed(self, data: bytes) -> None:
        """Takes the next bytes. Raises `ProtocolError`."""
        buffer = self._pending + data if self._pending else data
        position = 0
        while not self.ready:
            position += self._take_rows(buffer, position)
            taken = self._take_message(buffer, position)
            if not taken:
                break
            position += taken
        self._pending = buffer[position:]

    def _take_rows(self, buffer: bytes, position: int) -> int:
        count = (len(buffer) - position) // self.stride
        if not count:
            return 0
        heads = np.frombuffer(buffer, self._dtype, count, position)
        plain = (heads["kind"] == ord("d")) & (heads["size"] == self._row_bytes + 4)
        if not plain.all():
            count = int(plain.argmin())
        size = count * self.stride
        if size:
            self.rows += memoryview(buffer)[position : position + size]
        return size

    def _take_message(self, buffer: bytes, position: int) -> int:
        """One message, whatever it is; returns its length, 0 while it is not all there."""
        if len(buffer) - position < MESSAGE_HEAD:
            return 0
        kind, size = (
            buffer[position : position + 1],
            int.from_bytes(buffer[position + 1 : position + 5], "big", signed=True),
        )
        if size < 4 or size > 2**30:
            raise ProtocolError(f"a message of {size} bytes")
        whole = size + 1
        if len(buffer) - position < whole:
            return 0
        body = buffer[position + MESSAGE_HEAD : position + whole]
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
        if body.endswith(TRAILER) and len(body) % self._row_bytes == len(TRAILER):
            self.complete = True
            body = body[: -len(TRAILER)]
        if len(body) == self._row_bytes:
            self.rows += self._head + body
        elif body:
            raise ProtocolError(f"a row of {len(body)} bytes where {self._row_bytes} were promised")

    def take(self, size: int) -> bytes:
        """The first `size` bytes of `rows`, removed from it."""
        taken = bytes(memoryview(self.rows)[:size])
        del self.rows[:size]
        return taken


def fields(body: bytes) -> dict[str, str]:
    """The fields of an ErrorResponse or NoticeResponse, by their one-letter names (`C` is the SQLSTATE)."""
    return {
        part[:1].decode("ascii", "replace"): part[1:].decode("utf-8", "replace")
        for part in body.rstrip(b"\x00").split(b"\x00")
        if part
    }
