"""The copy protocol, cut into pieces anywhere."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.copyframes import SIGNATURE, CopyFrames, ProtocolError

ROW = 50


def message(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">ci", kind, len(body) + 4) + body


def row(number: int) -> bytes:
    return struct.pack(">q", number).rjust(ROW, b"\x01")


noise = st.sampled_from(
    [
        b"",
        message(b"N", b"SNOTICE\x00Mhello\x00\x00"),
        message(b"S", b"TimeZone\x00UTC\x00"),
        message(b"A", b"\x00" * 9),
    ]
)


@st.composite
def copies(draw: st.DrawFn) -> tuple[list[int], bytes]:
    numbers = draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40))
    header = SIGNATURE + b"\x00" * 8
    parts = [message(b"H", b"\x01\x00\x00")]
    if numbers:
        # The server puts the format's header in front of the first row, in one message.
        parts.append(message(b"d", header + row(numbers[0])))
        for number in numbers[1:]:
            parts += [draw(noise), message(b"d", row(number))]
        parts.append(message(b"d", b"\xff\xff"))
    else:
        parts.append(message(b"d", header + b"\xff\xff"))
    parts += [draw(noise), message(b"c", b""), message(b"C", b"COPY\x00"), message(b"Z", b"T")]
    return numbers, b"".join(parts)


@given(copies(), st.data())
def test_rows_come_out_whole_however_the_bytes_are_cut(copy: tuple[list[int], bytes], data: st.DataObject) -> None:
    numbers, stream = copy
    rows = bytearray()
    frames = CopyFrames(ROW, lambda some, starts: rows.extend(some))
    position = 0
    while position < len(stream):
        size = data.draw(st.integers(1, 200))
        frames.feed(stream[position : position + size])
        position += size
    assert frames.ready
    assert frames.complete
    assert frames.failure is None
    assert bytes(rows) == b"".join(message(b"d", row(number)) for number in numbers)


def test_an_error_is_kept_with_its_sqlstate() -> None:
    frames = CopyFrames(ROW, lambda rows, starts: None)
    body = b"SERROR\x00C57014\x00Mcanceling statement due to statement timeout\x00\x00"
    frames.feed(message(b"d", row(1)) + message(b"E", body) + message(b"Z", b"E"))
    assert frames.failure is not None
    assert frames.failure["C"] == "57014"
    assert frames.ready
    assert not frames.complete


@pytest.mark.parametrize(
    "bad",
    [
        message(b"d", b"short"),
        message(b"d", b"x" * (ROW + 1)),
        struct.pack(">ci", b"d", 2**31 - 1),
        b"q\x00\x00\x00\x04",
    ],
)
def test_what_the_protocol_does_not_allow_is_refused(bad: bytes) -> None:
    with pytest.raises(ProtocolError):
        CopyFrames(ROW, lambda rows, starts: None).feed(message(b"d", row(1)) + bad)
