"""What hostile, broken or vanishing clients do to the ClickHouse server: nothing, beyond their own connection."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clickhouse_cityhash.cityhash import CityHash128
from clickhouse_driver import Client
from clickhouse_driver.block import ColumnOrientedBlock
from hypothesis import example, given
from hypothesis import strategies as st

from embedded import stack
from embedded.clickhouse import native, wire
from embedded.clickhouse.wire import Disconnected, Malformed, Source, string, varint
from tests.embedded.conftest import Connect


class Given(Source):
    """Bytes of a test; their end is the client's end."""

    def __init__(self, content: bytes, step: int = 1 << 20) -> None:
        super().__init__()
        self._parts = [content[at : at + step] for at in range(0, len(content), step)]

    def _more(self, wanted: int) -> None:
        if not self._parts:
            raise Disconnected
        self.buf += self._parts.pop(0)


def no_zstd(path: str) -> bytes:
    raise AssertionError(path)


def hello(address: dict[str, Any]) -> bytes:
    return (
        varint(0) + string("test") + varint(1) + varint(0) + varint(54440)
        + string("") + string(address["user"]) + string(address["password"])
    )  # fmt: skip


def query(sql: str, compressed: int = 0) -> bytes:
    info = b"\x01" + string("") * 3 + b"\x01" + string("") * 3 + varint(1) * 3 + string("") + varint(0)
    return varint(1) + string("") + info + string("") + varint(2) + varint(compressed) + string(sql)


def data(body: bytes) -> bytes:
    return varint(2) + string("") + native.BLOCK_INFO + body


EMPTY = data(varint(0) + varint(0))


@contextlib.contextmanager
def raw(address: dict[str, Any], *, greet: bool = True) -> Iterator[socket.socket]:
    with socket.create_connection((address["host"], address["port"]), timeout=60) as sock:
        if greet:
            sock.sendall(hello(address))
            assert sock.recv(4096)[0] == 0
        yield sock


