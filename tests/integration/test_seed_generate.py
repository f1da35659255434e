"""Generated data on a real PostgreSQL: counts, times, repeatability."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg2.extensions import connection as Connection

from seed import generate, model, schema
from seed.connection import transaction
from worker.errors import BadInput

NOW = datetime(2026, 3, 11, 15, 42, 7, 123456, tzinfo=UTC)
EVENTS = "SELECT 'impression' AS kind, * FROM impressions UNION ALL SELECT 'click', * FROM clicks"
WITHOUT_LOAD_TIME = """
SELECT kind, id, campaign_id, created_at FROM (
    SELECT 'impression' AS kind, * FROM impressions UNION ALL SELECT 'click', * FROM clicks
) AS events ORDER BY kind, id
"""


@pytest.fixture
def conn(postgres_dsn: str) -> Iterator[Connection]:
    with closing(psycopg2.connect(postgres_dsn)) as connection:
        schema.create(connection)
        yield connection


def rows(conn: Connection, query: str) -> list[tuple[Any, ...]]:
    with transaction(conn) as cursor:
        cursor.execute(query)
        return cursor.fetchall() if cursor.description else []


def value(conn: Connection, query: str) -> Any:
    return rows(conn, query)[0][0]


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_batch_adds_exactly_what_it_is_asked_for(conn: Connection) -> None:
    added = generate.batch(conn, rng=rng(), now=NOW)
    assert (len(added.advertiser_ids), len(added.campaign_ids), added.impressions, added.clicks) == (2, 6, 600, 60)
    assert rows(conn, "SELECT id FROM advertiser ORDER BY id") == [(id_,) for id_ in added.advertiser_ids]
    assert rows(conn, "SELECT advertiser_id, count(*) FROM campaign GROUP BY 1 ORDER BY 1") == [(1, 3), (2, 3)]
    for table, each in (("impressions", 100), ("clicks", 10)):
        counted = rows(conn, f"SELECT campaign_id, count(*) FROM {table} GROUP BY 1 ORDER BY 1")
        assert counted == [(id_, each) for id_ in added.campaign_ids]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    impressions=st.integers(0, 70),
    ctr=st.floats(0, 1),
    batch_rows=st.integers(1, 50),
    days=st.integers(1, 30),
    seed=st.integers(0, 2**32),
)
def test_batch_is_exact_wherever_it_is_cut(
    conn: Connection, impressions: int, ctr: float, batch_rows: int, days: int, seed: int
) -> None:
    schema.reset(conn)
    steps: list[tuple[int, int]] = []
    added = generate.batch(
        conn,
        impressions=impressions,
        ctr=ctr,
        days=days,
        batch_rows=batch_rows,
        rng=rng(seed),
        now=NOW,
        on_progress=lambda done, total: steps.append((done, total)),
    )
    clicks = int(np.floor(impressions * ctr + 0.5))
    assert (added.impressions, added.clicks) == (6 * impressions, 6 * clicks)
    assert value(conn, "SELECT count(*) FROM impressions") == 6 * impressions
    assert rows(conn, "SELECT DISTINCT count(*) FROM clicks GROUP BY campaign_id") == ([(clicks,)] if clicks else [])
    assert [total for _, total in steps] == [6 * impressions] * len(steps)
    assert len(steps) == -(-6 * impressions // batch_rows)
    assert not steps or steps[-1][0] == 6 * impressions
    earliest, latest = rows(conn, f"SELECT min(created_at), max(created_at) FROM ({EVENTS}) AS e")[0]
    assert earliest is None or (earliest >= NOW - timedelta(days=days) and latest <= NOW)


def test_events_lie_within_their_flights(conn: Connection) -> None:
    generate.batch(conn, rng=rng(), now=NOW)
    generate.history(conn, events=5_000, rng=rng(), now=NOW)
    stray = """
        SELECT count(*) FROM impressions JOIN campaign ON campaign.id = campaign_id
        WHERE (impressions.created_at AT TIME ZONE 'UTC')::date < start_date
           OR (impressions.created_at AT TIME ZONE 'UTC')::date > end_date
    """
    assert value(conn, stray) == 0
    assert value(conn, "SELECT count(DISTINCT (created_at AT TIME ZONE 'UTC')::date) FROM impressions") == 61


def test_the_database_stamps_every_row(conn: Connection) -> None:
    started = value(conn, "SELECT clock_timestamp()")
    generate.batch(conn, rng=rng(), now=NOW)
    generate.impressions(conn, campaign_id=1, count=50, rng=rng(), now=NOW)
    generate.clicks(conn, campaign_id=1, ratio=0.5, rng=rng(), now=NOW)
    generate.history(conn, events=2_000, rng=rng(), now=NOW)
    assert value(conn, f"SELECT min(inserted_at) FROM ({EVENTS}) AS e") > started


def test_a_batch_is_a_transaction_of_its_own(conn: Connection) -> None:
    generate.history(conn, events=2_500, batch_rows=1_000, rng=rng(), now=NOW)
    per_instant = f"SELECT count(*) FROM ({EVENTS}) AS e GROUP BY inserted_at ORDER BY inserted_at"
    counts = [count for (count,) in rows(conn, per_instant)]
    assert counts[:2] == [1_000, 1_000]
    assert 0 < counts[2] <= 500
    assert len(counts) == 3


def test_backdated_impressions_are_newly_inserted(conn: Connection) -> None:
    generate.batch(conn, rng=rng(), now=NOW)
    watermark = value(conn, "SELECT max(inserted_at) FROM impressions")
    added = generate.impressions(conn, campaign_id=1, count=500, rng=rng(2), now=NOW)
    assert added.impressions == 500
    assert value(conn, f"SELECT count(*) FROM impressions WHERE inserted_at > '{watermark}'") == 500
    assert value(conn, f"SELECT count(*) FROM impressions WHERE created_at < '{NOW - timedelta(days=1)}'") > 500


@pytest.mark.parametrize(
    ("start", "end", "first", "last"),
    [
        ("2026-03-08", "2026-03-08", "2026-03-08", "2026-03-08"),
        ("2026-03-10", None, "2026-03-10", "2026-03-11"),
        (None, "2026-03-05", "2026-03-03", "2026-03-05"),
        ("-infinity", "infinity", "2026-03-03", "2026-03-11"),
        ("2026-05-01", "2026-05-31", "2026-03-03", "2026-03-11"),  # flight elsewhere: the count is what was asked for
    ],
)
def test_impressions_keep_to_the_flight(
    conn: Connection, start: str | None, end: str | None, first: str, last: str
) -> None:
    with transaction(conn) as cursor:
        cursor.execute(
            "INSERT INTO campaign (name, bid, budget, start_date, end_date) VALUES ('c', 1, 1, %s, %s)", (start, end)
        )
    generate.impressions(conn, campaign_id=1, count=400, rng=rng(), now=NOW)
    days = rows(
        conn,
        "SELECT min(d), max(d), count(*) FROM (SELECT (created_at AT TIME ZONE 'UTC')::date::text AS d FROM impressions) AS e",
    )
    assert days == [(first, last, 400)]


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, 0), (0.004, 1), (0.5, 125), (1.0, 250)])
def test_clicks_follow_impressions_of_their_campaign(conn: Connection, ratio: float, expected: int) -> None:
    generate.batch(conn, advertisers=1, campaigns=2, impressions=250, ctr=0, rng=rng(), now=NOW)
    rows(conn, "INSERT INTO impressions (campaign_id, created_at) VALUES (2, 'infinity'), (2, '2026-03-12 00:00Z')")
    added = generate.clicks(conn, campaign_id=2, ratio=ratio, batch_rows=40, rng=rng(), now=NOW)
    assert added.clicks == expected
    assert rows(conn, "SELECT campaign_id, count(*) FROM clicks GROUP BY 1") == ([(2, expected)] if expected else [])
    unexplained = """
        SELECT count(*) FROM clicks WHERE NOT EXISTS (
            SELECT FROM impressions WHERE impressions.campaign_id = clicks.campaign_id
            AND impressions.created_at BETWEEN clicks.created_at - interval '30 minutes' AND clicks.created_at)
    """
    assert value(conn, unexplained) == 0
    assert value(conn, f"SELECT count(*) FROM clicks WHERE created_at > '{NOW}'") == 0


def test_history_looks_like_life(conn: Connection) -> None:
    steps: list[tuple[int, int]] = []
    added = generate.history(
        conn,
        advertisers=10,
        campaigns=80,
        events=60_000,
        days=30,
        rng=rng(7),
        now=NOW,
        on_progress=lambda done, total: steps.append((done, total)),
    )
    assert len(added.advertiser_ids) == 10
    assert len(added.campaign_ids) == 80
    assert added.impressions + added.clicks == pytest.approx(60_000, rel=0.02)
    assert value(conn, "SELECT count(*) FROM impressions") == added.impressions
    assert value(conn, "SELECT count(*) FROM clicks") == added.clicks
    assert 0.001 < added.clicks / added.impressions < 0.015
    assert steps == sorted(steps)
    assert steps[-1] == (60_000, 60_000)

    earliest, latest = rows(conn, f"SELECT min(created_at), max(created_at) FROM ({EVENTS}) AS e")[0]
    assert NOW - timedelta(days=30) <= earliest < NOW - timedelta(days=29)
    assert NOW - timedelta(hours=1) < latest <= NOW

    kinds = rows(
        conn,
        "SELECT count(*) FILTER (WHERE end_date IS NULL), count(*) FILTER (WHERE end_date < '2026-03-11'),"
        " count(*) FILTER (WHERE start_date > '2026-03-11'), min(bid), max(bid) FROM campaign",
    )[0]
    assert min(kinds[:3]) > 0
    assert kinds[3] >= model.BID_LOWEST
    assert kinds[4] <= model.BID_HIGHEST
    assert value(conn, "SELECT count(DISTINCT advertiser_id) FROM campaign") == 10
    # A campaign that is to come has no events; the biggest tenth has most of them.
    assert (
        value(
            conn,
            "SELECT count(*) FROM impressions JOIN campaign c ON c.id = campaign_id WHERE start_date > '2026-03-11'",
        )
        == 0
    )
    per_campaign = sorted(
        (count for (count,) in rows(conn, "SELECT count(*) FROM impressions GROUP BY campaign_id")), reverse=True
    )
    assert sum(per_campaign[:8]) > added.impressions * 0.4
    # A budget holds about what its campaign spends, at cost per click.
    spent = "SELECT sum(bid) FROM clicks JOIN campaign c ON c.id = campaign_id WHERE end_date < '2026-03-11'"
    planned = "SELECT sum(budget) FROM campaign WHERE end_date < '2026-03-11'"
    assert 0.1 < value(conn, spent) / value(conn, planned) < 2


def test_history_is_written_as_reports_arrive(conn: Connection) -> None:
    generate.history(conn, events=20_000, batch_rows=500, rng=rng(), now=NOW)
    created = np.array(
        [instant.timestamp() for (instant,) in rows(conn, "SELECT created_at FROM impressions ORDER BY id")]
    )
    newest_before = np.maximum.accumulate(created)
    late = newest_before - created
    assert 0.004 < np.mean(late > 6 * 3600) < 0.02
    assert 0.03 < np.mean(late > 5 * 60) < 0.08
    assert late.max() < 5 * 86_400


def test_reports_still_under_way_are_left_out(conn: Connection) -> None:
    added = generate.history(conn, events=20_000, days=1, rng=rng(), now=NOW)
    # One in a hundred takes longer than six hours, most of those longer than the day itself.
    assert 19_500 < added.impressions + added.clicks < 19_880
    assert value(conn, f"SELECT max(created_at) <= '{NOW}' FROM ({EVENTS}) AS e") is True


@pytest.mark.parametrize("same", [True, False])
def test_a_seed_repeats_the_data_and_another_does_not(postgres_dsn: str, conn: Connection, same: bool) -> None:
    tables = ("SELECT * FROM advertiser ORDER BY id", "SELECT * FROM campaign ORDER BY id", WITHOUT_LOAD_TIME)
    seen = []
    for seed in (11, 11 if same else 12):
        rows(conn, "TRUNCATE advertiser, campaign, impressions, clicks RESTART IDENTITY")
        source = rng(seed)
        generate.history(conn, events=3_000, rng=source, now=NOW)
        generate.batch(conn, rng=source, now=NOW)
        generate.advertisers(conn, count=2, rng=source, now=NOW)
        generate.campaigns(conn, advertiser_id=1, count=3, rng=source, now=NOW)
        generate.impressions(conn, campaign_id=1, count=300, rng=source, now=NOW)
        generate.clicks(conn, campaign_id=1, ratio=0.2, rng=source, now=NOW)
        seen.append([rows(conn, query) for query in tables])
    assert len(seen[0][2]) > 3_000
    assert [first == second for first, second in zip(*seen, strict=True)] == [same, same, same]


def test_two_seeders_at_once_never_share_an_id(postgres_dsn: str, conn: Connection) -> None:
    failures: list[BaseException] = []

    def seed(number: int) -> None:
        try:
            with closing(psycopg2.connect(postgres_dsn)) as own:
                generate.batch(own, impressions=400, batch_rows=100, rng=rng(number), now=NOW)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=seed, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    counts = (
        "SELECT (SELECT count(*) FROM advertiser), (SELECT count(*) FROM campaign), (SELECT count(*) FROM impressions)"
    )
    assert rows(conn, counts) == [(6, 18, 7_200)]


class Clock:
    """Time that passes only while someone waits."""

    def __init__(self, stop_after: float = float("inf")) -> None:
        self.now = NOW
        self.stop_after = NOW + timedelta(seconds=min(stop_after, 1e6))

    def read(self) -> datetime:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.now += timedelta(seconds=seconds)
        return self.now >= self.stop_after


def test_stream_keeps_its_pace_and_ends_on_time(conn: Connection) -> None:
    generate.batch(conn, impressions=0, rng=rng(), now=NOW)
    rows(conn, "INSERT INTO campaign (name, bid, budget, start_date) VALUES ('to come', 1, 1000000, '2026-04-01')")
    clock = Clock()
    steps: list[tuple[int, int]] = []
    added = generate.stream(
        conn,
        rate=50,
        duration=600,
        rng=rng(),
        clock=clock.read,
        wait=clock.wait,
        on_progress=lambda done, total: steps.append((done, total)),
    )
    assert added.impressions == 30_000
    assert value(conn, "SELECT count(*) FROM impressions") == 30_000
    assert clock.now == NOW + timedelta(seconds=600)
    assert steps[-1] == (30_000, 30_000)
    assert np.diff([done for done, _ in steps]).max() <= 14  # 50 a second in quarters of a second
    assert value(conn, "SELECT count(*) FROM clicks") == added.clicks > 20
    assert value(conn, f"SELECT count(*) FROM ({EVENTS}) AS e WHERE created_at > '{clock.now}'") == 0
    assert value(conn, "SELECT count(*) FROM impressions WHERE campaign_id > 6") == 0
    recent = value(
        conn, f"SELECT avg((created_at > '{NOW}'::timestamptz - interval '5 minutes')::int)::float8 FROM impressions"
    )
    assert recent == pytest.approx(0.95, abs=0.01)


def test_stream_makes_up_for_a_slow_moment(conn: Connection) -> None:
    generate.batch(conn, impressions=0, rng=rng(), now=NOW)
    instants = iter([0.0, 5.0, 5.0, 5.0, 10.0, 10.0, 10.0, 10.0])
    added = generate.stream(
        conn,
        rate=10,
        duration=10,
        batch_rows=20,
        rng=rng(),
        clock=lambda: NOW + timedelta(seconds=next(instants, 10.0)),
        wait=lambda _: False,
    )
    assert added.impressions == 100
    assert value(conn, "SELECT max(n) FROM (SELECT count(*) AS n FROM impressions GROUP BY inserted_at) AS e") == 20


def test_stream_stopped_early_reports_what_it_wrote(conn: Connection) -> None:
    generate.batch(conn, impressions=0, rng=rng(), now=NOW)
    clock = Clock(stop_after=3)
    added = generate.stream(conn, rate=40, duration=60, rng=rng(), clock=clock.read, wait=clock.wait)
    assert 100 <= added.impressions < 120
    assert value(conn, "SELECT count(*) FROM impressions") == added.impressions


def test_stream_copes_with_campaigns_that_make_no_sense(conn: Connection) -> None:
    rows(
        conn,
        "INSERT INTO campaign (name, bid, budget, start_date, end_date) VALUES ('nan', 'NaN', 'NaN', NULL, NULL),"
        " ('free', 0, 0, '-infinity', 'infinity'), ('negative', -1, -5, '2026-03-11', NULL)",
    )
    clock = Clock()
    added = generate.stream(conn, rate=20_000, duration=1, rng=rng(), clock=clock.read, wait=clock.wait)
    assert added.impressions == 20_000
    assert value(conn, "SELECT count(DISTINCT campaign_id) FROM impressions") == 3
    assert value(conn, "SELECT min(created_at) FROM impressions WHERE campaign_id = 3") >= datetime(
        2026, 3, 11, tzinfo=UTC
    )


def test_stream_needs_a_campaign_in_flight(conn: Connection) -> None:
    clock = Clock()
    with pytest.raises(BadInput, match="No campaign is in flight"):
        generate.stream(conn, rate=1, duration=1, rng=rng(), clock=clock.read, wait=clock.wait)


def test_history_without_campaigns_has_no_events(conn: Connection) -> None:
    with pytest.raises(BadInput, match="at least one campaign"):
        generate.history(conn, campaigns=0, events=10, rng=rng(), now=NOW)
    added = generate.history(conn, advertisers=0, campaigns=0, events=0, rng=rng(), now=NOW)
    assert added == generate.Added()
    alone = generate.history(conn, advertisers=0, campaigns=1, events=100, rng=rng(), now=NOW)
    assert alone.impressions > 90
    assert rows(conn, "SELECT advertiser_id FROM campaign") == [(None,)]
