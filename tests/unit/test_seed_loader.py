"""The binary COPY format, without a server."""

from __future__ import annotations

import struct

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from seed import loader

EPOCH_2000 = 946_684_800_000_000


def test_events_are_encoded_field_by_field() -> None:
    encoded = loader.encode_events(np.array([7, 2**40]), np.array([EPOCH_2000 + 5, 0]))
    expected = struct.pack(">hiqiq", 2, 8, 7, 8, 5) + struct.pack(">hiqiq", 2, 8, 2**40, 8, -EPOCH_2000)
    assert encoded == b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0) + expected + struct.pack(">h", -1)


@settings(deadline=None)
@given(
    st.lists(st.integers(-(2**50), 2**50), max_size=40),
    st.data(),
)
def test_wanted_rows_are_kept_wherever_the_stream_is_cut(instants: list[int], data: st.DataObject) -> None:
    wanted = data.draw(st.sets(st.integers(0, len(instants) - 1)) if instants else st.just(set()))
    stream = b"PGCOPY\n\xff\r\n\0" + bytes(8)
    stream += b"".join(struct.pack(">hiq", 1, 8, instant) for instant in instants) + b"\xff\xff"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    block_bytes = data.draw(st.integers(1, 64))
    target = loader.TimesAt(np.array(sorted(wanted), dtype=np.int64), block_bytes)
    for first, last in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        assert target.write(stream[first:last]) == last - first
    assert target.instants().tolist() == [instants[index] + EPOCH_2000 for index in sorted(wanted)]
