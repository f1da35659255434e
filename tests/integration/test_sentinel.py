"""Redis that Sentinels watch: a master that dies or is demoted is replaced, and everything goes on by itself."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from psycopg2.extensions import connection as Connection

from embedded import process
from embedded.redis import binary
from tests.agreement import assert_agreement
from tests.integration.test_flower import PASSWORD as LOGIN
from tests.integration.test_flower import USER, fetched, shown
from tests.integration.test_pipeline import add, campaigns
from tests.processes import until, workers
from worker import runs
from worker.celery import Servers, configuration, create_app
from worker.config import Settings, load
from worker.errors import BadInput, Unreachable
from worker.streams import STREAMS
from worker.watermarks import WatermarkStore

PATIENCE = 180
"""Seconds. A Sentinel that was not let run for two seconds distrusts its clock and does nothing for thirty (TILT)."""

NAME, PASSWORD, WATCHWORD = "retailmedia", "p@ss:word", "sentinels-own"


class Guarded:
    """Two Redis servers and three Sentinels that know them as `NAME`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.servers: dict[int, subprocess.Popen[bytes]] = {}
        self.sentinels: dict[int, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Starts all of them, and returns once the Sentinels know each other and the replica."""
        first, second = process.free_port(), process.free_port()
        self.start_server(first)
        self.start_server(second, follow=first)
        until(lambda: self.redis(second).info()["master_link_status"] == "up", "the replica follows")
        for _ in range(3):
            self._start_sentinel(process.free_port(), first)
        until(lambda: all(self._sees_everyone(port) for port in self.sentinels), "the Sentinels know each other")

    def redis(self, port: int) -> Any:
        """A client of one server."""
        return redis.Redis(port=port, password=PASSWORD, decode_responses=True, socket_timeout=5)

    def sentinel(self, port: int) -> Any:
        """A client of one Sentinel."""
        return redis.Redis(port=port, password=WATCHWORD, decode_responses=True, socket_timeout=5)

    def _sees_everyone(self, port: int) -> bool:
        with suppress(redis.RedisError):
            state = self.sentinel(port).sentinel_master(NAME)
            return int(state["num-other-sentinels"]) == 2 and int(state["num-slaves"]) == 1
        return False

    def _start(self, port: int, lines: list[str], *words: str) -> subprocess.Popen[bytes]:
        folder = self._folder / str(port)
        folder.mkdir(exist_ok=True)
        config = folder / "redis.conf"
        config.write_text("\n".join([f"port {port}", "bind 127.0.0.1", "daemonize no", *lines, ""]))
        with (folder / "log").open("ab") as log:
            started = subprocess.Popen([binary(), config.name, *words], cwd=folder, stdout=log, stderr=log)

        def listens() -> bool:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            return False

        until(listens, f"Redis listens on port {port}")
        return started

    def start_server(self, port: int, *, follow: int | None = None) -> None:
        """A server, as a replica if it is to follow one."""
        lines = [f'requirepass "{PASSWORD}"', f'masterauth "{PASSWORD}"', 'save ""', "appendonly no"]
        lines += [f"replicaof 127.0.0.1 {follow}"] if follow else []
        self.servers[port] = self._start(port, [*lines, "repl-diskless-sync-delay 0"])

    def _start_sentinel(self, port: int, master: int) -> None:
        lines = [
            f'requirepass "{WATCHWORD}"',
            f"sentinel monitor {NAME} 127.0.0.1 {master} 2",
            f'sentinel auth-pass {NAME} "{PASSWORD}"',
            f"sentinel down-after-milliseconds {NAME} 1500",
            f"sentinel failover-timeout {NAME} 6000",
        ]
        self.sentinels[port] = self._start(port, lines, "--sentinel")

    def master(self) -> int:
        """The port of the server that two Sentinels at least call master."""
        told = []
        for port in self.sentinels:
            with suppress(redis.RedisError):
                told.append(int(self.sentinel(port).sentinel_get_master_addr_by_name(NAME)[1]))
        return max(set(told), key=told.count)

    def replicas(self) -> int:
        """Replicas that follow the present master."""
        with suppress(redis.RedisError):
            return int(self.redis(self.master()).info()["connected_slaves"])
        return 0

    def failed_over_to(self, wanted: int) -> bool:
        """Asks for a failover until it happened, since a Sentinel gives one up that took longer than its timeout.

        The Sentinel that is asked is the one that changes its mind first, so a failover is never asked for twice. It
        refuses while one goes on, and while it has not looked at the replica long enough.
        """
        asked = self.sentinel(next(iter(self.sentinels)))
        if int(asked.sentinel_get_master_addr_by_name(NAME)[1]) != wanted:
            with suppress(redis.ResponseError):
                asked.execute_command("SENTINEL", "FAILOVER", NAME)
            return False
        return self.master() == wanted

    @property
    def url(self) -> str:
        """What REDIS_URL says."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinels)
        return f"sentinel://:p%40ss%3Aword@{hosts}/0?master={NAME}"

    def close(self) -> None:
        """Ends all of them."""
        for each in (*self.sentinels.values(), *self.servers.values()):
            each.kill()
            each.wait()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    made = Guarded(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def settings(settings: Settings, guarded: Guarded) -> Settings:
    return settings.model_copy(
        update={
            "redis_url": guarded.url,
            "redis_sentinel_password": WATCHWORD,
            "horizon_margin_ms": 50,
            "lease_seconds": 5,
        }
    )


def counted(servers: Servers) -> int:
    """Impressions in the metrics."""
    return int(servers.sink.query("counting", "SELECT sum(impressions_count) FROM daily_campaign_performance")[0][0])


def test_everything_goes_on_when_the_master_dies_or_is_demoted(
    guarded: Guarded, settings: Settings, servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_SENTINEL_PASSWORD", WATCHWORD)
    (campaign, *_) = campaigns(writer)
    rows = 0

    def write_and_await(what: str) -> None:
        nonlocal rows
        before = servers.source.now()

        def passed() -> bool:
            with suppress(Unreachable):
                found = servers.store.watermark(STREAMS["impressions"])
                return found is not None and found.at > before
            return False

        add(writer, "impressions", campaign, 500)
        rows += 500
        until(lambda: counted(servers) == rows, f"{what}: all impressions are counted", PATIENCE)
        until(passed, f"{what}: the watermark passes them", PATIENCE)

    with workers(settings, beat=True) as running:
        write_and_await("at first")

        first = guarded.master()
        guarded.servers[first].send_signal(signal.SIGKILL)
        guarded.servers[first].wait()
        write_and_await("after the master died")
        assert guarded.master() != first

        # The dead one comes back as what it was, is told to follow, and becomes master again while the other lives on.
        guarded.start_server(first)
        until(lambda: guarded.replicas() == 1, "the old master follows the new one", PATIENCE)
        second = guarded.master()
        until(lambda: guarded.failed_over_to(first), "the old master is master again", PATIENCE)
        until(lambda: guarded.redis(second).info()["role"] == "slave", "the other one is its replica", PATIENCE)
        write_and_await("after the master was demoted")

        # One Sentinel less is nothing to speak of, even if it is the one named first.
        gone = next(iter(guarded.sentinels))
        guarded.sentinels[gone].kill()
        guarded.sentinels[gone].wait()
        write_and_await("with one Sentinel less")
        assert {name: each.poll() for name, each in running.items()} == dict.fromkeys(running)
    assert_agreement(writer, servers)


def test_a_run_is_followed_through_sentinels(
    guarded: Guarded, settings: Settings, servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_SENTINEL_PASSWORD", WATCHWORD)
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 300)
    with workers(settings):
        app = create_app(settings)
        try:
            runs.require_workers(app, servers.store, runs.PIPELINE)
            streams = list(STREAMS.values())
            *_, last = runs.follow(
                servers, app, runs.PIPELINE, "sentinel-run", streams, metrics_update=True, timeout=60
            )
        finally:
            app.close()
    assert last.run is not None
    assert last.run.state == "succeeded"
    assert counted(servers) == 300


def test_no_password_is_shown(
    guarded: Guarded, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the worker's banner and log, its settings as any node may ask for them, and Flower's pages of them."""
    monkeypatch.setenv("REDIS_SENTINEL_PASSWORD", WATCHWORD)
    app = create_app(settings)
    try:
        with shown(settings, tmp_path) as address:

            def page(path: str) -> str:
                status, text = fetched(f"{address}{path}", f"{USER}:{LOGIN}")
                return text if status == 200 else ""

            conf = json.dumps(app.control.inspect(timeout=5).conf())
            until(lambda: "shown@localhost" in page("/workers"), "Flower shows the worker")
            until(lambda: "realtime" in page("/broker"), "Flower shows the queues")
            pages = page("/broker") + page("/worker/shown@localhost") + page("/api/workers?refresh=1")
    finally:
        app.close()
    texts = {
        "settings": conf,
        "Flower": pages,
        "log": (tmp_path / "worker.log").read_text(),
        "its log": (tmp_path / "flower.log").read_text(),
    }
    for where, text in texts.items():
        assert text
        for secret in (PASSWORD, "p%40ss", "ss%3Aword", WATCHWORD):
            assert secret not in text, where


def test_the_server_is_named_without_its_password(settings: Settings, guarded: Guarded) -> None:
    hosts = ",".join(f"127.0.0.1:{port}" for port in guarded.sentinels)
    assert settings.server_label("redis") == f"{hosts}/0, master {NAME}"
    wrong = settings.model_copy(update={"redis_url": guarded.url.replace(f"={NAME}", "=nobody")})
    with pytest.raises(Unreachable, match="No master found for 'nobody'") as caught:
        WatermarkStore(wrong).ping()
    assert "p@ss" not in str(caught.value)
    locked = settings.model_copy(update={"redis_sentinel_password": "wrong"})
    with pytest.raises(Unreachable):
        WatermarkStore(locked).ping()


@pytest.mark.parametrize(
    "url",
    [
        "sentinel://host:26379/0",
        "sentinel://host:26379/zero?master=m",
        "sentinel://host:port/0?master=m",
        "sentinel://a,,b/0?master=m",
        "sentinel:///0?master=m",
        "sentinels://host/0?master=m",
        "sentinel://a:1;sentinel://b:2/0?master=m",
    ],
)
def test_an_address_that_is_none_is_refused_in_a_sentence(url: str) -> None:
    with pytest.raises(BadInput, match="REDIS_URL must read sentinel://"):
        _ = load(redis_url=url).redis_address


def test_every_sentinel_is_told_to_celery() -> None:
    told = configuration(load(redis_url="sentinel://me:s%2Fecret@one,[::1]:7,three:9/4?master=m"))
    assert told["broker_url"] == told["result_backend"]
    assert told["broker_url"].split(";") == [
        "sentinel://me:s%2Fecret@one:26379/4", "sentinel://me:s%2Fecret@[::1]:7/4", "sentinel://me:s%2Fecret@three:9/4",
    ]  # fmt: skip
    for options in (told["broker_transport_options"], told["result_backend_transport_options"]):
        assert options["master_name"] == "m"
        assert "password" not in options["sentinel_kwargs"]
