"""Every check finds the defect it is there for, exactly, and nothing else calls clean data an error."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from psycopg2.extensions import connection as Connection

from seed import generate
from tests.agreement import rebuild, sync
from tests.integration.test_pipeline import write
from worker import migrate, quality, standing
from worker.celery import Servers
from worker.config import Settings
from worker.errors import BadInput
from worker.quality import Found, Scope
from worker.streams import EVENT_STREAMS, STREAMS

TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
"""Tests that run over midnight see yesterday as today, which changes nothing for them."""

DAY = (TODAY - timedelta(days=2)).date()


def through(servers: Servers) -> dict[str, datetime]:
    return {s.name: standing.complete_through(servers.source, servers.ledger, [s]) for s in EVENT_STREAMS}


def check(servers: Servers, *names: str, **thresholds: Any) -> dict[str, Found]:
    """What these checks (default all) find on every day."""
    # The last event of clean data is yesterday's at ten, so that what is a silence must not hang on the time of day.
    given = {"campaign_silent": {"silent_hours": 40}}
    if thresholds:
        given[names[0]] = thresholds
    settings = servers.settings.model_copy(update={"check_thresholds": given})
    selected = quality.chosen(settings, names)
    found = quality.run(
        servers.source, servers.sink, settings, selected, Scope("manual"), through(servers), run_id=uuid.uuid4().hex
    )
    return {result.check.name: result for result in found}


def failed(found: dict[str, Found]) -> set[str]:
    broken = {name: result.message for name, result in found.items() if result.state == "broken"}
    assert not broken
    return {name for name, result in found.items() if result.state == "failed"}


def execute(servers: Servers, statement: str) -> None:
    servers.sink.command("planting a defect", statement)


def insert_event(servers: Servers, **values: Any) -> None:
    row = {
        "event_type": "impression",
        "event_id": 1,
        "campaign_id": 1,
        "created_at": TODAY - timedelta(days=2) + timedelta(hours=10),
        "inserted_at": TODAY - timedelta(days=1),
        "_version": 2**60,
        **values,
    }
    servers.sink.insert_rows("ad_events", list(row), [list(row.values())])


@pytest.fixture
def clean(servers: Servers, writer: Connection) -> Servers:
    """Three campaigns of one advertiser that run now, 30 impressions and 3 clicks each on each of the last 3 days."""
    write(writer, "INSERT INTO advertiser (name) VALUES ('Acme')")
    write(
        writer,
        "INSERT INTO campaign (name, bid, budget, advertiser_id, start_date, end_date) "
        "SELECT 'campaign ' || n, 0.5, 1000, 1, %s, %s FROM generate_series(1, 3) AS n",
        TODAY.date() - timedelta(days=20),
        TODAY.date() + timedelta(days=20),
    )
    for table, count in (("impressions", 30), ("clicks", 3)):
        write(
            writer,
            f"INSERT INTO {table} (campaign_id, created_at) "
            "SELECT c, %s::timestamptz - d * interval '1 day' + interval '10 h' + n * interval '1 s' "
            "FROM generate_series(1, 3) AS c, generate_series(1, 3) AS d, generate_series(1, %s) AS n",
            TODAY,
            count,
        )
    sync(servers)
    return servers


def test_clean_data_passes_every_check(clean: Servers) -> None:
    assert failed(check(clean)) == set()


def test_an_empty_database_passes_every_check(servers: Servers) -> None:
    found = check(servers)
    assert len(found) == len(quality.checks(servers.settings)) >= 25
    assert failed(found) == set()


@pytest.mark.parametrize("seed", range(3))
def test_what_the_seeder_makes_has_no_error(servers: Servers, writer: Connection, seed: int) -> None:
    generate.batch(
        writer,
        advertisers=2,
        campaigns=3,
        impressions=400,
        ctr=0.1,
        days=40,
        batch_rows=1000,
        rng=np.random.default_rng(seed),
        now=servers.source.now(),
    )
    sync(servers)
    found = check(servers)
    failed(found)
    assert [name for name, result in found.items() if result.is_error] == []


@dataclass(frozen=True)
class Case:
    """A defect: how it is planted in clean data, the failing rows that must come out, in part, and what else it is."""

    check: str
    plant: Callable[[Servers, Connection], object]
    rows: list[dict[str, Any]]
    also: set[str] = field(default_factory=set)
    thresholds: dict[str, Any] = field(default_factory=dict)


def source(statement: str, *parameters: Any) -> Callable[[Servers, Connection], object]:
    """Written to PostgreSQL, then synced."""

    def plant(servers: Servers, writer: Connection) -> None:
        write(writer, statement, *parameters)
        sync(servers)

    return plant


def target(statement: str) -> Callable[[Servers, Connection], object]:
    return lambda servers, writer: execute(servers, statement)


def unbound(statement: str, *parameters: Any) -> Callable[[Servers, Connection], object]:
    """Written to a source without its foreign keys."""

    def plant(servers: Servers, writer: Connection) -> None:
        for table in ("impressions", "clicks"):
            write(writer, f"ALTER TABLE {table} DROP CONSTRAINT {table}_campaign_id_fkey")
        write(writer, "ALTER TABLE campaign DROP CONSTRAINT campaign_advertiser_id_fkey")
        source(statement, *parameters)(servers, writer)

    return plant


def many(servers: Servers, writer: Connection) -> None:
    """Three thousand impressions a week for four weeks, and five times that on the same weekday after them."""
    write(writer, "UPDATE campaign SET start_date = start_date - 60")
    for weeks in range(1, 6):
        write(
            writer,
            "INSERT INTO impressions (campaign_id, created_at) "
            "SELECT 1, %s::timestamptz + n * interval '1 s' FROM generate_series(1, %s) AS n",
            TODAY - timedelta(days=2 + 7 * (weeks - 1)),
            3000 if weeks > 1 else 15_000,
        )
    sync(servers)


def long_silent(servers: Servers, writer: Connection) -> None:
    write(writer, "UPDATE impressions SET created_at = created_at - interval '5 days' WHERE campaign_id = 2")
    write(writer, "UPDATE clicks SET created_at = created_at - interval '5 days' WHERE campaign_id = 2")
    sync(servers)


def two_contents(servers: Servers, writer: Connection) -> None:
    (version,) = servers.sink.query("looking", "SELECT max(_version) + 1 FROM ad_events")[0]
    insert_event(servers, event_id=5, campaign_id=1, _version=version)
    insert_event(servers, event_id=5, campaign_id=2, _version=version)


def lagging(servers: Servers, writer: Connection) -> None:
    """Written, and loaded by nobody."""
    write(writer, "ALTER TABLE clicks DISABLE TRIGGER USER")
    write(
        writer,
        "INSERT INTO clicks (campaign_id, created_at, inserted_at) "
        "SELECT 1, now() - interval '1 day', now() - interval '2 hours' FROM generate_series(1, 2)",
    )
    # As if the watermark had stopped three hours ago.
    for table in ("sync_commits", "sync_totals"):
        execute(servers, f"ALTER TABLE {table} DELETE WHERE stream = 'clicks' SETTINGS mutations_sync = 2")
    live = servers.ledger.live([STREAMS["clicks"]])["ad_events"]
    now = servers.source.now()
    servers.sink.insert_rows(
        "sync_commits",
        ("stream", "target_uuid", "lo", "hi", "kind", "version", "extracted"),
        [("clicks", live, datetime(1970, 1, 1, tzinfo=UTC), now - timedelta(hours=3), "window", 1 << 56, 0)],
    )


def gap(servers: Servers, writer: Connection) -> None:
    write(writer, "BEGIN; INSERT INTO clicks (campaign_id) SELECT 1 FROM generate_series(1, 4); ROLLBACK")
    write(writer, "INSERT INTO clicks (campaign_id) VALUES (1)")
    sync(servers)


TWO = [TODAY - timedelta(days=2) + timedelta(hours=10, seconds=n) for n in (1, 2)]

CASES = [
    Case("bid_not_positive", source("UPDATE campaign SET bid = 0 WHERE id = 2"), [{"campaign_id": 2, "bid_amount": "0"}]),
    Case("budget_negative", source("UPDATE campaign SET budget = -1 WHERE id = 3"), [{"campaign_id": 3, "budget_amount": "-1"}], {"spend_over_budget"}),
    Case("end_before_start", source("UPDATE campaign SET end_date = start_date - 1 WHERE id = 1"), [{"campaign_id": 1}], {"outside_flight"}),
    Case(
        "event_in_the_future",
        source("INSERT INTO impressions (campaign_id, created_at) VALUES (1, now() + interval '6 min'), (1, now() + interval '4 min')"),
        [{"event_type": "impression", "event_id": 271, "campaign_id": 1, "seconds_ahead": 360}],
    ),
    Case(
        "event_too_old",
        source("INSERT INTO impressions (campaign_id, created_at) VALUES (1, '1999-12-31T23:59:59Z'), (1, '2000-01-01T00:00:00Z')"),
        [{"event_type": "impression", "event_id": 271}],
        {"outside_flight"},
    ),
    Case(
        "unknown_campaign",
        unbound("INSERT INTO clicks (campaign_id, created_at) VALUES (77, %s)", TODAY - timedelta(hours=30)),
        [{"campaign_id": 77, "event_type": "click", "events": 1, "first_event_id": 28}],
        thresholds={"grace_seconds": 0},
    ),
    Case(
        "unpriced_events",
        unbound("INSERT INTO clicks (campaign_id, created_at) VALUES (77, %s), (78, now())", TODAY - timedelta(hours=30)),
        [
            {"date_id": str(TODAY.date()), "campaign_id": 78, "unpriced": 1, "pricing_model": "cpc", "is_final": False},
            {"date_id": str(DAY), "campaign_id": 77, "unpriced": 1, "pricing_model": "cpc", "is_final": False},
        ],
        thresholds={"grace_seconds": 0},
    ),
    Case(
        "no_campaign",
        source("UPDATE impressions SET campaign_id = NULL WHERE created_at BETWEEN %s AND %s", *TWO),
        [{"date_id": str(DAY), "event_type": "impression", "events": 6}],
    ),
    Case("unknown_advertiser", unbound("UPDATE campaign SET advertiser_id = 9 WHERE id = 2"), [{"campaign_id": 2, "advertiser_id": 9}]),
    Case("no_advertiser", source("UPDATE campaign SET advertiser_id = NULL WHERE id = 2"), [{"campaign_id": 2}]),
    Case(
        "outside_flight",
        source("UPDATE campaign SET end_date = %s WHERE id = 3", DAY),
        [{"campaign_id": 3, "date_id": str(DAY + timedelta(days=1)), "impressions": 30, "clicks": 3}],
    ),
    Case(
        "clicks_above_impressions",
        source("UPDATE impressions SET campaign_id = 2 WHERE campaign_id = 1 AND created_at < %s", TODAY - timedelta(days=2)),
        [{"date_id": str(DAY - timedelta(days=1)), "campaign_id": 1, "impressions": 0, "clicks": 3}],
        {"clicks_without_impressions"},
    ),
    Case(
        "clicks_without_impressions",
        source("UPDATE clicks SET created_at = created_at + interval '5 h' WHERE campaign_id = 3 AND created_at > %s", TODAY - timedelta(days=1)),
        [{"date_id": str(DAY + timedelta(days=1)), "hour": 15, "campaign_id": 3, "clicks": 3}],
    ),
    Case(
        "ctr_ceiling",
        source(
            "INSERT INTO clicks (campaign_id, created_at) SELECT 1, %s::timestamptz + n * interval '1 s' FROM generate_series(1, 13) AS n",
            TODAY - timedelta(days=2) + timedelta(hours=10),
        ),
        [{"date_id": str(DAY), "campaign_id": 1, "impressions": 30, "clicks": 16}],
        thresholds={"min_impressions": 30},
    ),
    Case("volume", many, [{"date_id": str(DAY), "event_type": "impression", "events": 15_090, "expected_events": 3000.0}]),
    Case("campaign_silent", long_silent, [{"campaign_id": 2}], thresholds={"silent_hours": 72}),
    Case("load_lag", lagging, [{"stream": "clicks"}], {"id_gaps"}),
    Case("spend_over_budget", source("UPDATE campaign SET budget = 4.49 WHERE id = 2"), [{"campaign_id": 2, "spend": "4.5", "budget": "4.49", "pricing_model": "cpc"}]),
    Case(
        "date_dimension",
        lambda servers, writer: execute(servers, f"CREATE OR REPLACE VIEW date_dimension AS SELECT toDate32(toDate('{DAY}')) AS date_id"),
        [
            {"date_id": str(DAY - timedelta(days=1)), "why": "has events"},
            {"date_id": str(DAY + timedelta(days=1)), "why": "has events"},
            {"why": "lies ahead"},
        ],
    ),
    Case(
        "metrics_equal_events",
        target(f"ALTER TABLE daily_campaign_performance UPDATE spend_amount = 7, clicks_count = 2 WHERE campaign_id = 2 AND date_id = '{DAY}' SETTINGS mutations_sync = 2"),
        [
            {
                "date_id": str(DAY),
                "campaign_id": 2,
                "impressions_in_metrics": 30,
                "impressions_in_events": 30,
                "clicks_in_metrics": 2,
                "clicks_in_events": 3,
                "spend_in_metrics": "7",
                "spend_in_events": "1.5",
            }
        ],
        {"views_equal_events"},
    ),
    Case(
        "views_equal_events",
        target(
            "CREATE OR REPLACE VIEW event_type_distribution AS SELECT date_id, 'click' AS event_type, "
            "sum(clicks_count) + 1 AS events_count, max(daily.updated_at) AS updated_at "
            f"FROM daily_campaign_performance AS daily WHERE date_id = '{DAY}' GROUP BY date_id "
            "UNION ALL SELECT date_id, 'click', sum(clicks_count), max(daily.updated_at) FROM daily_campaign_performance AS daily "
            f"WHERE date_id != '{DAY}' GROUP BY date_id "
            "UNION ALL SELECT date_id, 'impression', sum(impressions_count), max(daily.updated_at) FROM daily_campaign_performance AS daily GROUP BY date_id"
        ),
        [{"view_name": "event_type_distribution", "date_id": str(DAY), "clicks_in_view": 10, "clicks_in_events": 9}],
    ),
    Case("duplicate_events", two_contents, [{"event_type": "impression", "event_id": 5, "copies": 2, "campaigns": [1, 2]}]),
    Case(
        "conservation",
        lambda servers, writer: servers.sink.insert_rows(
            "sync_commits",
            ("stream", "target_uuid", "lo", "hi", "kind", "rows", "quarantined", "extracted"),
            [("clicks", servers.ledger.live(EVENT_STREAMS)["ad_events"], TODAY, TODAY + timedelta(seconds=1), "window", 9, 0, 10)],
        ),
        [{"stream": "clicks", "extracted": 10, "loaded": 9, "quarantined": 0}],
    ),
    Case("id_gaps", gap, [{"event_type": "click", "from_id": 1, "to_id": 32, "present": 28, "missing": 4}]),
    Case(
        "source/freshness",
        lambda servers, writer: [
            write(writer, "ALTER TABLE clicks DISABLE TRIGGER USER"),
            write(writer, "UPDATE clicks SET inserted_at = now() - interval '25 hours'"),
        ],
        [{"source_table": "clicks"}],
    ),
    Case(
        "source/duplicate_ids",
        lambda servers, writer: [
            write(writer, "ALTER TABLE clicks DROP CONSTRAINT clicks_pkey"),
            write(writer, "INSERT INTO clicks (id, campaign_id) VALUES (4, 1)"),
        ],
        [{"source_table": "clicks", "id": 4, "copies": 2}],
    ),
    Case(
        "source/inserted_at_ahead",
        lambda servers, writer: write(writer, "INSERT INTO clicks (campaign_id, inserted_at) VALUES (1, now() + interval '1 hour')"),
        [{"source_table": "clicks", "rows_ahead": 1}],
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.check)
def test_a_planted_defect_is_found_exactly(clean: Servers, writer: Connection, case: Case) -> None:
    before = check(clean, case.check, **case.thresholds)[case.check]
    assert before.state == "passed", before
    case.plant(clean, writer)
    found = check(clean, case.check, **case.thresholds)[case.check]
    assert found.state == "failed", found.message
    assert found.failing == len(case.rows), found.samples
    for ours, expected in zip(found.samples, case.rows, strict=True):
        assert {column: ours[column] for column in expected} == expected
    # Nothing else goes off: settled days apart, which the others may call unsettled, never wrong.
    assert failed(check(clean)) - {case.check} <= case.also


def test_every_check_has_a_case() -> None:
    assert {case.check for case in CASES} == {path_name(path) for path in quality.CHECKS.rglob("*.sql")}


def path_name(path: Path) -> str:
    return str(path.relative_to(quality.CHECKS).with_suffix(""))


def test_an_event_that_never_reached_the_metrics_is_found_once_it_had_the_time_to(clean: Servers) -> None:
    insert_event(clean, event_id=1000, campaign_id=3, created_at=datetime(2026, 1, 5, 12, tzinfo=UTC))
    assert check(clean, "metrics_equal_events")["metrics_equal_events"].state == "passed"
    found = check(clean, "metrics_equal_events", grace_seconds=0)["metrics_equal_events"]
    assert [(row["date_id"], row["impressions_in_events"]) for row in found.samples] == [("2026-01-05", 1)]


@pytest.mark.parametrize("model", ["cpc", "cpm", "cpi"])
def test_metrics_of_every_pricing_model_and_zone_pass(clean: Servers, model: str) -> None:
    update = {"pricing_model": model, "reporting_timezone": "Asia/Kolkata"}
    clean.settings = clean.settings.model_copy(update=update)
    migrate.migrate(clean.sink, clean.settings)
    rebuild(clean)
    found = check(clean, "metrics_equal_events", "views_equal_events")
    assert failed(found) == set()


def test_results_are_kept_with_failing_rows(clean: Servers, writer: Connection) -> None:
    source("UPDATE campaign SET bid = 0 WHERE id = 2")(clean, writer)
    check(clean, "bid_not_positive", "end_before_start")
    kept = clean.sink.query(
        "looking",
        "SELECT check_name, toString(severity), toString(state), toString(trigger), failing, samples, statement != '' "
        "FROM quality_results ORDER BY check_name",
    )
    assert [row[:5] for row in kept] == [
        ("bid_not_positive", "error", "failed", "manual", 1),
        ("end_before_start", "error", "passed", "manual", 0),
    ]
    assert json.loads(kept[0][5][0])["campaign_id"] == 2
    assert [row[6] for row in kept] == [True, False]


def test_many_failing_rows_are_counted_and_some_kept(clean: Servers, writer: Connection) -> None:
    source("UPDATE impressions SET created_at = '1980-01-01'")(clean, writer)
    found = check(clean, "event_too_old")["event_too_old"]
    assert (found.failing, len(found.samples)) == (270, clean.settings.check_samples)


def test_only_days_rebuilt_since_are_looked_at(clean: Servers, writer: Connection) -> None:
    assert len(quality.changed(clean.sink)) == 3
    scope = Scope("rebuild", quality.ranges(quality.changed(clean.sink)))
    selected = [c for c in quality.checks(clean.settings) if not c.nightly]
    list(quality.run(clean.source, clean.sink, clean.settings, selected, scope, through(clean), run_id="a"))
    # A minute is allowed for a day to be published; as if the checks had run a minute later.
    execute(
        clean,
        "INSERT INTO quality_results (trigger, checked_at) SELECT 'rebuild', now64(6) + INTERVAL 60 SECOND",
    )
    assert quality.changed(clean.sink) == []
    source("INSERT INTO clicks (campaign_id, created_at) VALUES (1, %s)", TODAY - timedelta(days=40))(clean, writer)
    assert quality.changed(clean.sink) == [(TODAY - timedelta(days=40)).date()]


def test_days_outside_the_scope_are_not_looked_at(clean: Servers, writer: Connection) -> None:
    source("UPDATE impressions SET created_at = '1980-01-01' WHERE id IN (1, 2)")(clean, writer)
    (selected,) = quality.chosen(clean.settings, ["event_too_old"])
    for days, failing in (((1980, 1, 1), 2), ((1980, 1, 2), 0)):
        scope = Scope("manual", ((date(*days), quality.LAST_DAY),))
        (found,) = quality.run(
            clean.source, clean.sink, clean.settings, [selected], scope, through(clean), run_id=f"{failing}"
        )
        assert found.failing == failing


def test_a_file_in_a_folder_of_ones_own_is_a_check(clean: Servers, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "our_names.sql").write_text(
        "-- Are names as we want them?\n-- Severity: error\n-- Owner: us\n-- Do: rename.\n"
        "SET param_wanted = 'campaign 1'; -- the one good name\n"
        "SELECT campaign_id FROM campaign_dimension WHERE campaign_name != {wanted:String} ORDER BY campaign_id;\n"
    )
    (tmp_path / "source" / "our_bids.sql").write_text(
        "-- Are bids as we want them?\n-- Severity: warn\n-- Owner: us\n-- Do: bid less.\n"
        "SET check.most = '0.4'; -- the highest bid\n"
        "SELECT id FROM campaign WHERE bid > current_setting('check.most')::numeric\n"
    )
    (tmp_path / "bad.sql").write_text(
        "-- Is this SQL?\n-- Severity: warn\n-- Owner: us\n-- Do: mend.\nSELECT no_such_column FROM campaign_dimension\n"
    )
    (tmp_path / "headless.sql").write_text("SELECT 1\n")
    clean.settings = clean.settings.model_copy(update={"checks_folder": tmp_path})
    found = check(clean)
    assert [row["campaign_id"] for row in found["our_names"].samples] == [2, 3]
    assert found["source/our_bids"].failing == 3
    assert found["bad"].state == "broken"
    assert "no_such_column" in found["bad"].message
    assert found["headless"].state == "broken"
    assert "question" in found["headless"].message
    # The others ran all the same.
    assert found["volume"].state == "passed"


@pytest.mark.parametrize(
    ("given", "told"),
    [({"nothing": {}}, "nothing"), ({"ctr_ceiling": {"max": 1}}, "max_ctr")],
)
def test_a_setting_for_what_is_not_there_is_refused(settings: Settings, given: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        quality.checks(settings.model_copy(update={"check_thresholds": given}))