def rest_of(sock: socket.socket) -> bytes:
    """What the server still sends before it closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(1 << 16):
            received += part
    return received


def resident_bytes(pid: int | str = "self") -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


@given(st.binary(min_size=1, max_size=200), st.sampled_from(["hello", "packet", "query", "data"]))
@example(b"GET / HTTP/1.1\r\n\r\n", "hello")
@example(b"\x02\x00" + b"\xff" * 9 + b"\x01", "packet")
@example(varint(1) + varint(1 << 62), "packet")
@example(varint(0) + varint(1 << 40), "hello")
@example(native.BLOCK_INFO + varint(1) + varint(1 << 40) + string("a") + string("Int64"), "data")
@example(native.BLOCK_INFO + varint(1 << 50) + varint(1), "data")
@example(native.BLOCK_INFO + varint(1) + varint(1) + string("a") + string("String") + varint(1 << 60), "data")
def test_garbage_closes_its_connection_only(address: dict[str, Any], garbage: bytes, where: str) -> None:
    with raw(address, greet=where != "hello") as sock:
        if where == "query":
            garbage = varint(1) + garbage
        if where == "data":
            sock.sendall(query("SELECT 1") + varint(2) + string(""))
        sock.sendall(garbage)
        sock.shutdown(socket.SHUT_WR)
        rest_of(sock)
    with raw(address) as sock:
        sock.sendall(varint(4))
        assert sock.recv(16) == varint(4)


@given(st.binary(max_size=400))
def test_a_walk_over_garbage_ends(garbage: bytes) -> None:
    with contextlib.suppress(Disconnected, Malformed, native.UnknownLayout):
        native.read_block(Given(garbage))


@given(st.text(max_size=40) | st.text("(),'`ATupleArrayNullable 1", max_size=60))
def test_any_type_name_has_a_layout_or_none(kind: str) -> None:
    with contextlib.suppress(native.UnknownLayout):
        native.layout(kind)


def test_deeply_nested_types_are_refused() -> None:
    with pytest.raises(native.UnknownLayout):
        native.layout("Array(" * 100_000 + "Int8" + ")" * 100_000)


@given(
    st.lists(st.binary(max_size=300), min_size=1, max_size=40),
    st.integers(1, 50),
    st.sampled_from(["String", "Nullable(String)", "Array(String)", "Map(String, String)"]),
)
def test_a_blocks_end_is_found_however_it_arrives(values: list[bytes], step: int, kind: str) -> None:
    strings = b"".join(varint(len(value)) + value for value in values)
    rows = len(values)
    offsets = struct.pack(f"<{rows}Q", *range(1, rows + 1))
    body = {
        "String": strings,
        "Nullable(String)": b"\0" * rows + strings,
        "Array(String)": offsets + strings,
        "Map(String, String)": offsets + strings + strings,
    }[kind]
    block = varint(2) + varint(rows) + string("a") + string(kind) + body + string("b") + string("Int8") + b"\7" * rows
    source = Given(block + b"next", step)
    found = native.read_block(source)
    assert found.body == block
    assert found.columns == (("a", kind), ("b", "Int8"))
    assert source.take(4) == b"next"


@given(st.binary(max_size=2000), st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_frame_is_noticed(content: bytes, at: int, flip: int) -> None:
    frame = wire.frame(content)
    assert wire.read_frame(Given(frame), no_zstd) == content
    at %= len(frame)
    damaged = frame[:at] + bytes([frame[at] ^ flip]) + frame[at + 1 :]
    with pytest.raises((Malformed, Disconnected)):
        wire.read_frame(Given(damaged), no_zstd)


def test_an_announced_length_allocates_nothing() -> None:
    before = resident_bytes()
    for frame in (
        struct.pack("<QQBII", 0, 0, 0x82, 1 << 30, 1 << 30),
        struct.pack("<QQBII", 0, 0, 0x82, 20, 0xFFFFFFFF),
    ):
        with pytest.raises((Malformed, Disconnected)):
            wire.read_frame(Given(frame + b"x" * 100), no_zstd)
    with pytest.raises((Malformed, Disconnected)):
        native.read_block(Given(varint(1) + varint(1 << 27) + string("a") + string("Int64") + b"x" * 100))
    assert resident_bytes() - before < 100_000_000


def test_zstd_and_uncompressed_frames_are_understood(client: Client, connect: Connect, tmp_path: Any) -> None:
    client.execute("CREATE TABLE t (a Int64, b String) ENGINE = MergeTree ORDER BY a")
    body = varint(2) + varint(2) + string("a") + string("Int64") + struct.pack("<2q", 1, 2)
    body += string("b") + string("String") + string("x") + string("y")
    content = native.BLOCK_INFO + body
    # The engine itself packs the frame's body: no ZSTD library is installed here.
    path = tmp_path / "body.zst"
    connect().execute(
        f"INSERT INTO FUNCTION file('{path}', 'RawBLOB', 'c String', 'zstd') SELECT unhex('{content.hex()}')"
    )
    sent = [b"", b""]
    for at, (method, packed) in enumerate([(0x90, path.read_bytes()), (0x02, content)]):
        framed = struct.pack("<BII", method, len(packed) + 9, len(content)) + packed
        checksum = CityHash128(framed)
        sent[at] = struct.pack("<QQ", checksum >> 64, checksum & (1 << 64) - 1) + framed
    connection = client.connection
    address = {
        "host": connection.host,
        "port": connection.port,
        "user": connection.user,
        "password": connection.password,
    }
    for frame in sent:
        with raw(address) as sock:
            database = client.connection.database
            end = wire.frame(native.BLOCK_INFO + varint(0) + varint(0))
            packet = varint(2) + string("")
            sock.sendall(query(f"INSERT INTO {database}.t VALUES", 1) + packet + end)
            sock.sendall(packet + frame + packet + end)
            received = b""
            while not received.endswith(varint(5)):
                received += sock.recv(4096)
                assert b"DB::Exception" not in received
    assert client.execute("SELECT a, b, count() FROM t GROUP BY a, b ORDER BY a") == [(1, "x", 2), (2, "y", 2)]


def test_a_wrong_checksum_inserts_nothing(client: Client, address: dict[str, Any]) -> None:
    client.execute("CREATE TABLE t (a Int64) ENGINE = MergeTree ORDER BY a")
    end = wire.frame(native.BLOCK_INFO + varint(0) + varint(0))
    block = bytearray(wire.frame(native.BLOCK_INFO + varint(1) + varint(1) + string("a") + string("Int64") + bytes(8)))
    block[3] ^= 1
    packet = varint(2) + string("")
    with raw(address) as sock:
        sock.sendall(query(f"INSERT INTO {client.connection.database}.t VALUES", 1) + packet + end)
        sock.sendall(packet + bytes(block) + packet + end)
        assert b"checksum" in rest_of(sock)
    assert client.execute("SELECT count() FROM t") == [(0,)]


@pytest.mark.parametrize("compression", [False, "lz4"])
def test_a_client_leaving_mid_insert_inserts_nothing(client: Client, connect: Connect, compression: Any) -> None:
    client.execute("CREATE TABLE t (a Int64) ENGINE = MergeTree ORDER BY a")
    for blocks in (0, 1, 3):
        leaver = connect(compression=compression)
        leaver.execute("SELECT 1")
        connection = leaver.connection
        connection.send_query("INSERT INTO t VALUES")
        connection.send_external_tables(None)
        leaver.receive_sample_block()
        for _ in range(blocks):
            connection.send_data(ColumnOrientedBlock([("a", "Int64")], [list(range(1000))]))
        connection.disconnect()
    # The server notices each departure in its own thread; what it would have written would show within this wait.
    client.execute("SELECT sleep(0.3)")
    assert client.execute("SELECT count() FROM t") == [(0,)]


def test_half_a_block_inserts_nothing(client: Client, address: dict[str, Any]) -> None:
    client.execute("CREATE TABLE t (a Int64) ENGINE = MergeTree ORDER BY a")
    whole = data(varint(1) + varint(3) + string("a") + string("Int64") + bytes(24))
    choose = random.Random(7)
    for _ in range(10):
        with raw(address) as sock:
            sock.sendall(query(f"INSERT INTO {client.connection.database}.t VALUES") + EMPTY)
            sock.sendall(whole + (whole + EMPTY)[: choose.randrange(len(whole) + 1)])
            sock.shutdown(socket.SHUT_WR)
            rest_of(sock)
    assert client.execute("SELECT count() FROM t") == [(0,)]


def test_a_block_with_other_columns_is_refused(client: Client, address: dict[str, Any]) -> None:
    client.execute("CREATE TABLE t (a Int64) ENGINE = MergeTree ORDER BY a")
    with raw(address) as sock:
        sock.sendall(query(f"INSERT INTO {client.connection.database}.t VALUES") + EMPTY)
        sock.sendall(data(varint(1) + varint(1) + string("z") + string("Int64") + bytes(8)) + EMPTY)
        sock.sendall(varint(4))
        received = b""
        while not received.endswith(varint(4)):
            received += sock.recv(4096)
        assert b"Not found column a" in received
    assert client.execute("SELECT count() FROM t") == [(0,)]


def test_clients_that_say_nothing_hold_up_nobody(address: dict[str, Any], client: Client) -> None:
    with contextlib.ExitStack() as stack:
        for greet in (True, False) * 20:
            stack.enter_context(raw(address, greet=greet))
        assert client.execute("SELECT 1") == [(1,)]


def test_only_the_loopback_interface_is_served(address: dict[str, Any]) -> None:
    with open("/proc/net/tcp") as file:
        rows = [line.split() for line in file.readlines()[1:]]
    listening = [row[1] for row in rows if row[3] == "0A"]
    mine = [where for where in listening if int(where.split(":")[1], 16) == address["port"]]
    assert mine == [f"0100007F:{address['port']:04X}"]


def test_a_slow_reader_costs_bounded_memory(home: Path, address: dict[str, Any], client: Client) -> None:
    pid = stack.status(home)["clickhouse"].pid
    assert pid is not None
    with raw(address) as sock:
        before = resident_bytes(pid)
        sock.sendall(query("SELECT number FROM numbers(100000000000)") + EMPTY)
        sock.recv(1 << 16)
        # Long enough to produce gigabytes, were it not held back.
        client.execute("SELECT sleep(1)")
        assert resident_bytes(pid) - before < 500_000_000
    deadline = time.monotonic() + 30
    listed = "SELECT count() FROM system.processes WHERE query LIKE '%100000000000%' AND query NOT LIKE '%processes%'"
    while client.execute(listed) != [(0,)]:
        assert time.monotonic() < deadline
