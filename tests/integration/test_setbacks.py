"""A source that went back in time: noticed, kept, said everywhere, and mended by a full refresh of all events."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

import seed.schema
from embedded import postgres
from embedded.process import Identity, end, free_port
from tests.agreement import assert_agreement, source_events, sync, target_events
from tests.integration.test_pipeline import add, campaigns, write
from tests.integration.test_refresh import complete_refresh, started
from worker import alerts, dimensions, doctor, pipeline, planner, prometheus, setbacks, standing
from worker.celery import Servers
from worker.config import Settings
from worker.errors import HorizonUnsafe, SourceWentBack, Superseded, TransientSource
from worker.ledger import Run
from worker.source import Snapshot, Source
from worker.streams import EVENT_STREAMS, EVENTS_TABLE, STREAMS
from worker.tasks import pipeline as pipeline_tasks
from worker.tasks import refresh as refresh_tasks
from worker.tasks import turns
from worker.tasks.reconcile import compare, replay_window
from worker.watermarks import Observation
from worker.windows import ORIGIN, Window

IMPRESSIONS = STREAMS["impressions"]
PASSWORD = "0123456789abcdef"


class Volume:
    """A PostgreSQL of its own whose data folder can be kept and put back, as a volume's snapshot is."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        self.running: Identity | None = None
        (home / "logs").mkdir(parents=True)
        self.start()

    @property
    def dsn(self) -> str:
        return f"postgresql://{postgres.USER}:{PASSWORD}@127.0.0.1:{self.port}/{postgres.DATABASE}"

    def start(self) -> None:
        self.running = postgres.start(self.home, self.port, PASSWORD)

    def stop(self) -> None:
        end(self.running, postgres.STOP_SIGNALS)

    def keep(self) -> None:
        self.stop()
        shutil.rmtree(self.home / "kept", ignore_errors=True)
        _copied(self.home / "postgres", self.home / "kept")
        self.start()

    def put_back(self) -> None:
        self.stop()
        shutil.rmtree(self.home / "postgres")
        _copied(self.home / "kept", self.home / "postgres")
        self.start()

    def write(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        with closing(psycopg2.connect(self.dsn)) as connection:
            connection.autocommit = True
            return write(connection, statement, *parameters)

    def transactions(self, count: int) -> None:
        with closing(psycopg2.connect(self.dsn)) as connection:
            connection.autocommit = True
            for _ in range(count):
                write(connection, "SELECT pg_current_xact_id()")


def _copied(source: Path, target: Path) -> None:
    shutil.copytree(source, target, copy_function=shutil.copy2)
    owner = source.stat()
    for path in (target, *target.rglob("*")):
        shutil.chown(path, owner.st_uid, owner.st_gid)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    made = Volume(tmp_path / "volume")
    with closing(psycopg2.connect(made.dsn)) as connection:
        seed.schema.create(connection)
    yield made
    made.stop()


@pytest.fixture
def on_volume(volume: Volume, settings: Settings) -> Iterator[Servers]:
    opened = Servers.open(settings.model_copy(update={"postgres_dsn": volume.dsn}))
    yield opened
    opened.close()


def insert(volume: Volume, campaign: int, count: int) -> None:
    with closing(psycopg2.connect(volume.dsn)) as connection:
        connection.autocommit = True
        add(connection, "impressions", campaign, count)
        add(connection, "clicks", campaign, count // 4)


def agrees(volume: Volume, servers: Servers) -> None:
    """Every event and every campaign as it is at the source; spend follows the bids that were once seen."""
    with closing(psycopg2.connect(volume.dsn)) as connection:
        assert target_events(servers) == source_events(connection)
        there = write(connection, "SELECT id, name, bid FROM campaign ORDER BY id")
    here = servers.sink.query(
        "looking at campaigns",
        "SELECT campaign_id, campaign_name, bid_amount FROM campaign_dimension "
        "WHERE campaign_id > 0 AND NOT is_deleted ORDER BY campaign_id",
    )
    assert here == there


def test_a_volume_that_was_put_back(volume: Volume, on_volume: Servers) -> None:
    servers = on_volume
    with closing(psycopg2.connect(volume.dsn)) as connection:
        connection.autocommit = True
        (campaign, other, *_) = campaigns(connection)
    insert(volume, campaign, 200)
    sync(servers)
    volume.keep()
    # What follows will never have been: rows, ids and an edited bid.
    insert(volume, campaign, 100)
    volume.write("UPDATE campaign SET bid = 9")
    volume.transactions(300)
    insert(volume, campaign, 100)
    sync(servers)
    run = started(servers, "before")
    volume.put_back()
    servers.source.close()
    # Other rows get the ids of those that are gone.
    insert(volume, other, 60)

    with pytest.raises(SourceWentBack, match=r"went back in time.*--full-refresh"):
        sync(servers)
    with pytest.raises(SourceWentBack):
        dimensions.load_dimension(
            servers.source, servers.sink, servers.ledger, servers.settings, STREAMS["campaigns"],
            uuid=servers.ledger.live([STREAMS["campaigns"]])[STREAMS["campaigns"].target],
        )  # fmt: skip
    # Time passing does not make it good, and nothing else may write either.
    volume.transactions(1000)
    for attempt in (
        lambda: sync(servers),
        lambda: compare(servers, IMPRESSIONS, heal=True),
        lambda: replay_window(servers, IMPRESSIONS, Window(ORIGIN, servers.source.now()), dry_run=False),
        lambda: started(servers, "only-clicks", [STREAMS["clicks"]]),
    ):
        with pytest.raises(SourceWentBack):
            attempt()

    complete_refresh(servers, "after")
    with pytest.raises(Superseded, match="went back in time"):
        setbacks.require_present(servers.ledger, run)
    sync(servers)
    agrees(volume, servers)
    insert(volume, other, 40)
    volume.write("UPDATE campaign SET bid = 3")
    sync(servers)
    agrees(volume, servers)
    assert [g.number for g in servers.ledger.generations()] == [1, 2]


def test_a_refresh_asked_for_before_anybody_noticed_is_enough(volume: Volume, on_volume: Servers) -> None:
    servers = on_volume
    with closing(psycopg2.connect(volume.dsn)) as connection:
        connection.autocommit = True
        (campaign, *_) = campaigns(connection)
    insert(volume, campaign, 100)
    volume.keep()
    volume.transactions(100)
    insert(volume, campaign, 50)
    sync(servers)
    volume.put_back()
    servers.source.close()
    complete_refresh(servers, "at-once")
    sync(servers)
    agrees(volume, servers)


def test_a_server_killed_does_not_count_as_set_back(volume: Volume, on_volume: Servers) -> None:
    servers = on_volume
    with closing(psycopg2.connect(volume.dsn)) as connection:
        connection.autocommit = True
        (campaign, *_) = campaigns(connection)
    insert(volume, campaign, 40)
    for _ in range(3):
        with closing(psycopg2.connect(volume.dsn)) as connection, connection.cursor() as cursor:
            # Ids that are drawn and of which nothing is on disk when the server dies.
            for _ in range(20):
                cursor.execute("SELECT pg_current_xact_id()")
                connection.rollback()
            # At once: a read of the server's own clock would let it write.
            pipeline.load_window(
                servers.source, servers.sink, servers.ledger, servers.settings, IMPRESSIONS,
                Window(ORIGIN, datetime.now(UTC)), table=EVENTS_TABLE,
                uuid=servers.ledger.live([IMPRESSIONS])[EVENTS_TABLE], again=str(time.monotonic_ns()),
            )  # fmt: skip
        end(volume.running, ((9, 10.0),))
        volume.start()
        servers.source.close()
        insert(volume, campaign, 8)
        sync(servers)
    agrees(volume, servers)
    assert servers.ledger.setback() == ""


def commit_ahead(servers: Servers, transactions: int) -> int:
    """A window as it was committed by somebody whose snapshot was so many transactions ahead; returns its version."""
    with servers.source.snapshot() as snapshot:
        servers.ledger.generation(snapshot, failover_rewind=timedelta(0))
        ahead = replace(snapshot, xmax=snapshot.xmax + transactions)
    version = ahead.version(servers.ledger.generations()[-1].number)
    servers.ledger.commit(
        IMPRESSIONS, servers.ledger.live([IMPRESSIONS])[EVENTS_TABLE], Window(ORIGIN, ORIGIN + timedelta(seconds=1)),
        run_id="", version=version, rows=0, quarantined=0, content_hash=0, snapshot=ahead,
    )  # fmt: skip
    return version


def test_ids_lost_in_a_crash_are_drawn_again(servers: Servers) -> None:
    version = commit_ahead(servers, 50)
    live = [servers.ledger.live([IMPRESSIONS])[EVENTS_TABLE]]
    with setbacks.reading(servers.source, servers.ledger, servers.settings, [IMPRESSIONS], live) as read:
        assert read.version > version
    assert servers.ledger.setback() == ""


def latched(servers: Servers) -> str:
    # Far more than other tests, on the same server, draw meanwhile.
    commit_ahead(servers, 1_000_000)
    live = [servers.ledger.live([IMPRESSIONS])[EVENTS_TABLE]]
    with (
        pytest.raises(SourceWentBack) as refused,
        setbacks.reading(servers.source, servers.ledger, servers.settings, [IMPRESSIONS], live),
    ):
        raise AssertionError("it was read")
    return str(refused.value)


def test_a_refresh_that_ends_before_its_swap_makes_nothing_good(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 50)
    sync(servers)
    commit_ahead(servers, 1000)
    add(writer, "impressions", campaign, 20)
    with pytest.raises(SourceWentBack):
        sync(servers)
    run = started(servers, "first")
    # What the live table holds counts up to here while its successor is filled, but no other refresh may take its place.
    sync(servers)
    with pytest.raises(SourceWentBack, match="clicks alone is not enough"):
        started(servers, "only-clicks", [STREAMS["clicks"]])
    servers.ledger.end_run(run, "failed", "a window failed too often")
    with pytest.raises(SourceWentBack):
        sync(servers)
    complete_refresh(servers, "second")
    sync(servers)
    assert servers.ledger.setback() == ""
    assert_agreement(writer, servers)


def test_a_server_that_was_left_for_another_is_not_taken_up_without_a_word(
    servers: Servers, writer: Connection
) -> None:
    """As when the wrong server was named for a moment, and nothing of it came to be loaded."""
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 50)
    sync(servers)
    with servers.source.snapshot() as snapshot:
        another = replace(snapshot, system_id=7)
    servers.ledger.generation(another, failover_rewind=timedelta(0))
    add(writer, "impressions", campaign, 20)
    with pytest.raises(SourceWentBack, match="another has taken its place since"):
        sync(servers)
    complete_refresh(servers, "after")
    sync(servers)
    assert_agreement(writer, servers)


def test_it_is_said_everywhere(servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 10)
    told = latched(servers)
    found = standing.overview(servers.source, servers.sink, servers.ledger, servers.store, list(STREAMS.values()))
    assert found.setback == told
    signals = {signal.incident: signal for signal in alerts.of_the_pipeline(found, servers.settings)}
    assert (signals["source/went_back"].severity, signals["source/went_back"].message) == ("error", told)
    gauges = {family.name: family for family in prometheus.ServersCollector(servers)._clickhouse()}
    assert gauges["retailmedia_source_went_back"].samples[0].value == 1.0
    findings = {finding.what: finding for finding in doctor._kept(servers.settings)}
    assert (findings["time"].state, findings["time"].found) == ("wrong", told)

    # A run that cannot succeed ends with the cause, instead of waiting.
    now = servers.source.now()
    monkeypatch.setattr(pipeline_tasks, "servers", lambda: servers)
    monkeypatch.setattr(refresh_tasks, "servers", lambda: servers)
    servers.ledger.save_run(Run("one", "pipeline", ("impressions",), True, until=now, started_at=now))
    assert pipeline_tasks.step(run_id="one")["state"] == "failed"
    servers.ledger.save_run(Run("two", "refresh", ("clicks",), True, until=now, started_at=now))
    assert refresh_tasks.step(run_id="two")["state"] == "failed"
    ended = {run.run_id: run for run in servers.ledger.last_runs(5)}
    assert ended["one"].message == told
    assert ended["two"].message.startswith(told.rstrip("."))
    assert "clicks alone is not enough" in ended["two"].message


def test_nothing_is_said_while_nothing_is_wrong(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 10)
    sync(servers)
    found = standing.overview(servers.source, servers.sink, servers.ledger, servers.store, list(STREAMS.values()))
    assert found.setback == ""
    findings = {finding.what: finding for finding in doctor._kept(servers.settings)}
    assert findings["time"].state == "ok"
    # The embedded engine lets nobody look at policies.
    assert findings["row policies"].state in {"ok", "note"}, findings["row policies"].found


def clock_was(servers: Servers, ahead: timedelta, how: str) -> None:
    """Leaves what ticks left while the source's clock was so far ahead of what it shows now."""
    sync(servers)
    clock = servers.source.now() + ahead
    if how == "seen by a tick":
        servers.store.observe(IMPRESSIONS, Observation(clock, clock, clock, ""))
        return
    uuid: UUID = servers.ledger.live([IMPRESSIONS])[EVENTS_TABLE]
    with servers.source.snapshot() as snapshot:
        version = snapshot.version(servers.ledger.generation(snapshot, failover_rewind=timedelta(0)))
    servers.ledger.commit(
        IMPRESSIONS, uuid, Window(ORIGIN, clock), run_id="", version=version, rows=0, quarantined=0, content_hash=0,
        snapshot=snapshot,
    )  # fmt: skip


@pytest.mark.parametrize("how", ["seen by a tick", "a window committed"])
def test_a_clock_that_was_set_back(
    servers: Servers, writer: Connection, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 50)
    clock_was(servers, timedelta(seconds=2), how)
    add(writer, "impressions", campaign, 7)
    with pytest.raises(SourceWentBack, match=r"clock of PostgreSQL .* was set back"):
        sync(servers)
    with pytest.raises(SourceWentBack):
        sync(servers)
    # By the task, which forgets what ticks saw.
    monkeypatch.setattr(refresh_tasks, "servers", lambda: servers)
    monkeypatch.setattr(refresh_tasks, "hand_out", lambda here, planned, **_: 0)
    monkeypatch.setattr(turns, "look_again", lambda *_, **__: None)
    now = servers.source.now()
    servers.ledger.save_run(Run("task", "refresh", ("impressions", "clicks"), True, until=now, started_at=now))
    refresh_tasks.step(run_id="task")
    complete_refresh(servers, "after")
    sync(servers)
    assert_agreement(writer, servers)


def test_a_window_that_ends_after_the_clock_is_not_loaded(servers: Servers, writer: Connection) -> None:
    """Handed out before the clock was set back, or before a replica with a slower one was promoted."""
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 50)
    sync(servers)
    add(writer, "impressions", campaign, 5)
    uuid = servers.ledger.live([IMPRESSIONS])[EVENTS_TABLE]
    window = Window(ORIGIN, servers.source.now() + timedelta(milliseconds=1500))
    with pytest.raises(TransientSource, match="ends after the clock"):
        pipeline.load_window(
            servers.source, servers.sink, servers.ledger, servers.settings, IMPRESSIONS, window, table=EVENTS_TABLE,
            uuid=uuid,
        )  # fmt: skip
    add(writer, "impressions", campaign, 7)
    time.sleep(1.5)
    sync(servers)
    assert_agreement(writer, servers)


