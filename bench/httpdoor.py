"""As much of ClickHouse's HTTP interface as dlt loads through, before an embedded engine that has none.

Takes what clickhouse-connect asks when it connects, and inserts of files. A file that comes in is laid where the
engine, which runs on this machine, reads it itself: no more work than a server's own HTTP port would make of it.
"""

from __future__ import annotations

import gzip
import json
import re
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow.parquet as parquet
from clickhouse_driver import Client
from clickhouse_driver.errors import Error

from worker.sink import literal, quoted

INSERT = re.compile(
    r"^\s*INSERT INTO\s+(?P<table>\S+)\s*(?:\([^)]*\))?\s*FORMAT\s+(?P<form>Parquet|JSONEachRow)\s*$", re.IGNORECASE
)
FORMAT = re.compile(r"\s+FORMAT\s+(?P<format>\w+)\s*;?\s*$", re.I)
GZIPPED = b"\x1f\x8b"


class _Door(BaseHTTPRequestHandler):
    """One request is one statement."""

    protocol_version = "HTTP/1.1"
    address: dict[str, Any]
    folder: Path

    def _answer(self, code: int, body: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        """Whether anybody is there."""
        self._answer(200, b"Ok.\n")

    def do_POST(self) -> None:
        """Runs a statement, given as a parameter or as the body; a body beside a parameter is data."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        body = self._body()
        if body.startswith(GZIPPED):
            body = gzip.decompress(body)
        statement, data = (asked["query"], body) if "query" in asked else (body.decode(), b"")
        if INSERT.match(statement.partition("\n")[0]) and not data:
            head, _, data = body.partition(b"\n")
            statement = head.decode()
        client = Client(**{**self.address, "database": asked.get("database", self.address["database"])})
        try:
            found = INSERT.match(statement)
            answer = (
                self._insert(client, found["table"], found["form"], data) if found else self._run(client, statement)
            )
            self._answer(
                200, answer, X_ClickHouse_Summary="{}", X_ClickHouse_Format="Native", X_ClickHouse_Timezone="UTC"
            )
        except Error as error:
            code = str(getattr(error, "code", 0))
            self._answer(500, str(error).encode(), X_ClickHouse_Exception_Code=code)
        finally:
            client.disconnect()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _insert(self, client: Client, table: str, form: str, data: bytes) -> bytes:
        with tempfile.NamedTemporaryFile(dir=self.folder) as file:
            file.write(data)
            file.flush()
            is_parquet = form.lower() == "parquet"
            names = parquet.read_schema(file.name).names if is_parquet else json.loads(data.partition(b"\n")[0])
            columns = ", ".join(map(quoted, names))
            client.execute(
                f"INSERT INTO {table} ({columns}) SELECT {columns} FROM file({literal(file.name)}, {literal(form)})",  # noqa: S608
                settings={"date_time_input_format": "best_effort"},
            )
        return b""

    def _run(self, client: Client, statement: str) -> bytes:
        form = FORMAT.search(statement)
        if not form:
            rows = client.execute(statement)
            return "".join("\t".join(map(str, row)) + "\n" for row in rows).encode() if isinstance(rows, list) else b""
        path = self.folder / f"{uuid.uuid4().hex}.out"
        target = f"INSERT INTO FUNCTION file({literal(str(path))}, {literal(form['format'])})"
        client.execute(f"{target} {statement[: form.start()]}")
        try:
            return path.read_bytes() if path.exists() else b""
        finally:
            path.unlink(missing_ok=True)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@contextmanager
def opened(address: dict[str, Any], folder: Path) -> Iterator[int]:
    """Listens on a free port of this machine, which it yields, before the ClickHouse that clickhouse-driver reaches so."""
    door = type("Door", (_Door,), {"address": address, "folder": folder})
    server = ThreadingHTTPServer(("127.0.0.1", 0), door)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
