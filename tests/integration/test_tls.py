"""TLS to each server when its DSN says so, and the certificate is checked. Ends of tunnels stand in for servers' own TLS:
the engines of the tests are built without."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trustme
from psycopg2.extensions import connection as Connection

from tests.integration.test_edges import Blackhole
from tests.integration.test_pipeline import add, campaigns
from tests.processes import ROOT, environment
from worker import source as source_module
from worker.celery import create_app
from worker.config import Settings
from worker.errors import TransientSource, Unreachable
from worker.sink import Sink
from worker.source import Source
from worker.streams import STREAMS
from worker.watermarks import WatermarkStore
from worker.windows import ORIGIN, Window

SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"


class Tunnel:
    """Takes TLS on a port of its own and hands the plain bytes on. `asked` answers PostgreSQL's request for TLS."""

    def __init__(self, certificate: trustme.LeafCert, host: str, port: int, *, asked: bool = False) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(self._context)
        self._onward, self._asked = (host, port), asked
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.encrypted = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(plain,), daemon=True).start()

    def _carry(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            if self._asked:
                if plain.recv(8) != SSL_REQUEST:
                    plain.close()
                    return
                plain.sendall(b"S")
            outside = self._context.wrap_socket(plain, server_side=True)
            self.encrypted += 1
            inside = socket.create_connection(self._onward)
            back = threading.Thread(target=_copy, args=(inside, outside), daemon=True)
            back.start()
            _copy(outside, inside)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError, ssl.SSLError):
        while data := source.recv(65_536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture(params=["localhost"])
def tunnels(settings: Settings, authority: trustme.CA, request: pytest.FixtureRequest) -> Iterator[dict[str, Tunnel]]:
    certificate = authority.issue_cert(request.param)
    made = {}
    for name, dsn in (
        ("postgres", settings.postgres_dsn),
        ("clickhouse", settings.clickhouse_dsn),
        ("redis", settings.redis_url),
    ):
        parts = urlsplit(dsn)
        made[name] = Tunnel(certificate, str(parts.hostname), int(parts.port or 0), asked=name == "postgres")
    yield made
    for one in made.values():
        one.close()


def through(dsn: str, scheme: str, port: int, query: str = "") -> str:
    parts = urlsplit(dsn)
    login = f"{parts.username or ''}:{parts.password}"
    return f"{scheme}://{login}@localhost:{port}{parts.path}{query}"


def encrypted(settings: Settings, tunnels: dict[str, Tunnel], trusted: Path) -> Settings:
    return settings.model_copy(
        update={
            "postgres_dsn": through(
                settings.postgres_dsn,
                "postgresql",
                tunnels["postgres"].port,
                f"?sslmode=verify-full&sslrootcert={trusted}",
            ),
            "clickhouse_dsn": through(
                settings.clickhouse_dsn, "clickhouses", tunnels["clickhouse"].port, f"?ca_certs={trusted}"
            ),
            "redis_url": through(
                settings.redis_url, "rediss", tunnels["redis"].port, f"?ssl_cert_reqs=required&ssl_ca_certs={trusted}"
            ),
            "retry_attempts": 1,
        }
    )


def test_each_server_is_reached_over_tls(settings: Settings, tunnels: dict[str, Tunnel], trusted: Path) -> None:
    secure = encrypted(settings, tunnels, trusted)
    with Source(secure) as source:
        source.ping()
    with Sink(secure) as sink:
        assert sink.query("asking", "SELECT 1") == [(1,)]
    store = WatermarkStore(secure)
    store.ping()
    store.close()
    assert all(tunnel.encrypted == 1 for tunnel in tunnels.values())


def test_celery_speaks_to_its_broker_over_tls(settings: Settings, tunnels: dict[str, Tunnel], trusted: Path) -> None:
    app: Any = create_app(encrypted(settings, tunnels, trusted))
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1)
        assert connection.default_channel.client.ping()
    assert app.backend.client.ping()
    app.close()
    assert tunnels["redis"].encrypted >= 2


def test_the_doctor_finds_everything_over_tls(settings: Settings, tunnels: dict[str, Tunnel], trusted: Path) -> None:
    secure = encrypted(settings, tunnels, trusted)
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli", "status", "--json"],
        cwd=ROOT, env=environment(secure), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("server", ["postgres", "clickhouse", "redis"])
def test_a_certificate_of_somebody_unknown_is_refused(
    settings: Settings, tunnels: dict[str, Tunnel], tmp_path: Path, server: str
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    _refused(encrypted(settings, tunnels, other), server)


@pytest.mark.parametrize("tunnels", ["elsewhere.example"], indirect=True)
@pytest.mark.parametrize("server", ["postgres", "clickhouse", "redis"])
def test_a_certificate_for_another_name_is_refused(
    settings: Settings, tunnels: dict[str, Tunnel], trusted: Path, server: str
) -> None:
    _refused(encrypted(settings, tunnels, trusted), server)


def _refused(secure: Settings, server: str) -> None:
    asked = {"postgres": _ask_source, "clickhouse": _ask_sink, "redis": _ask_redis}[server]
    with pytest.raises(Unreachable, match=r"(?i)certificate|ssl"):
        asked(secure)


def _ask_source(secure: Settings) -> None:
    with Source(secure) as source:
        source.ping()


def _ask_sink(secure: Settings) -> None:
    with Sink(secure) as sink:
        sink.ping()


def _ask_redis(secure: Settings) -> None:
    with contextlib.closing(WatermarkStore(secure)) as store:
        store.ping()


def test_a_copy_over_tls_that_falls_silent_is_given_up(
    settings: Settings,
    tunnels: dict[str, Tunnel],
    trusted: Path,
    writer: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(source_module, "GRACE_SECONDS", 0.5)
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 10_000)
    secure = encrypted(settings, tunnels, trusted)
    port = tunnels["postgres"].port
    relay = Blackhole("127.0.0.1", port)
    through_it = secure.postgres_dsn.replace(f":{port}/", f":{relay.port}/")
    impatient = {"postgres_dsn": through_it, "postgres_statement_timeout_seconds": 1}

    def read(source: Source, window: Window) -> None:
        with source.snapshot([STREAMS["impressions"]]):
            relay.silent.set()
            list(source.read_events(STREAMS["impressions"], window, 100))

    try:
        with Source(secure.model_copy(update=impatient)) as source:
            window = Window(ORIGIN, source.now())
            with pytest.raises(TransientSource):
                read(source, window)
    finally:
        relay.close()
