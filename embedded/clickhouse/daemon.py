"""Starting the ClickHouse process and knowing when it serves. Runs in the starter, never in the process itself."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Final

from embedded.clickhouse.wire import Disconnected, Malformed, SocketSource, string, varint
from embedded.process import Identity, await_ready, spawn

STOP_SIGNALS: Final = ((signal.SIGTERM, 30.0), (signal.SIGKILL, 10.0))
_START_SECONDS: Final = 60.0
_REVISION: Final = 54440


def answers(port: int, user: str, password: str) -> bool:
    """Whether a server on this port greets this user."""
    with contextlib.suppress(OSError, Disconnected, Malformed):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            hello = varint(0) + string("embedded") + varint(1) + varint(0) + varint(_REVISION)
            sock.sendall(hello + string("") + string(user) + string(password))
            return SocketSource(sock).varint() == 0
    return False


def start(home: Path, port: int, user: str, password: str) -> Identity:
    """Start the process on a port. Returns once it greets its user."""
    root = home / "clickhouse"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    access = root / "access.json"
    access.touch(mode=0o600)
    os.chmod(access, 0o600)
    access.write_text(json.dumps({"user": user, "password": password}))
    log = home / "logs" / "clickhouse.log"
    package_root = str(Path(__file__).resolve().parents[2])
    search = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "embedded.clickhouse", "--root", str(root), "--port", str(port)]
    command += ["--access", str(access), "--engine-log", str(home / "logs" / "clickhouse-engine.log")]
    who = spawn(command, log=log, cwd=root, env={"PYTHONPATH": search, "TZ": "UTC"})
    await_ready(who, lambda: answers(port, user, password), "ClickHouse", log, _START_SECONDS)
    return who
