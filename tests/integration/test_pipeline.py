"""Windows and dimensions, loaded from a real PostgreSQL into a real ClickHouse engine."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from psycopg2.extensions import connection as Connection

import seed.generate
from tests.agreement import assert_agreement, rebuild, source_performance, sync, target_events, target_performance
from worker import metrics, migrate, pipeline, planner
from worker.celery import Servers
from worker.config import Settings
from worker.errors import TransientSink, VerificationFailed
from worker.sink import Sink
from worker.source import EventColumns, Source
from worker.streams import EVENT_STREAMS, EVENTS_TABLE, STREAMS
from worker.windows import ORIGIN, Window

IMPRESSIONS, CLICKS = STREAMS["impressions"], STREAMS["clicks"]
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


def write(writer: Connection, statement: str, *parameters: Any) -> list[Any]:
    with writer.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []


def campaigns(writer: Connection, count: int = 3) -> list[int]:
    write(writer, "INSERT INTO advertiser (name) VALUES ('Acme')")
    rows = write(
        writer,
        "INSERT INTO campaign (name, bid, budget, advertiser_id) "
        "SELECT 'campaign ' || n, 0.3 + 0.17 * n, 100, (SELECT max(id) FROM advertiser) "
        "FROM generate_series(1, %s) AS n RETURNING id",
        count,
    )
    return [row[0] for row in rows]


def add(writer: Connection, table: str, campaign: int | None, count: int, at: str = "2026-11-18T10:00:00Z") -> None:
    write(
        writer,
        f"INSERT INTO {table} (campaign_id, created_at) "
        "SELECT %s, %s::timestamptz + n * interval '1 s' FROM generate_series(1, %s) AS n",
        campaign,
        at,
        count,
    )


def loaded(servers: Servers, **parameters: Any) -> list[tuple[Any, ...]]:
    return servers.sink.query(
        "counting", "SELECT stream, sum(rows), sum(quarantined) FROM sync_commits GROUP BY stream"
    )


# What a person may do between two runs of the pipeline.
actions = st.lists(
    st.one_of(
        st.tuples(st.just("batch"), st.integers(1, 2), st.integers(1, 60)),
        st.tuples(st.just("impressions"), st.integers(0, 5), st.integers(1, 80)),
        st.tuples(st.just("clicks"), st.integers(0, 5), st.floats(0.05, 1.0)),
        st.tuples(st.just("move_campaign"), st.integers(1, 10), st.integers(0, 5)),
        st.tuples(st.just("move_day"), st.integers(1, 10), st.integers(-9, 9)),
        st.tuples(st.just("unset_campaign"), st.integers(1, 10), st.integers(0, 5)),
        st.tuples(st.just("merge"), st.just(0), st.just(0)),
        st.tuples(st.just("pipeline"), st.just(0), st.just(0)),
        st.tuples(st.just("pipeline"), st.just(0), st.just(0)),
    ),
    min_size=3,
    max_size=12,
)


@hypothesis_settings(max_examples=8, suppress_health_check=list(HealthCheck))
@given(actions=actions, seed_number=st.integers(0, 2**16))
def test_any_mix_of_writes_and_runs_ends_in_agreement(
    servers: Servers, writer: Connection, actions: list[tuple[str, int, Any]], seed_number: int
) -> None:
    rng = np.random.default_rng(seed_number)
    clock = datetime.now(UTC)

    def some_campaign(position: int) -> int | None:
        ids = [row[0] for row in write(writer, "SELECT id FROM campaign ORDER BY id")]
        return ids[position % len(ids)] if ids else None

    seed.generate.batch(writer, advertisers=1, campaigns=2, impressions=20, ctr=0.2, rng=rng, now=clock)
    for action, first, second in actions:
        campaign = some_campaign(first)
        if action == "batch":
            seed.generate.batch(writer, advertisers=1, campaigns=first, impressions=second, ctr=0.3, rng=rng, now=clock)
        elif action == "impressions" and campaign:
            seed.generate.impressions(writer, campaign_id=campaign, count=second, rng=rng, now=clock)
        elif action == "clicks" and campaign:
            seed.generate.clicks(writer, campaign_id=campaign, ratio=second, rng=rng, now=clock)
        elif action == "move_campaign":
            write(
                writer,
                "UPDATE impressions SET campaign_id = %s WHERE id IN (SELECT id FROM impressions ORDER BY random() LIMIT %s)",
                some_campaign(second),
                first,
            )
        elif action == "move_day":
            write(
                writer,
                "UPDATE clicks SET created_at = created_at + %s * interval '1 day' "
                "WHERE id IN (SELECT id FROM clicks ORDER BY id LIMIT %s)",
                second,
                first,
            )
        elif action == "unset_campaign":
            write(
                writer,
                "UPDATE impressions SET campaign_id = NULL WHERE id IN (SELECT id FROM impressions ORDER BY id LIMIT %s)",
                first,
            )
        elif action == "merge":
            servers.sink.command("merging", "OPTIMIZE TABLE ad_events FINAL")
        elif action == "pipeline":
            sync(servers)
    sync(servers)
    assert_agreement(writer, servers)


def test_backdated_events_added_later_are_loaded(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 300)
    sync(servers)
    add(writer, "impressions", campaign, 500, at="2026-11-11T00:00:00Z")
    sync(servers)
    assert_agreement(writer, servers)
    assert sum(row[2] for row in target_performance(servers)) == 800


def test_running_twice_with_nothing_new_does_nothing(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 50)
    add(writer, "clicks", campaign, 5)
    sync(servers)
    before = servers.sink.query("looking", "SELECT date_id, max(updated_at) FROM daily_campaign_performance GROUP BY 1")
    assert sync(servers, streams=list(EVENT_STREAMS)) == 0
    after = servers.sink.query("looking", "SELECT date_id, max(updated_at) FROM daily_campaign_performance GROUP BY 1")
    assert before == after
    assert metrics.dirty_days(servers.sink) == []


def test_only_changed_days_are_rebuilt(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    for day in range(10, 20):
        add(writer, "impressions", campaign, 5, at=f"2026-11-{day}T08:00:00Z")
    sync(servers)
    add(writer, "clicks", campaign, 1, at="2026-11-14T09:00:00Z")
    sync(servers, metrics_update=False)
    assert [str(day) for day in metrics.dirty_days(servers.sink)] == ["2026-11-14"]
    assert rebuild(servers) == 1
    assert_agreement(writer, servers)


@pytest.mark.parametrize("merge", [False, True])
def test_an_event_moved_to_another_day_and_campaign_leaves_the_old_ones(
    servers: Servers, writer: Connection, merge: bool
) -> None:
    first, second, _ = campaigns(writer)
    add(writer, "impressions", first, 10)
    sync(servers)
    write(writer, "UPDATE impressions SET campaign_id = %s, created_at = '2026-11-02T01:00:00Z' WHERE id <= 10", second)
    sync(servers, metrics_update=False)
    if merge:
        servers.sink.command("merging", "OPTIMIZE TABLE ad_events FINAL")
    rebuild(servers)
    assert_agreement(writer, servers)
    assert [str(row[0]) for row in target_performance(servers)] == ["2026-11-02"]


def test_an_update_of_more_rows_than_a_parser_takes_arguments(servers: Servers, writer: Connection) -> None:
    first, second, _ = campaigns(writer)
    add(writer, "impressions", first, 60_000, at="2026-11-10T00:00:00Z")
    sync(servers)
    write(writer, "UPDATE impressions SET campaign_id = %s, created_at = created_at + interval '5 days'", second)
    sync(servers)
    assert target_performance(servers) == source_performance(writer)


def test_a_day_left_by_an_attempt_that_died_is_still_rebuilt(
    servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first attempt overwrites the rows and dies; a merge then removes every trace of the old day.
    first, second, _ = campaigns(writer)
    add(writer, "impressions", first, 10)
    sync(servers)
    write(writer, "UPDATE impressions SET campaign_id = %s, created_at = '2026-11-02T01:00:00Z'", second)
    with monkeypatch.context() as patch:
        patch.setattr(servers.ledger, "mark_days", _die)
        with pytest.raises(TransientSink):
            sync(servers)
    servers.sink.command("merging", "OPTIMIZE TABLE ad_events FINAL")
    rebuild(servers)
    sync(servers)
    assert_agreement(writer, servers)


def _die(*_: Any, **__: Any) -> None:
    raise TransientSink("killed here")


def test_reading_a_large_window_again_does_not_cost_more_than_the_first_time(
    settings: Settings, writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else one that just misses its time limit would miss it by more each time it is tried.
    servers = Servers.open(settings.model_copy(update={"chunk_rows": 2000}))
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 20_000)
    asked: list[str] = []
    query, once = servers.sink.query, Sink._once

    def counted(sink: Sink, doing: str, *args: Any, **kwargs: Any) -> Any:
        asked.append(doing)
        return once(sink, doing, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(servers.ledger, "mark_days", _die)
        with pytest.raises(TransientSink):
            sync(servers)
    with monkeypatch.context() as patch:
        patch.setattr(Sink, "_once", counted)
        sync(servers)
    notes = query("counting notes", "SELECT count() FROM sync_attempts WHERE outcome = 'superseding'")[0][0]
    # Chunks are loaded two at a time, so the second may not yet see what the first has noted.
    assert 1 <= notes <= 2
    assert asked.count("looking for days that events leave") == 10
    assert asked.count("looking for earlier versions") == 0
    assert_agreement(writer, servers)
    servers.close()


@pytest.mark.parametrize("step", ["insert_columns", "_verify", "mark_days", "commit"])
def test_a_window_that_dies_at_any_step_is_loaded_by_the_next_run(
    servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 100)
    with monkeypatch.context() as patch:
        if step == "_verify":
            patch.setattr(pipeline, "_verify", _die)
        elif step == "insert_columns":
            patch.setattr(servers.sink, "insert_columns", _die)
        else:
            patch.setattr(servers.ledger, step, _die)
        with pytest.raises(TransientSink):
            sync(servers)
    assert servers.ledger.coverage([IMPRESSIONS], servers.ledger.live([IMPRESSIONS]))["impressions"].watermark == ORIGIN
    add(writer, "clicks", campaign, 10)
    sync(servers)
    assert_agreement(writer, servers)


def test_rows_of_one_instant_stay_together_and_load_in_chunks(settings: Settings, writer: Connection) -> None:
    small = settings.model_copy(update={"window_rows": 100, "chunk_rows": 64})
    servers = Servers.open(small)
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 1000)  # one statement, one instant
    for _ in range(30):
        add(writer, "impressions", campaign, 10)
    targets = servers.ledger.live([IMPRESSIONS])
    assert targets
    (planned,) = planner.plan(servers.source, servers.ledger, servers.store, small, [IMPRESSIONS])
    counts = [servers.source.count(IMPRESSIONS, window) for window in planned.windows]
    assert sum(counts) == 1300
    assert sorted(counts)[-1] == 1000
    assert all(count <= 100 for count in sorted(counts)[:-1])
    sync(servers)
    assert_agreement(writer, servers)
    servers.close()


def test_an_older_reading_that_lands_later_changes_nothing(servers: Servers, writer: Connection) -> None:
    """A window read, then overtaken by an update and a newer load, then inserted at last."""
    first, second, _ = campaigns(writer)
    add(writer, "impressions", first, 10)
    until = servers.source.now()
    window = Window(ORIGIN, until)
    uuid = servers.ledger.live([IMPRESSIONS])[EVENTS_TABLE]
    slow_source = Source(servers.settings)
    slow = Servers(servers.settings, slow_source, servers.sink, servers.ledger, servers.store)
    read: dict[str, Any] = {}

    class Overtaken(Source):
        def read_events(self, *arguments: Any) -> Any:
            rows = list(super().read_events(*arguments))
            if not read:
                read["once"] = True
                write(writer, "UPDATE impressions SET campaign_id = %s", second)
                sync(servers)
            return (row for row in rows)

    late = Overtaken(servers.settings)
    with pytest.raises(VerificationFailed):
        # Its rows were merged away or are outranked; either way the table does not hold what it read.
        _load_and_merge(late, slow, window, uuid)
    assert_agreement(writer, servers)
    late.close()
    slow_source.close()


@pytest.mark.parametrize("merge", [False, True])
def test_an_older_reading_that_lands_just_before_a_newer_one_leaves_no_day_counted_too_much(
    settings: Settings, servers: Servers, writer: Connection, merge: bool
) -> None:
    """Read, looked for earlier versions, found none; then the older reading is loaded, committed and rebuilt."""
    first, second, _ = campaigns(writer)
    sync(servers)
    add(writer, "impressions", first, 10)
    uuid = servers.ledger.live([IMPRESSIONS])[EVENTS_TABLE]
    read, go_on = threading.Event(), threading.Event()

    class Slow(Source):
        def read_events(self, *arguments: Any) -> Any:
            rows = list(super().read_events(*arguments))
            read.set()
            assert go_on.wait(60)
            yield from rows

    def load(here: Servers, source: Source, window: Window) -> pipeline.Loaded:
        return pipeline.load_window(
            source, here.sink, here.ledger, here.settings, IMPRESSIONS, window, table=EVENTS_TABLE, uuid=uuid
        )

    other, slow = Servers.open(settings), Slow(settings)
    insert = servers.sink.insert_columns

    def overtaken(*arguments: Any, **options: Any) -> int:
        go_on.set()
        assert older.result(60).loaded == 10
        assert rebuild(other) == 1
        done = insert(*arguments, **options)
        if merge:
            other.sink.command("merging", "OPTIMIZE TABLE ad_events FINAL")
        return done

    with ThreadPoolExecutor(1) as pool, closing(other), slow:
        edge = servers.source.now()
        older = pool.submit(load, other, slow, Window(ORIGIN, edge))
        assert read.wait(60)
        write(writer, "UPDATE impressions SET campaign_id = %s, created_at = '2026-11-02T01:00:00Z'", second)
        servers.sink.insert_columns = overtaken  # type: ignore[method-assign]
        load(servers, servers.source, Window(edge, servers.source.now()))
        rebuild(servers)
    assert_agreement(writer, servers)
    assert [str(row[0]) for row in target_performance(servers)] == ["2026-11-02"]
    assert metrics.dirty_days(servers.sink) == []


def _load_and_merge(source: Source, servers: Servers, window: Window, uuid: Any) -> None:
    sink_query = servers.sink.query

    def merged_first(doing: str, *arguments: Any, **options: Any) -> Any:
        if doing == "verifying a window":
            servers.sink.command("merging", "OPTIMIZE TABLE ad_events FINAL")
        return sink_query(doing, *arguments, **options)

    servers.sink.query = merged_first  # type: ignore[method-assign]
    try:
        pipeline.load_window(
            source, servers.sink, servers.ledger, servers.settings, IMPRESSIONS, window, table=EVENTS_TABLE, uuid=uuid
        )
    finally:
        servers.sink.query = sink_query  # type: ignore[method-assign]


def test_a_window_resent_whole_is_not_stored_twice(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 100)
    window = Window(ORIGIN, servers.source.now())
    uuid = servers.ledger.live([IMPRESSIONS])[EVENTS_TABLE]

    def load() -> pipeline.Loaded:
        return pipeline.load_window(
            servers.source, servers.sink, servers.ledger, servers.settings, IMPRESSIONS, window,
            table=EVENTS_TABLE, uuid=uuid,
        )  # fmt: skip

    assert load().loaded == 100
    assert load().already
    servers.sink.command("forgetting the commits", "TRUNCATE TABLE sync_commits")
    assert load().loaded == 100
    # Nothing was written to PostgreSQL in between: same version, same token, no second copy.
    assert servers.sink.query("counting", "SELECT count() FROM ad_events")[0][0] == 100


POISON = [
    ("'9999-12-31T00:00:00Z'", "created_at is after 2299-12-30"),
    ("'infinity'", "created_at is infinity"),
    ("'-infinity'", "created_at is NULL or -infinity"),
    ("NULL", "created_at is NULL or -infinity"),
    ("'1850-01-01T00:00:00Z'", "created_at is before 1900-01-02"),
]


@pytest.mark.parametrize(("value", "rule"), POISON)
def test_a_row_that_cannot_be_loaded_is_quarantined_and_the_rest_is_loaded(
    servers: Servers, writer: Connection, value: str, rule: str
) -> None:
    (campaign, *_) = campaigns(writer)
    write(writer, "ALTER TABLE impressions ALTER created_at DROP NOT NULL")
    add(writer, "impressions", campaign, 20)
    sync(servers)
    assert len(target_events(servers)) == 20
    # One that was fine before turns bad, one is bad from the start.
    write(writer, f"UPDATE impressions SET created_at = {value} WHERE id = (SELECT min(id) FROM impressions)")
    write(writer, f"INSERT INTO impressions (campaign_id, created_at) VALUES ({campaign}, {value})")
    add(writer, "impressions", campaign, 5)
    sync(servers)
    held = servers.sink.query("looking", "SELECT event_id, rule FROM quarantined_events FINAL ORDER BY event_id")
    assert [row[1] for row in held] == [rule, rule]
    assert len(target_events(servers)) == 24
    assert sum(row[2] for row in target_performance(servers)) == 24
    totals = {stream: (rows, quarantined) for stream, rows, quarantined in loaded(servers)}
    assert totals["impressions"] == (20 + 5, 2)


@pytest.mark.parametrize("year", [1901, 1970, 2150, 2299])
def test_years_far_away_are_loaded_and_have_their_day(servers: Servers, writer: Connection, year: int) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 3, at=f"{year}-03-01T00:00:00Z")
    sync(servers)
    assert_agreement(writer, servers)
    (covered,) = servers.sink.query(
        "looking",
        "SELECT count() FROM daily_campaign_performance INNER JOIN date_dimension USING (date_id)",
    )[0]
    assert covered == 1


def test_what_clickhouse_refuses_unforeseen_is_found_by_halving(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 200)
    servers.sink.command(
        "forbidding two events", "ALTER TABLE ad_events ADD CONSTRAINT no CHECK event_id NOT IN (7, 150) OR _deleted"
    )
    sync(servers)
    held = servers.sink.query("looking", "SELECT event_id FROM quarantined_events FINAL ORDER BY event_id")
    assert [row[0] for row in held] == [7, 150]
    assert len(target_events(servers)) == 198
    assert loaded(servers)[0][1:] == (198, 2) or ("impressions", 198, 2) in loaded(servers)


def test_dimensions_follow_the_source(servers: Servers, writer: Connection) -> None:
    first, second, third = campaigns(writer)
    write(writer, "INSERT INTO campaign (name, bid, budget) VALUES ('no advertiser, no dates', 1, 0)")
    write(writer, "UPDATE campaign SET start_date = current_date, end_date = '9999-12-31' WHERE id = %s", first)
    write(
        writer, "UPDATE campaign SET start_date = current_date - 9, end_date = current_date - 1 WHERE id = %s", second
    )
    write(writer, "UPDATE campaign SET start_date = current_date + 1, updated_at = NULL WHERE id = %s", third)
    sync(servers)
    rows = servers.sink.query(
        "looking",
        "SELECT campaign_name, advertiser_name, is_active, is_deleted, campaign_duration_days "
        "FROM campaign_dimension ORDER BY campaign_id",
    )
    assert [row[2] for row in rows] == [True, False, False, True]
    assert [row[1] for row in rows] == ["Acme", "Acme", "Acme", None]
    assert rows[1][4] == 9
    write(writer, "UPDATE advertiser SET name = 'Acme & Söhne'")
    write(writer, "DELETE FROM campaign WHERE id = %s", second)
    sync(servers)
    rows = servers.sink.query(
        "looking", "SELECT advertiser_name, is_deleted FROM campaign_dimension ORDER BY campaign_id"
    )
    assert rows == [("Acme & Söhne", False), ("Acme & Söhne", True), ("Acme & Söhne", False), (None, False)]


def test_an_unchanged_dimension_writes_nothing(servers: Servers, writer: Connection) -> None:
    campaigns(writer)
    sync(servers)
    sync(servers)
    sync(servers)
    assert servers.sink.query("counting", "SELECT count() FROM campaign_history")[0][0] == 3
    assert servers.sink.query("counting", "SELECT count() FROM advertiser_dimension")[0][0] == 1


def test_an_edited_bid_does_not_rewrite_what_was_spent_before(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    write(writer, "UPDATE campaign SET bid = 1.00, updated_at = '2026-11-01T00:00:00Z' WHERE id = %s", campaign)
    add(writer, "clicks", campaign, 10, at="2026-11-05T00:00:00Z")
    sync(servers)
    write(writer, "UPDATE campaign SET bid = 3.00, updated_at = '2026-11-10T12:00:00Z' WHERE id = %s", campaign)
    add(writer, "clicks", campaign, 10, at="2026-11-10T11:59:55Z")  # four before the edit, one at it, five after
    sync(servers)
    spend = {str(row[0]): row[4] for row in target_performance(servers)}
    assert spend == {"2026-11-05": 10, "2026-11-10": 4 * 1 + 6 * 3}


def test_a_campaign_that_arrives_after_its_events_prices_them(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "clicks", campaign, 10)
    sync(servers, streams=list(EVENT_STREAMS))
    assert [row[4] for row in target_performance(servers)] == [0]
    sync(servers)
    assert_agreement(writer, servers)


@pytest.mark.parametrize(("model", "expected"), [("cpc", "2.20"), ("cpi", "1.10"), ("cpm", "0.00110")])
def test_spend_follows_the_pricing_model(settings: Settings, writer: Connection, model: str, expected: str) -> None:
    servers = Servers.open(settings.model_copy(update={"pricing_model": model}))
    (campaign, *_) = campaigns(writer)
    write(writer, "UPDATE campaign SET bid = 0.11 WHERE id = %s", campaign)
    add(writer, "impressions", campaign, 10)
    add(writer, "clicks", campaign, 20)
    sync(servers)
    ((spend, cpm, cpc, ctr, named),) = servers.sink.query(
        "looking", "SELECT spend_amount, cpm, cpc, ctr, pricing_model FROM daily_campaign_performance"
    )
    assert str(spend.normalize()) == str(type(spend)(expected).normalize())
    assert cpm == spend * 1000 / 10
    assert cpc == round(spend / 20, 6)
    assert (ctr, named) == (2.0, model)
    servers.close()


def test_ratios_without_a_denominator_are_null(servers: Servers, writer: Connection) -> None:
    first, second, _ = campaigns(writer)
    add(writer, "impressions", first, 4)
    add(writer, "clicks", second, 2)
    sync(servers)
    rows = servers.sink.query("looking", "SELECT ctr, cpm, cpc FROM daily_campaign_performance ORDER BY campaign_id")
    assert rows[0] == (0.0, 0, None)
    assert rows[1][:2] == (None, None)


@pytest.mark.parametrize("zone", ["Europe/Paris", "America/New_York", "Asia/Kathmandu"])
def test_days_are_cut_in_the_reporting_time_zone(settings: Settings, writer: Connection, zone: str) -> None:
    servers = Servers.open(settings.model_copy(update={"reporting_timezone": zone}))
    migrate.migrate(servers.sink, servers.settings)
    (campaign, *_) = campaigns(writer)
    for hour in range(0, 72, 3):
        add(writer, "impressions", campaign, 7, at=f"2026-10-{24 + hour // 24}T{hour % 24:02}:29:57Z")
    sync(servers)
    assert target_performance(servers) == source_performance(writer, zone)
    servers.close()


@given(st.lists(st.tuples(*(st.integers(-(2**63), 2**63 - 1) for _ in range(4))), min_size=1, max_size=50))
def test_the_content_hash_does_not_depend_on_order_and_sees_any_change(rows: list[tuple[int, ...]]) -> None:
    def columns(some: list[tuple[int, ...]]) -> EventColumns:
        ids, campaigns, created, inserted = (np.array([row[i] for row in some], dtype=np.int64) for i in range(4))
        return EventColumns(ids, campaigns, created, inserted)

    known = pipeline.content_hash(columns(rows))
    assert pipeline.content_hash(columns(rows[::-1])) == known
    changed = [(rows[0][0], rows[0][1], rows[0][2] ^ 1, rows[0][3]), *rows[1:]]
    assert pipeline.content_hash(columns(changed)) != known


def test_windows_wait_for_an_open_transaction_and_lose_none_of_its_rows(
    servers: Servers, writer: Connection, settings: Settings
) -> None:
    import psycopg2

    (campaign, *_) = campaigns(writer)
    other = psycopg2.connect(settings.source_dsn)
    with other.cursor() as cursor:
        cursor.execute("SELECT 1")  # open and idle before its first write: its rows will be stamped with this moment
    add(writer, "impressions", campaign, 10)
    (planned,) = planner.plan(servers.source, servers.ledger, servers.store, servers.settings, [IMPRESSIONS])
    assert planned.windows == ()
    assert [holder.who for holder in planned.horizon.holders] == [f"pid {other.info.backend_pid}"]
    with other.cursor() as cursor:
        cursor.execute("INSERT INTO impressions (campaign_id) VALUES (%s)", (campaign,))
    other.commit()
    other.close()
    sync(servers)
    assert_agreement(writer, servers)
    assert len(target_events(servers)) == 11


def test_a_prepared_transaction_holds_everything(servers: Servers, writer: Connection, settings: Settings) -> None:
    import psycopg2

    (campaign, *_) = campaigns(writer)
    other = psycopg2.connect(settings.source_dsn)
    gid = f"held-{campaign}-{settings.sink_address.database}"
    other.tpc_begin(gid)
    with other.cursor() as cursor:
        cursor.execute("INSERT INTO impressions (campaign_id) VALUES (%s)", (campaign,))
    other.tpc_prepare()
    add(writer, "impressions", campaign, 10)
    (planned,) = planner.plan(servers.source, servers.ledger, servers.store, servers.settings, [IMPRESSIONS])
    assert planned.windows == ()
    assert planned.horizon.at is None
    assert planned.horizon.holders[0].prepared
    other.tpc_commit()
    other.close()
    sync(servers)
    assert_agreement(writer, servers)


def test_our_own_readers_do_not_hold_the_horizon(servers: Servers, settings: Settings) -> None:
    reader = Source(settings)
    with reader.snapshot([IMPRESSIONS]):
        before = servers.source.now()
        horizon = servers.source.horizon()
        assert horizon.at is not None
        assert horizon.at >= before - timedelta(milliseconds=settings.horizon_margin_ms)
    reader.close()
