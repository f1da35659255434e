"""The ledger does not grow old: checkpoints, sums, what expires, and the way there from a ledger that never did."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg2.extensions import connection as Connection

from tests.agreement import assert_agreement, sync
from tests.integration.test_ledger import IMPRESSIONS, at, commit, snapshot
from tests.integration.test_pipeline import add, campaigns, write
from worker import migrate, pipeline, planner, standing
from worker.celery import Servers
from worker.config import Settings
from worker.coverage import CHECKPOINT_AGE, Commit, effective
from worker.errors import TransientSink
from worker.ledger import Run
from worker.sink import Sink
from worker.source import Snapshot
from worker.streams import EVENTS_TABLE, STREAMS
from worker.windows import ORIGIN, Window, contiguous_end, instant, to_micros

CAMPAIGNS = STREAMS["campaigns"]
COLUMNS = (
    "stream",
    "target_uuid",
    "lo",
    "hi",
    "kind",
    "version",
    "rows",
    "quarantined",
    "system_id",
    "timeline",
    "committed_at",
)
AGED = tuple(path.name for path in sorted(migrate.MIGRATIONS.glob("007[3-9]_*.sql")))


def live(servers: Servers) -> dict[str, UUID]:
    return servers.ledger.live(list(STREAMS.values()))


def publish(servers: Servers, *names: str) -> dict[str, datetime]:
    streams = [STREAMS[name] for name in names]
    found = planner.publish_watermarks(servers.ledger, servers.store, streams, servers.ledger.live(streams))
    return {name: coverage.watermark for name, coverage in found.items()}


def checkpoints(servers: Servers) -> dict[str, datetime]:
    rows = servers.sink.query(
        "looking", "SELECT toString(stream), max(checkpoint) FROM sync_totals GROUP BY stream HAVING max(checkpoint) > ORIGIN".replace(
            "ORIGIN", "toDateTime64('1970-01-01 00:00:00', 6, 'UTC')"
        )
    )  # fmt: skip
    return {name: instant(until) for name, until in rows}


def write_commits(servers: Servers, windows: list[Window], *, ago: timedelta = timedelta(0), stream: str = "impressions",
                  uuid: UUID | None = None, taken: Snapshot | None = None, table: str = "sync_commits") -> None:  # fmt: skip
    taken = taken or snapshot()
    target = uuid or live(servers)[STREAMS[stream].target]
    when = servers.ledger.now() - ago
    rows = [(stream, target, one.lo, one.hi, "window", taken.version(1), 10, 1, 7, 1, when) for one in windows]
    servers.sink.insert_rows(table, COLUMNS, rows)


def begun(servers: Servers) -> None:
    servers.ledger.generation(snapshot(), failover_rewind=timedelta(hours=1))


def reads(servers: Servers, *names: str) -> int:
    """Commits read to say how far these streams are."""
    streams = [STREAMS[name] for name in names]
    return sum(one.commits for one in servers.ledger.coverage(streams, servers.ledger.live(streams)).values())


@pytest.mark.parametrize("name", ["impressions", "campaigns"])
def test_reading_the_ledger_costs_what_is_new(servers: Servers, name: str) -> None:
    begun(servers)
    edge = [ORIGIN + timedelta(seconds=10 * n) for n in range(1, 2001)]
    windows = [Window(ORIGIN if name == "campaigns" or n == 0 else edge[n - 1], edge[n]) for n in range(2000)]
    write_commits(servers, windows, stream=name)
    assert publish(servers, name) == {name: edge[-1]}
    assert checkpoints(servers) == {name: edge[-1]}
    assert reads(servers, name) == 1
    write_commits(servers, [Window(edge[-1], edge[-1] + timedelta(seconds=5))], stream=name)
    assert publish(servers, name) == {name: edge[-1] + timedelta(seconds=5)}
    assert reads(servers, name) == 2
    assert checkpoints(servers) == {name: edge[-1]}


def test_commits_of_tables_that_are_gone_are_not_read(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(servers)
    for _ in range(3):
        write_commits(servers, [at(n) for n in range(500)], uuid=uuid4())
    write_commits(servers, [at(0)])
    query = servers.sink.query
    parameters: dict[str, Any] = {}

    def listening(doing: str, statement: str, given: Any = None, **options: Any) -> Any:
        parameters[doing] = given
        return query(doing, statement, given, **options)

    monkeypatch.setattr(servers.sink, "query", listening)
    assert publish(servers, "impressions") == {"impressions": at(0).hi}
    assert reads(servers, "impressions") == 1
    assert parameters["reading commits"]["uuid_0"] == live(servers)[EVENTS_TABLE]


def test_a_quiet_stream_is_not_forgotten(servers: Servers) -> None:
    begun(servers)
    write_commits(servers, [at(0), at(1)])
    assert publish(servers, "impressions") == {"impressions": at(1).hi}
    assert checkpoints(servers) == {}
    servers.sink.command("emptying", "TRUNCATE TABLE sync_commits")
    write_commits(servers, [at(0), at(1)], ago=CHECKPOINT_AGE + timedelta(minutes=1))
    assert publish(servers, "impressions") == {"impressions": at(1).hi}
    assert checkpoints(servers) == {"impressions": at(1).hi}
    # As when everything the ledger kept has expired.
    servers.sink.command("forgetting", "TRUNCATE TABLE sync_commits")
    assert publish(servers, "impressions") == {"impressions": at(1).hi}


def test_old_commits_expire_as_whole_parts_and_change_no_watermark(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 100)
    sync(servers)
    uuid = live(servers)[EVENTS_TABLE]
    watermark = publish(servers, "impressions")
    old = [at(n) for n in range(300)]
    for target in (uuid, uuid4()):
        write_commits(servers, old, ago=timedelta(days=401), uuid=target)
    assert publish(servers, "impressions") == watermark
    servers.sink.command("merging", "OPTIMIZE TABLE sync_commits")
    parts = "SELECT count() FROM system.parts WHERE database = currentDatabase() AND table = 'sync_commits' AND active AND rows > 0"
    month = "partition = toString(toYYYYMM(now() - INTERVAL 401 DAY))"
    servers.sink.command("merging", "OPTIMIZE TABLE sync_commits FINAL")
    assert servers.sink.query("looking", f"{parts} AND {month}") == [(0,)]
    assert publish(servers, "impressions") == watermark
    add(writer, "impressions", campaign, 50)
    sync(servers)
    assert_agreement(writer, servers)


def test_a_later_checkpoint_of_a_generation_is_never_smaller(servers: Servers) -> None:
    begun(servers)
    (generation,) = servers.ledger.generations()
    uuid = live(servers)[EVENTS_TABLE]
    for micros in (50, 20):
        servers.ledger.checkpoint(IMPRESSIONS, uuid, at(micros).lo, generation)
        assert to_micros(publish(servers, "impressions")["impressions"]) == 50
    servers.sink.command("merging", "OPTIMIZE TABLE sync_totals FINAL")
    assert to_micros(publish(servers, "impressions")["impressions"]) == 50


def test_generations_take_checkpoints_back_as_they_do_commits(servers: Servers) -> None:
    ledger = servers.ledger
    uuid = live(servers)[EVENTS_TABLE]
    taken = [snapshot(timeline=n) for n in (1, 2, 3)]
    hours = timedelta(hours=1)
    everything: list[Commit] = []

    def add_commit(window: Window, number: int) -> None:
        everything.append(Commit(window, number))
        ledger.commit(IMPRESSIONS, uuid, window, run_id="", version=taken[number - 1].version(number), rows=1,
                      quarantined=0, content_hash=0, snapshot=taken[number - 1])  # fmt: skip

    start = taken[0].taken_at
    for number, (reach, rewind) in enumerate([(10, 2), (20, 6), (30, 1)], start=1):
        assert ledger.generation(taken[number - 1], failover_rewind=rewind * hours) == number
        lo = publish(servers, "impressions")["impressions"]
        add_commit(Window(lo, start + reach * hours), number)
        add_commit(Window(start + (reach + 5) * hours, start + (reach + 6) * hours), number)
        ledger.checkpoint(IMPRESSIONS, uuid, publish(servers, "impressions")["impressions"], ledger.generations()[-1])
        wanted = contiguous_end(effective(everything, ledger.generations()))
        assert publish(servers, "impressions") == {"impressions": wanted}
    # Of the two that ended what lies behind every later limit does not count, and is not even read.
    assert reads(servers, "impressions") == 2


def test_sums_count_a_commit_once_however_often_it_is_sent(servers: Servers) -> None:
    begun(servers)
    uuid = live(servers)[EVENTS_TABLE]
    for _ in range(3):
        commit(servers, at(0), snapshot())
    commit(servers, at(1), snapshot(xmax=200))
    rows, aside, last = servers.ledger.totals([uuid])["impressions"]
    assert (rows, aside) == (2, 0)
    assert abs(servers.ledger.now() - last) < timedelta(minutes=1)
    assert servers.ledger.totals([uuid4()]) == {}
    servers.sink.command("merging", "OPTIMIZE TABLE sync_totals FINAL")
    assert servers.ledger.totals([uuid])["impressions"][:2] == (2, 0)


def test_sums_miss_no_commit_whose_server_died_before_they_were_told(servers: Servers) -> None:
    begun(servers)
    uuid = live(servers)[EVENTS_TABLE]
    servers.sink.command("breaking", "DETACH TABLE sync_totals_adding")
    commit(servers, at(0), snapshot())
    servers.sink.command("mending", "ATTACH TABLE sync_totals_adding")
    assert servers.ledger.totals([uuid]) == {}
    for _ in range(2):
        commit(servers, at(0), snapshot())
    assert servers.ledger.totals([uuid])["impressions"][:2] == (1, 0)
    assert servers.sink.query("counting", "SELECT count() FROM sync_commits") == [(1,)]


def test_the_newest_version_is_of_these_tables_and_outlives_its_commits(servers: Servers) -> None:
    begun(servers)
    uuid, other = live(servers)[EVENTS_TABLE], uuid4()
    assert servers.ledger.newest_version([uuid]) == 0
    assert servers.ledger.newest_version([]) == 0
    for xmax in (300, 900, 500):
        commit(servers, at(xmax), snapshot(xmax=xmax))
    write_commits(servers, [at(1)], uuid=other, taken=snapshot(xmax=7000))
    assert servers.ledger.newest_version([uuid]) == snapshot(xmax=900).version(1)
    assert servers.ledger.newest_version([uuid, other]) == snapshot(xmax=7000).version(1)
    (generation,) = servers.ledger.generations()
    servers.ledger.checkpoint(IMPRESSIONS, uuid, at(950).lo, generation)
    servers.sink.command("forgetting", "TRUNCATE TABLE sync_commits")
    servers.sink.command("merging", "OPTIMIZE TABLE sync_totals FINAL")
    assert servers.ledger.newest_version([uuid]) == snapshot(xmax=900).version(1)


def test_open_and_last_runs_are_found_among_many(servers: Servers) -> None:
    now = servers.ledger.now()

    def run(number: int) -> Run:
        started = now - timedelta(hours=number)
        return Run(f"run-{number:04}", "pipeline", ("clicks",), True, started, started)

    for number in range(30):
        servers.ledger.save_run(run(number))
        if number not in (4, 20):
            servers.ledger.end_run(run(number), "succeeded")
    for merged in (False, True):
        if merged:
            servers.sink.command("merging", "OPTIMIZE TABLE sync_runs FINAL")
        assert [one.run_id for one in servers.ledger.open_runs()] == ["run-0020", "run-0004"]
        assert [one.run_id for one in servers.ledger.last_runs(3)] == ["run-0000", "run-0001", "run-0002"]
        assert servers.ledger.last_runs(1)[0].state == "succeeded"


# The way there


@pytest.fixture
def before(bare_settings: Settings, tmp_path: Path) -> tuple[Settings, Path]:
    """A database whose ledger is not parted, and the folder with all migrations."""
    folder = tmp_path / "before"
    shutil.copytree(migrate.MIGRATIONS, folder)
    for name in AGED:
        (folder / name).unlink()
    with Sink(bare_settings) as sink:
        migrate.migrate(sink, bare_settings, folder)
    return bare_settings, migrate.MIGRATIONS


def old_ledger(servers: Servers) -> dict[str, Any]:
    """Two streams in a ledger of two years, and commits of a table that is gone."""
    begun(servers)
    gone = uuid4()
    edges = [ORIGIN + timedelta(days=n) for n in range(1, 731)]
    now = servers.ledger.now()
    uuids = live(servers)
    rows = []
    for stream, uuid in (
        ("impressions", uuids[EVENTS_TABLE]),
        ("campaigns", uuids["campaign_history"]),
        ("clicks", gone),
    ):
        for n, hi in enumerate(edges):
            lo = ORIGIN if stream == "campaigns" or n == 0 else edges[n - 1]
            rows.append(
                (
                    stream,
                    uuid,
                    lo,
                    hi,
                    "window",
                    snapshot(xmax=n + 1).version(1),
                    10,
                    1,
                    7,
                    1,
                    now - timedelta(days=729 - n),
                )
            )
    rows.append(
        (
            "impressions",
            uuids[EVENTS_TABLE],
            ORIGIN,
            edges[700],
            "checkpoint",
            1 << 56,
            0,
            0,
            7,
            1,
            now - timedelta(days=28),
        )
    )
    servers.sink.insert_rows("sync_commits", COLUMNS, rows)
    return {"watermark": edges[-1], "version": snapshot(xmax=730).version(1), "gone": gone}


def assert_carried_over(servers: Servers, told: dict[str, Any]) -> None:
    uuids = live(servers)
    assert publish(servers, "impressions", "campaigns") == {
        "impressions": told["watermark"],
        "campaigns": told["watermark"],
    }
    for uuid, stream in (
        (uuids[EVENTS_TABLE], "impressions"),
        (uuids["campaign_history"], "campaigns"),
        (told["gone"], "clicks"),
    ):
        assert servers.ledger.totals([uuid])[stream][:2] == (7300, 730)
        assert servers.ledger.newest_version([uuid]) == told["version"]
    kept, least = servers.sink.query(
        "looking", "SELECT countIf(stream = 'clicks'), min(committed_at) FROM sync_commits"
    )[0]
    assert kept in (400, 401)
    assert instant(least) > servers.ledger.now() - timedelta(days=401)
    assert reads(servers, "impressions") < 40


def test_an_old_ledger_is_taken_along(before: tuple[Settings, Path]) -> None:
    settings, folder = before
    servers = Servers.open(settings)
    told = old_ledger(servers)
    assert migrate.migrate(servers.sink, settings, folder) == list(AGED)
    assert_carried_over(servers, told)
    assert migrate.migrate(servers.sink, settings, folder) == []
    with pytest.raises(Exception, match="has no table"):
        servers.sink.uuid("sync_commits_by_month")
    servers.close()


@pytest.mark.parametrize(
    ("name", "when"), [*((name, "after") for name in AGED), *((name, "with an unknown outcome") for name in AGED[3:5])]
)
def test_a_migration_killed_between_its_statement_and_the_note_is_run_again(
    before: tuple[Settings, Path], name: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, folder = before
    servers = Servers.open(settings)
    told = old_ledger(servers)
    command = Sink.command

    def dying(self: Sink, doing: str, *args: Any, **options: Any) -> None:
        command(self, doing, *args, **options)
        if doing == f"applying {name}":
            raise KeyboardInterrupt if when == "after" else TransientSink("the connection was lost")

    with monkeypatch.context() as patch:
        patch.setattr(Sink, "command", dying)
        with pytest.raises((KeyboardInterrupt, TransientSink)):
            migrate.migrate(servers.sink, settings, folder)
    assert migrate.migrate(servers.sink, settings, folder)[0] == name
    assert_carried_over(servers, told)
    count, distinct = servers.sink.query(
        "looking", "SELECT count(), uniqExact(stream, target_uuid, lo, hi, kind, version) FROM sync_commits"
    )[0]
    assert count == distinct, "no commit is there twice"
    servers.close()


def test_a_commit_lost_between_copy_and_exchange_costs_work_and_no_rows(
    before: tuple[Settings, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, folder = before
    servers = Servers.open(settings)
    told = old_ledger(servers)
    command = Sink.command
    late = Window(told["watermark"], told["watermark"] + timedelta(hours=1))

    def working(self: Sink, doing: str, *args: Any, **options: Any) -> None:
        if doing == "applying 0076_sync_commits_exchanged.sql":
            write_commits(servers, [late], taken=snapshot(xmax=730))
        command(self, doing, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Sink, "command", working)
        migrate.migrate(servers.sink, settings, folder)
    # The window is planned and loaded once more; the sums have it, for its rows are there.
    assert publish(servers, "impressions") == {"impressions": told["watermark"]}
    assert servers.ledger.totals([live(servers)[EVENTS_TABLE]])["impressions"][0] == 7310
    servers.close()


def test_a_worker_that_runs_ahead_of_its_schema_leaves_nothing_out(
    before: tuple[Settings, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, folder = before
    servers = Servers.open(settings)
    told = old_ledger(servers)
    command = Sink.command

    def working(self: Sink, doing: str, *args: Any, **options: Any) -> None:
        if doing == "applying 0075_sync_commits_copied.sql":
            publish(servers, "impressions")
        command(self, doing, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Sink, "command", working)
        migrate.migrate(servers.sink, settings, folder)
    assert publish(servers, "impressions") == {"impressions": told["watermark"]}
    totals = servers.ledger.totals([live(servers)[EVENTS_TABLE]])
    assert totals["impressions"][0] >= 7300
    assert servers.ledger.newest_version([live(servers)[EVENTS_TABLE]]) > 0
    servers.close()


def test_what_a_screen_says_is_not_less_for_it(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 60)
    sync(servers)
    overview = standing.overview(servers.source, servers.sink, servers.ledger, servers.store, [IMPRESSIONS, CAMPAIGNS])
    assert overview.streams[0].rows == 60
    assert servers.ledger.totals(live(servers).values())["impressions"][0] == 60


def test_a_window_read_again_that_came_back_empty_marks_the_days_that_a_dead_attempt_left(
    servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_ = campaigns(writer)
    add(writer, "impressions", first, 20, at="2026-11-10T10:00:00Z")
    sync(servers)
    lo = publish(servers, "impressions")["impressions"]
    write(writer, "UPDATE impressions SET created_at = created_at + interval '1 day' WHERE id % 2 = 0")
    window = Window(lo, servers.source.horizon().at or lo)

    def load() -> pipeline.Loaded:
        return pipeline.load_window(
            servers.source, servers.sink, servers.ledger, servers.settings, IMPRESSIONS, window,
            table=EVENTS_TABLE, uuid=live(servers)[EVENTS_TABLE],
        )  # fmt: skip

    def dies(*arguments: object) -> None:
        raise TransientSink("the worker was killed")

    # The rows are inserted; the days they left are noted, and not marked.
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_verify", dies)
        with pytest.raises(TransientSink):
            load()
    servers.sink.command("merging", f"OPTIMIZE TABLE {EVENTS_TABLE} FINAL")
    write(writer, "UPDATE impressions SET created_at = created_at + interval '1 day' WHERE id % 2 = 0")
    assert load().extracted == 0
    sync(servers)
    assert_agreement(writer, servers)