def test_a_promoted_replica_with_a_slower_clock_is_no_setback(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 50)
    with servers.source.snapshot() as snapshot:
        old = replace(snapshot, timeline=99)
    servers.ledger.generation(old, failover_rewind=timedelta(0))
    ahead = servers.source.now() + timedelta(seconds=30)
    servers.store.observe(IMPRESSIONS, Observation(ahead, ahead, ahead, ""))
    sync(servers)
    assert_agreement(writer, servers)
    assert servers.ledger.setback() == ""


def test_a_clock_that_only_redis_has_seen_is_not_believed(servers: Servers, writer: Connection) -> None:
    """Anybody with Redis's password may write it; syncing would stop until somebody asked for a full refresh."""
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 50)
    sync(servers)
    forged = servers.source.now() + timedelta(days=1)
    servers.store.observe(IMPRESSIONS, Observation(forged, forged, forged, ""))
    add(writer, "impressions", campaign, 7)
    sync(servers)
    assert_agreement(writer, servers)
    assert servers.ledger.setback() == ""


def snapshot_of(xmax: int = 1000, in_progress: int = 0, system: int = 7, timeline: int = 1) -> Snapshot:
    return Snapshot(system, timeline, xmax, in_progress, datetime(2026, 11, 20, 12, tzinfo=UTC))


