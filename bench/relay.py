"""A TCP relay that keeps every byte back for a while, as a long way would: `python -m bench.relay SECONDS HOST:PORT…`.

Prints its ports, one a line in the order of the targets, then serves until its standard input is closed. Bandwidth is
not limited: what comes in a stream leaves in the same stream, later.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence

CHUNK = 1 << 18
IN_FLIGHT = 256
"""Pieces under way in one direction of one connection before its sender has to wait."""


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    """Carries one direction of one connection to its end."""
    clock = asyncio.get_running_loop().time
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(IN_FLIGHT)

    async def deliver() -> None:
        while True:
            due, data = await under_way.get()
            await asyncio.sleep(due - clock())
            if not data:
                with contextlib.suppress(OSError):
                    writer.write_eof()
                return
            writer.write(data)
            await writer.drain()

    delivering = asyncio.create_task(deliver())
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            await under_way.put((clock() + seconds, data))
    await under_way.put((clock() + seconds, b""))
    with contextlib.suppress(OSError):
        await delivering


async def _connect(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int, seconds: float
) -> None:
    """One connection: both directions, until both have ended."""
    try:
        far_reader, far_writer = await asyncio.open_connection(host, port, limit=CHUNK * 4)
    except OSError:
        writer.close()
        return
    try:
        await asyncio.gather(_carry(reader, far_writer, seconds), _carry(far_reader, writer, seconds))
    finally:
        for each in (writer, far_writer):
            each.close()


async def serve(seconds: float, targets: Sequence[tuple[str, int]]) -> None:
    """Relays to each target until standard input ends."""
    servers = []
    for host, port in targets:

        async def accepted(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str = host, port: int = port
        ) -> None:
            await _connect(reader, writer, host, port, seconds)

        servers.append(await asyncio.start_server(accepted, "127.0.0.1", 0, limit=CHUNK * 4))
    for server in servers:
        print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for server in servers:
        server.close()


@contextlib.contextmanager
def relayed(seconds: float, targets: Sequence[tuple[str, int]]) -> Iterator[list[int]]:
    """A relay in a process of its own that adds so many seconds each way; yields its ports on the loopback interface.

    It ends with the block, and with whoever started it, whose end closes its standard input.
    """
    command = [sys.executable, "-m", "bench.relay", str(seconds), *(f"{host}:{port}" for host, port in targets)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdin is not None  # noqa: S101 - asked for
    assert process.stdout is not None  # noqa: S101 - asked for
    try:
        yield [int(process.stdout.readline()) for _ in targets]
    finally:
        process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def main() -> None:
    """Do what the arguments say."""
    targets = []
    for each in sys.argv[2:]:
        host, _, port = each.rpartition(":")
        targets.append((host, int(port)))
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(float(sys.argv[1]), targets))


if __name__ == "__main__":
    main()
