"""Reading and writing the native protocol's primitives and compressed frames. Knows neither packets nor the engine.

Whatever a peer sends, memory grows with the bytes that have arrived, never with a length it merely announced.
"""

from __future__ import annotations

import os
import socket
import struct
import tempfile
from collections.abc import Callable
from typing import Final

import lz4.block
from clickhouse_cityhash.cityhash import CityHash128

MAX_BYTES: Final = 1 << 30
"""Longest value, frame or block accepted: ClickHouse's own limit for a compressed frame."""

_MAX_NAME: Final = 1 << 16
_RECEIVE: Final = 1 << 18
_FRAME_HEADER: Final = struct.Struct("<BII")
_CHECKSUM: Final = struct.Struct("<QQ")
_LZ4, _ZSTD, _NONE = 0x82, 0x90, 0x02


class Disconnected(Exception):
    """The peer is gone."""


class Malformed(Exception):
    """The peer's bytes are not the protocol; the connection cannot go on. `code` is ClickHouse's."""

    def __init__(self, message: str, code: int = 101) -> None:
        super().__init__(message)
        self.code = code


class Source:
    """Bytes consumed from the front of a buffer that fills on demand.

    `buf[pos:]` is what has arrived and is not consumed yet; what lies before `pos` stays until `compact`, so that a
    whole block can be cut out once its end is known.
    """

    def __init__(self) -> None:
        self.buf = bytearray()
        self.pos = 0

    def _more(self, wanted: int) -> None:
        raise NotImplementedError

    def need(self, count: int) -> None:
        """Wait until `count` bytes can be consumed."""
        if count > MAX_BYTES:
            raise Malformed(f"A length of {count} bytes is over the limit of {MAX_BYTES}.", 131)
        while (missing := count - (len(self.buf) - self.pos)) > 0:
            if len(self.buf) > 2 * MAX_BYTES:
                raise Malformed("A block is over the limit.", 131)
            self._more(missing)

    def compact(self) -> None:
        """Forget what is consumed."""
        if self.pos:
            del self.buf[: self.pos]
            self.pos = 0

    def skip(self, count: int) -> None:
        """Consume `count` bytes."""
        self.need(count)
        self.pos += count

    def u8(self) -> int:
        """One unsigned byte."""
        self.need(1)
        value = self.buf[self.pos]
        self.pos += 1
        return value

    def fixed(self, layout: struct.Struct) -> tuple[int, ...]:
        """Values of a fixed layout."""
        self.need(layout.size)
        values = layout.unpack_from(self.buf, self.pos)
        self.pos += layout.size
        return values

    def varint(self) -> int:
        """An unsigned LEB128 number of at most 64 bits."""
        value = shift = 0
        while True:
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise Malformed("A variable-length number does not end.")

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        self.need(count)
        value = bytes(memoryview(self.buf)[self.pos : self.pos + count])
        self.pos += count
        return value

    def string(self, limit: int = _MAX_NAME) -> str:
        """A length-prefixed string of at most `limit` bytes."""
        length = self.varint()
        if length > limit:
            raise Malformed(f"A string of {length} bytes is over the limit of {limit}.", 131)
        return self.take(length).decode("utf-8", "surrogateescape")


class SocketSource(Source):
    """Bytes of a socket. Raises `Disconnected` at its end."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self._sock = sock
        self._received = bytearray(_RECEIVE)

    def _more(self, wanted: int) -> None:
        try:
            size = self._sock.recv_into(self._received)
        except OSError as error:
            raise Disconnected(str(error)) from None
        if not size:
            raise Disconnected("The client closed the connection.")
        with memoryview(self._received)[:size] as received:
            self.buf += received


class FrameSource(Source):
    """The content of the compressed frames of another source; each frame's checksum is verified."""

    def __init__(self, frames: Source, unzstd: Callable[[str], bytes]) -> None:
        super().__init__()
        self._frames = frames
        self._unzstd = unzstd

    def _more(self, wanted: int) -> None:
        self.buf += read_frame(self._frames, self._unzstd)
        self._frames.compact()


def read_frame(source: Source, unzstd: Callable[[str], bytes]) -> bytes:
    """The content of one frame: checksum (high word first), method, both sizes, body. ZSTD bodies go to `unzstd`."""
    high, low = source.fixed(_CHECKSUM)
    start = source.pos
    method, size, content_size = source.fixed(_FRAME_HEADER)
    if size < _FRAME_HEADER.size or size > MAX_BYTES or content_size > MAX_BYTES:
        raise Malformed("The sizes of a compressed frame are out of range.", 42)
    body_start = source.pos
    source.skip(size - _FRAME_HEADER.size)
    with memoryview(source.buf) as view:
        if CityHash128(bytes(view[start : start + size])) != high << 64 | low:
            raise Malformed("The checksum of a compressed frame does not match.", 40)
        body = bytes(view[body_start : start + size])
    content: bytes
    if method == _NONE:
        content = body
    elif method == _LZ4:
        # LZ4 cannot shrink more than 255 to 1, so a larger claim is a lie told to make us allocate.
        if content_size > 255 * len(body) + 64:
            raise Malformed("The sizes of a compressed frame contradict each other.", 271)
        try:
            content = lz4.block.decompress(body, uncompressed_size=content_size)
        except lz4.block.LZ4BlockError as error:
            raise Malformed(f"A compressed frame cannot be decompressed: {error}.", 271) from None
    elif method == _ZSTD:
        content = _unpack_zstd(body, unzstd)
    else:
        raise Malformed(f"Unknown compression method {method:#x}.", 89)
    if len(content) != content_size:
        raise Malformed("A compressed frame does not hold as many bytes as it says.", 271)
    return content


def _unpack_zstd(body: bytes, unzstd: Callable[[str], bytes]) -> bytes:
    # No ZSTD library is installed beside the engine, which has one: it reads the body from a file.
    with tempfile.NamedTemporaryFile(suffix=".zst") as file:
        file.write(body)
        file.flush()
        return unzstd(os.path.realpath(file.name))


def frame(content: bytes) -> bytes:
    """One LZ4 frame."""
    body = lz4.block.compress(content, store_size=False)
    packed: bytes = _FRAME_HEADER.pack(_LZ4, len(body) + _FRAME_HEADER.size, len(content)) + body
    checksum = CityHash128(packed)
    return _CHECKSUM.pack(checksum >> 64, checksum & 0xFFFF_FFFF_FFFF_FFFF) + packed


def varint(value: int) -> bytes:
    """An unsigned LEB128 number."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def string(value: str) -> bytes:
    """A length-prefixed string."""
    encoded = value.encode("utf-8", "surrogateescape")
    return varint(len(encoded)) + encoded
