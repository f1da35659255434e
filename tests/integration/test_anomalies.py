"""The detector from the source to the screen: faults the seed tells of are found, clean days are left alone."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from psycopg2.extensions import connection as Connection

import seed.generate
from seed import faults
from seed.cli import seed_group
from seed.faults import Fault
from tests.agreement import assert_agreement, sync
from tests.integration.test_pipeline import campaigns, write
from worker import anomalies, metrics, migrate, queries
from worker.celery import Servers
from worker.config import Settings
from worker.errors import BadInput
from worker.streams import STREAMS

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
LAST = date(2026, 11, 19)
DAYS = 33
JUDGED = [LAST - timedelta(days=back) for back in range(10, -1, -1)]
SCALE: dict[str, Any] = {"advertisers": 5, "campaigns": 6, "impressions": 14_000, "ctr": 0.05, "days": DAYS, "now": NOW}


def stored(servers: Servers) -> list[dict[str, Any]]:
    answer = queries.run(servers.sink, queries.find("anomalies"), {})
    return [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]


def subjects(rows: list[dict[str, Any]]) -> set[tuple[int, date]]:
    return {(row["campaign_id"], row["date_id"]) for row in rows}


def in_truth(fault: Fault) -> tuple[int, date]:
    return fault.campaign_id, fault.day


@pytest.mark.parametrize("number", [1, 2])
def test_injected_faults_are_found_and_little_else(servers: Servers, writer: Connection, number: int) -> None:
    writer.autocommit = False
    added = seed.generate.batch(
        writer, **SCALE, rng=np.random.default_rng(number), fault_kinds=faults.KINDS, faults_each=3,
        before_edits=lambda: sync(servers, streams=[STREAMS["campaigns"], STREAMS["advertisers"]]),
    )  # fmt: skip
    writer.autocommit = True
    sync(servers)
    for day in JUDGED:
        anomalies.detect(servers.sink, servers.settings, day)
    rows = stored(servers)
    flagged = subjects(rows)
    truth = {in_truth(fault) for fault in added.faults}
    large = {in_truth(fault) for fault in added.faults if fault.effect >= 3}
    assert len(truth) == 15
    assert len(large) >= 13
    assert len(flagged & truth) >= 0.9 * len(flagged), [
        row for row in rows if (row["campaign_id"], row["date_id"]) not in truth
    ]
    assert len(flagged & large) >= 0.8 * len(large), large - flagged
    kinds = {kind: {in_truth(fault) for fault in added.faults if fault.kind == kind} for kind in faults.KINDS}
    told = {
        "bots": {"ctr up", "bot-like hours"},
        "outage": {"volume down", "silence"},
        "tracking_break": {"ctr down"},
        "bid_edit": {"spend over pace"},
        "duplicates": {"volume up"},
    }
    for kind, where in kinds.items():
        assert told[kind] & {row["kind"] for row in rows if (row["campaign_id"], row["date_id"]) in where}, kind
    edited = [row for row in rows if (row["campaign_id"], row["date_id"]) in kinds["bid_edit"]]
    assert all(any(cause.startswith("bid edit: ") for cause in row["known_causes"]) for row in edited)
    hours = {in_truth(fault): set(fault.hours) for fault in added.faults if fault.kind == "bots"}
    for row in rows:
        if row["kind"] == "bot-like hours" and (row["campaign_id"], row["date_id"]) in hours:
            assert set(row["hours"]) <= hours[row["campaign_id"], row["date_id"]]
    assert_agreement_but_for_bids(writer, servers)


def assert_agreement_but_for_bids(writer: Connection, servers: Servers) -> None:
    """The faults are in the source, and what was loaded is what is there."""
    (counts,) = write(writer, "SELECT (SELECT count(*) FROM impressions), (SELECT count(*) FROM clicks)")
    ours = servers.sink.query(
        "adding up", "SELECT sum(impressions_count), sum(clicks_count) FROM daily_campaign_performance"
    )
    assert tuple(map(int, ours[0])) == counts


@pytest.mark.parametrize("number", [3, 4])
def test_clean_days_are_left_alone(servers: Servers, writer: Connection, number: int) -> None:
    writer.autocommit = False
    seed.generate.batch(writer, **SCALE, rng=np.random.default_rng(number))
    writer.autocommit = True
    sync(servers)
    looked_at = sum(anomalies.detect(servers.sink, servers.settings, day).campaigns for day in JUDGED)
    assert looked_at == 30 * len(JUDGED)
    assert len(subjects(stored(servers))) <= 0.01 * looked_at, stored(servers)
    assert_agreement(writer, servers)


# One campaign among a few, day by day


def steady(writer: Connection, ids: list[int], *, days: int = 20, shown: int = 240, clicked: int = 24) -> None:
    """So many events a day for each, evenly over the hours, up to and with the last day."""
    for table, count in (("impressions", shown), ("clicks", clicked)):
        write(
            writer,
            f"INSERT INTO {table} (campaign_id, created_at) "
            "SELECT id, %s::timestamptz - d * interval '1 day' + (n + 0.5) * interval '1 day' / %s "
            "FROM unnest(%s) AS id, generate_series(0, %s) AS d, generate_series(0, %s) AS n",
            LAST,
            count,
            ids,
            days,
            count - 1,
        )


def drop_clicks(writer: Connection, campaign: int) -> None:
    write(
        writer,
        "DELETE FROM clicks WHERE campaign_id = %s AND created_at >= %s::timestamptz",
        campaign,
        LAST,
    )


def test_a_day_judged_again_says_the_same_and_takes_back_what_no_longer_holds(
    servers: Servers, writer: Connection
) -> None:
    ids = campaigns(writer, 6)
    steady(writer, ids)
    drop_clicks(writer, ids[0])
    sync(servers)
    first = anomalies.detect(servers.sink, servers.settings, LAST)
    assert [(one.campaign_id, one.kind) for one in first.found] == [(ids[0], "ctr down")]
    before = stored(servers)
    again = anomalies.detect(servers.sink, servers.settings, LAST)
    assert again == first
    after = stored(servers)
    strip = [{name: value for name, value in row.items() if name != "detected_at"} for row in before]
    assert [{name: value for name, value in row.items() if name != "detected_at"} for row in after] == strip
    assert after[0]["detected_at"] > before[0]["detected_at"]
    # The clicks come late after all.
    write(
        writer,
        "INSERT INTO clicks (campaign_id, created_at) SELECT %s, %s::timestamptz + n * interval '1 hour' "
        "FROM generate_series(0, 23) AS n",
        ids[0],
        LAST,
    )
    sync(servers)
    done = anomalies.detect(servers.sink, servers.settings, LAST)
    assert (done.found, done.withdrawn) == ((), 1)
    assert stored(servers) == []
    assert anomalies.detect(servers.sink, servers.settings, LAST).withdrawn == 0


def robots(writer: Connection, campaign: int, day: date, clicks: int) -> None:
    write(
        writer,
        "INSERT INTO clicks (campaign_id, created_at) SELECT %s, %s::timestamptz + interval '3 hours' + n * interval '5 s' "
        "FROM generate_series(1, %s) AS n",
        campaign,
        day,
        clicks,
    )


def test_earlier_robots_do_not_become_the_profile(servers: Servers, writer: Connection) -> None:
    ids = campaigns(writer, 6)
    steady(writer, ids)
    for back in (3, 8):
        robots(writer, ids[0], LAST - timedelta(days=back), 500)
    robots(writer, ids[0], LAST, 40)
    sync(servers)
    done = anomalies.detect(servers.sink, servers.settings, LAST)
    found = {one.kind: one for one in done.found}
    assert {one.campaign_id for one in done.found} == {ids[0]}
    assert set(found) == {"ctr up", "bot-like hours", "spend over pace"}
    assert found["bot-like hours"].hours == (3,)
    # Of 20 days two are cut to 2 × 1 + 5: (18 × 1 + 2 × 7) / 20. As they were it would be 51.
    assert (found["bot-like hours"].observed, round(found["bot-like hours"].expected, 1)) == (41, 1.6)
    # Nor do the days after them look poor.
    for back in (1, 2):
        assert anomalies.detect(servers.sink, servers.settings, LAST - timedelta(days=back)).found == ()


def causes(servers: Servers, campaign: int, complete_through: datetime | None = None) -> str:
    done = anomalies.detect(servers.sink, servers.settings, LAST, complete_through)
    (told,) = {one.known_causes for one in done.found if one.campaign_id == campaign}
    return " | ".join(told)


def test_quarantined_rows_are_told(servers: Servers, writer: Connection) -> None:
    ids = campaigns(writer, 6)
    steady(writer, ids)
    drop_clicks(writer, ids[0])
    sync(servers)
    for number, (campaign, at) in enumerate(
        [(ids[0], LAST), (ids[0], LAST), (ids[1], LAST), (ids[0], date(2026, 1, 1))]
    ):
        row = json.dumps({"id": number, "campaign_id": campaign, "created_at": f"{at}T10:00:00Z"})
        servers.sink.insert_rows(
            "quarantined_events",
            ("stream", "event_id", "row", "rule", "lo", "hi", "run_id", "_version"),
            [("clicks", 10**9 + number, row, "a time no report can have", NOW, NOW, "", 1)],
        )
    assert causes(servers, ids[0]) == (
        "quarantine: 2 of its clicks of this day could not be loaded (a time no report can have)"
    )


def test_late_data_is_told(servers: Servers, writer: Connection) -> None:
    ids = campaigns(writer, 6)
    steady(writer, ids)
    drop_clicks(writer, ids[0])
    # Reports that came in time, but for half of the day's; `inserted_at` is the database's, so its trigger stands aside.
    for table in ("impressions", "clicks"):
        write(writer, f"ALTER TABLE {table} DISABLE TRIGGER USER")
        write(writer, f"UPDATE {table} SET inserted_at = created_at + interval '1 minute'")
    write(
        writer,
        "UPDATE impressions SET inserted_at = created_at + interval '30 hours' "
        "WHERE campaign_id = %s AND created_at >= %s::timestamptz + interval '12 hours'",
        ids[0],
        LAST,
    )
    sync(servers)
    assert causes(servers, ids[0]) == (
        "late data: 120 of 240 events came more than a day after they happened; in the week before 0% did"
    )
    known = causes(servers, ids[0], datetime(2026, 11, 19, 22, tzinfo=UTC))
    assert "late data: the source is loaded only up to 2026-11-19 22:00 UTC, before the day's end" in known


def test_an_outage_is_told_by_the_ledger_and_by_the_other_campaigns(servers: Servers, writer: Connection) -> None:
    ids = campaigns(writer, 6)
    steady(writer, ids)
    for table in ("impressions", "clicks"):
        write(writer, f"DELETE FROM {table} WHERE created_at >= %s::timestamptz", LAST)
        write(
            writer,
            f"INSERT INTO {table} (campaign_id, created_at) SELECT %s, %s::timestamptz + n * interval '6 min' "
            "FROM generate_series(0, 239) AS n",
            ids[5],
            LAST,
        )
    sync(servers)
    stream = STREAMS["impressions"]
    servers.sink.insert_rows(
        "sync_attempts",
        ("stream", "target_uuid", "lo", "hi", "outcome", "run_id", "days", "error"),
        [
            (
                stream.name, servers.ledger.live([stream])[stream.target], datetime(2026, 11, 19, 3, tzinfo=UTC),
                datetime(2026, 11, 19, 4, tzinfo=UTC), "failed", "", [], "disk full",
            )
        ],
    )  # fmt: skip
    told = causes(servers, ids[0])
    assert "outage: the window 2026-11-19 03:00 UTC to 2026-11-19 04:00 UTC of impressions failed to load" in told
    assert "outage: 5 of 6 campaigns in flight fell silent or low on this day" in told
    assert "the whole network: the middle campaign stands at 0.00 times its usual volume" in told
    # Loaded after all, if only in pieces.
    servers.sink.command(
        "committing half of it",
        "INSERT INTO sync_commits (stream, target_uuid, lo, hi, kind, committed_at) "
        "SELECT stream, target_uuid, lo, lo + toIntervalMinute(30), 'window', noted_at + toIntervalSecond(1) "
        "FROM sync_attempts",
    )
    assert "outage: the window" not in causes(servers, ids[0])


def test_edits_and_restatements_are_told(servers: Servers, writer: Connection) -> None:
    ids = campaigns(writer, 6)
    write(writer, "UPDATE campaign SET updated_at = '2026-01-01T00:00:00Z'")
    steady(writer, ids)
    drop_clicks(writer, ids[0])
    sync(servers)
    metrics.note_finality(servers.sink, servers.settings, NOW + timedelta(days=30))
    # An edit of two days before explains nothing.
    write(writer, "UPDATE campaign SET bid = 0.5, updated_at = %s WHERE id = %s", LAST - timedelta(days=2), ids[0])
    sync(servers)
    at = datetime(2026, 11, 18, 12, tzinfo=UTC)
    write(writer, "UPDATE campaign SET bid = 0.61, budget = 90, updated_at = %s WHERE id = %s", at, ids[0])
    write(writer, "INSERT INTO impressions (campaign_id, created_at) VALUES (%s, %s)", ids[0], LAST)
    sync(servers)
    told = causes(servers, ids[0]).split(" | ")
    assert told[:2] == [
        "bid edit: 0.50 became 0.61 at 2026-11-18 12:00 UTC",
        "budget edit: 100.00 became 90.00 at 2026-11-18 12:00 UTC",
    ]
    assert told[2].startswith("restated: the day was final and changed at ")
    assert told[2].endswith(" (late rows)")


def test_a_spent_budget_and_an_ended_flight(servers: Servers, writer: Connection) -> None:
    ids = campaigns(writer, 6)
    steady(writer, ids)
    write(
        writer, "DELETE FROM impressions WHERE campaign_id = ANY(%s) AND created_at >= %s::timestamptz", ids[:2], LAST
    )
    write(writer, "DELETE FROM clicks WHERE campaign_id = ANY(%s) AND created_at >= %s::timestamptz", ids[:2], LAST)
    write(writer, "UPDATE campaign SET end_date = %s WHERE id = %s", LAST - timedelta(days=1), ids[1])
    sync(servers)
    done = anomalies.detect(servers.sink, servers.settings, LAST)
    assert [(one.campaign_id, one.kind) for one in done.found] == [(ids[0], "silence")]
    # 20 days × 24 clicks × 0.47
    assert done.found[0].known_causes == ("budget: 225.60 of 100.00 is spent by the end of the day",)


# At the doors


def test_only_whole_days_are_judged(servers: Servers, writer: Connection) -> None:
    settings = servers.settings = servers.settings.model_copy(update={"reporting_timezone": "Pacific/Auckland"})
    migrate.migrate(servers.sink, settings)
    now = datetime(2026, 11, 20, 12, tzinfo=UTC)  # the 21st there
    assert anomalies.whole_day(servers.sink, settings, "2026-11-20", now) == date(2026, 11, 20)
    for text in ("2026-11-21", "yesterday", "0001-01-01"):
        with pytest.raises(BadInput):
            anomalies.whole_day(servers.sink, settings, text, now)
    assert anomalies.days_to_judge(servers.sink, settings, now) == []
    steady(writer, campaigns(writer), days=2)
    sync(servers)
    assert anomalies.days_to_judge(servers.sink, settings, now) == [date(2026, 11, 18), LAST, date(2026, 11, 20)]


def test_the_task_and_the_command(
    servers: Servers, writer: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker.cli import cli
    from worker.tasks import metrics as tasks

    ids = campaigns(writer, 6)
    steady(writer, ids)
    drop_clicks(writer, ids[0])
    sync(servers)
    for name, value in (
        ("POSTGRES_DSN", settings.postgres_dsn),
        ("CLICKHOUSE_DSN", settings.clickhouse_dsn),
        ("REDIS_URL", settings.redis_url),
        ("RETAILMEDIA_HOME", str(settings.retailmedia_home)),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tasks, "servers", lambda: servers)
    assert tasks.detect_anomalies(day=str(LAST)) == {"days": 1, "found": 1, "withdrawn": 0}
    with pytest.raises(BadInput, match="A day is written"):
        tasks.detect_anomalies(day="soon")
    runner = CliRunner()
    shown = runner.invoke(cli, ["anomalies", "--day", str(LAST), "--detect"], catch_exceptions=False)
    assert shown.exit_code == 0
    assert f"{LAST}  ctr down  campaign 1 ({ids[0]})" in shown.output
    assert "0 clicks on 240 impressions" in shown.output
    found = json.loads(runner.invoke(cli, ["anomalies", "--campaign", str(ids[0]), "--json"]).output)
    assert [(row["kind"], row["observed"]) for row in found] == [("ctr down", 0.0)]
    assert json.loads(runner.invoke(cli, ["anomalies", "--campaign", "0", "--json"]).output) == []
    assert "No anomaly" in runner.invoke(cli, ["anomalies", "--campaign", str(ids[1])]).output


def test_the_seed_writes_its_ground_truth(
    settings: Settings, writer: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTGRES_DSN", settings.postgres_dsn)
    truth = tmp_path / "truth.json"
    words = (
        "batch --advertisers 2 --campaigns 3 --impressions 6000 --ctr 0.05 --days 12 --seed 5 --now 2026-11-20T12:00:00Z "
        f"--faults bots,outage,tracking_break,bid_edit,duplicates --truth {truth}"
    )
    result = CliRunner().invoke(seed_group, words.split(), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    told = json.loads(truth.read_text())
    assert {one["kind"] for one in told} == set(faults.KINDS)
    assert len({one["campaign_id"] for one in told}) == 5

    def counts(one: dict[str, Any], table: str) -> tuple[int, int]:
        """Events on the day in the fault's hours, and in the others."""
        (found,) = write(
            writer,
            f"SELECT count(*) FILTER (WHERE extract(hour FROM created_at AT TIME ZONE 'UTC') = ANY(%s)), "
            f"count(*) FILTER (WHERE extract(hour FROM created_at AT TIME ZONE 'UTC') <> ALL(%s)) FROM {table} "
            "WHERE campaign_id = %s AND (created_at AT TIME ZONE 'UTC')::date = %s::date",
            one["hours"],
            one["hours"],
            one["campaign_id"],
            one["day"],
        )
        return int(found[0]), int(found[1])

    by_kind = {one["kind"]: one for one in told}
    assert counts(by_kind["outage"], "impressions")[0] == counts(by_kind["outage"], "clicks")[0] == 0
    assert counts(by_kind["tracking_break"], "clicks")[0] == 0
    assert counts(by_kind["tracking_break"], "impressions")[0] > 100
    assert counts(by_kind["bots"], "clicks")[0] > counts(by_kind["bots"], "clicks")[1]
    doubled = write(
        writer,
        "SELECT count(*), count(DISTINCT created_at) FROM impressions WHERE campaign_id = %s AND "
        "(created_at AT TIME ZONE 'UTC')::date = %s::date",
        by_kind["duplicates"]["campaign_id"],
        by_kind["duplicates"]["day"],
    )[0]
    assert doubled[0] == doubled[1] * by_kind["duplicates"]["effect"]
    bid, at = write(writer, "SELECT bid, updated_at FROM campaign WHERE id = %s", by_kind["bid_edit"]["campaign_id"])[0]
    assert at == datetime.fromisoformat(f"{by_kind['bid_edit']['day']}T00:00:00+00:00")
    assert bid > 0
    refused = CliRunner().invoke(seed_group, ["batch", "--faults", "gremlins"])
    assert isinstance(refused.exception, BadInput)
    assert "gremlins" in str(refused.exception)
    few = CliRunner().invoke(seed_group, ["batch", "--faults", "bots", "--faults-each", "7"])
    assert isinstance(few.exception, BadInput)