def test_a_version_that_has_no_room_is_refused() -> None:
    assert snapshot_of(2**40 - 1, 65_535).version(255) < 2**64
    for full, generation in ((snapshot_of(2**40), 1), (snapshot_of(in_progress=65_536), 1), (snapshot_of(), 256)):
        with pytest.raises(HorizonUnsafe, match="older rows could win"):
            full.version(generation)


def test_a_server_that_was_left_before_is_not_a_new_one(servers: Servers) -> None:
    ledger, never = servers.ledger, timedelta(0)
    assert ledger.generation(snapshot_of(timeline=1), failover_rewind=never) == 1
    assert ledger.generation(snapshot_of(timeline=2), failover_rewind=never) == 2
    assert ledger.generation(snapshot_of(timeline=1), failover_rewind=never) == 1
    assert ledger.open_generation(snapshot_of(timeline=1), ORIGIN) == 3
    assert ledger.generation(snapshot_of(timeline=1), failover_rewind=never) == 3


def test_generations_end_with_a_sentence(servers: Servers) -> None:
    columns = ("generation", "system_id", "timeline", "rewind_to")
    servers.sink.insert_rows("source_generations", columns, [(255, 7, 1, ORIGIN)])
    with pytest.raises(HorizonUnsafe, match="255 times"):
        servers.ledger.generation(snapshot_of(timeline=2), failover_rewind=timedelta(0))


def test_the_ledger_knows_its_newest_version(servers: Servers, writer: Connection) -> None:
    live = servers.ledger.live(EVENT_STREAMS).values()
    assert servers.ledger.newest_version(live) == 0
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 5)
    sync(servers)
    with Source(servers.settings) as source, source.snapshot() as snapshot:
        assert 1 << 56 < servers.ledger.newest_version(live) <= snapshot.version(1)
    assert planner.plan(servers.source, servers.ledger, servers.store, servers.settings, [IMPRESSIONS])
