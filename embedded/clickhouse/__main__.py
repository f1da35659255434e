"""The ClickHouse process: opens the data directory, listens, and closes both cleanly on SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
from pathlib import Path

from embedded.clickhouse.engine import Engine
from embedded.clickhouse.server import Server


def main() -> int:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m embedded.clickhouse")
    parser.add_argument("--root", type=Path, required=True, help="folder of the data and the configuration")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--access", type=Path, required=True, help='file holding {"user": …, "password": …}')
    parser.add_argument("--engine-log", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    access = json.loads(arguments.access.read_text())
    root = arguments.root.resolve()
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    engine = Engine(root, arguments.engine_log.resolve())
    server = Server(engine, arguments.port, access["user"], access["password"])
    logging.info("listening on port %d", server.port)
    serving = threading.Thread(target=server.serve, name="accept", daemon=True)
    serving.start()
    # A folder removed under a running engine leaves a process nobody can find again: it ends by itself.
    while not stopping.wait(2.0):
        if not (root / "data").exists():
            logging.error("the data folder is gone")
            break
    logging.info("stopping")
    server.close()
    engine.close()
    logging.info("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
