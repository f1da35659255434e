"""Events whose campaign is not known, or that have none: counted, not priced, and said to be unpriced."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from psycopg2.extensions import connection as Connection

from tests.agreement import rebuild, sync
from tests.integration.test_metrics import ask, restated, settle
from tests.integration.test_pipeline import add, campaigns, write
from tests.integration.test_report import built
from worker import metrics, prometheus, queries, screens, standing
from worker.celery import Servers
from worker.streams import STREAMS

DAY = "2026-11-02"
UNKNOWN = 7001


def unbound(writer: Connection) -> None:
    """The source without its foreign keys to campaigns: events may come before their campaign."""
    for table in ("impressions", "clicks"):
        write(writer, f"ALTER TABLE {table} DROP CONSTRAINT {table}_campaign_id_fkey")


def arrive(writer: Connection, bid: str, campaign: int = UNKNOWN) -> None:
    write(
        writer,
        "INSERT INTO campaign (id, name, bid, budget, updated_at) VALUES (%s, 'late', %s, 100, '2026-10-01T00:00:00Z')",
        campaign,
        bid,
    )


def row(servers: Servers, campaign: int) -> dict[str, Any]:
    columns = ("clicks_count", "spend_amount", "unpriced_count", "ctr", "cpm", "cpc")
    statement = f"SELECT {', '.join(columns)} FROM daily_campaign_performance WHERE campaign_id = %(id)s"
    (found,) = servers.sink.query("reading", statement, {"id": campaign})
    return dict(zip(columns, found, strict=True))


def before_its_campaign(servers: Servers, writer: Connection) -> int:
    """Ten impressions and three clicks each of a known campaign (bid 0.47) and of one that is not known yet."""
    unbound(writer)
    (known, *_) = campaigns(writer)
    write(writer, "UPDATE campaign SET updated_at = '2026-10-01T00:00:00Z'")
    for campaign in (known, UNKNOWN):
        add(writer, "impressions", campaign, 10, at=f"{DAY}T10:00:00Z")
        add(writer, "clicks", campaign, 3, at=f"{DAY}T10:00:00Z")
    sync(servers)
    return known


@pytest.mark.parametrize(("model", "unpriced", "spend"), [("cpc", 3, "15"), ("cpm", 10, "0.05"), ("cpi", 10, "50")])
def test_events_before_their_campaign_are_unpriced_until_it_arrives(
    servers: Servers, writer: Connection, model: str, unpriced: int, spend: str
) -> None:
    known = before_its_campaign(servers, writer)
    changed = servers.settings.model_copy(update={"pricing_model": model})
    metrics.rebuild(servers.sink, changed, metrics.outdated_days(servers.sink, changed))
    assert row(servers, UNKNOWN) == {
        "clicks_count": 3, "spend_amount": 0, "unpriced_count": unpriced, "ctr": 0.3, "cpm": None, "cpc": None,
    }  # fmt: skip
    assert row(servers, known)["unpriced_count"] == 0
    assert row(servers, known)["spend_amount"] > 0
    assert metrics.outdated_days(servers.sink, changed) == []
    for name in ("campaign_summary", "campaign_daily", "daily_campaign_performance"):
        told = {r["campaign_id"]: (r["unpriced"], r["cpm"], r["cpc"]) for r in ask(servers, name)}
        assert told[UNKNOWN] == (unpriced, None, None), name
        assert told[known][0] == 0, name
        assert told[known][1] is not None, name
    for name in ("monthly_trend", "weekend_vs_weekday"):
        assert [(r["unpriced"], r["cpm"], r["cpc"]) for r in ask(servers, name)] == [(unpriced, None, None)], name
    owners = {r["advertiser_id"]: r["unpriced"] for r in ask(servers, "advertiser_performance")}
    assert owners[None] == sum(owners.values()) == unpriced
    arrive(writer, "5")
    sync(servers, metrics_update=False)
    days = metrics.outdated_days(servers.sink, changed)
    assert days == [date.fromisoformat(DAY)]
    metrics.rebuild(servers.sink, changed, days)
    assert (row(servers, UNKNOWN)["spend_amount"], row(servers, UNKNOWN)["unpriced_count"]) == (Decimal(spend), 0)
    assert None not in row(servers, UNKNOWN).values()
    assert metrics.outdated_days(servers.sink, changed) == []


def test_a_campaign_that_arrives_is_the_cause_and_no_bid_edit(servers: Servers, writer: Connection) -> None:
    known = before_its_campaign(servers, writer)
    settle(servers)
    arrive(writer, "5")
    sync(servers)
    assert restated(servers) == {
        (DAY, UNKNOWN, "spend", Decimal(0), Decimal(15), "campaign arrived"),
        (DAY, UNKNOWN, "unpriced", Decimal(3), Decimal(0), "campaign arrived"),
    }
    # A bid that is edited is one still.
    write(writer, "UPDATE campaign SET bid = 1, updated_at = %s WHERE id = %s", f"{DAY}T00:00:00Z", known)
    sync(servers)
    assert (DAY, known, "spend", Decimal("1.41"), Decimal(3), "bid edit") in restated(servers)


def test_late_rows_beside_an_arriving_campaign_have_their_own_cause(servers: Servers, writer: Connection) -> None:
    before_its_campaign(servers, writer)
    settle(servers)
    arrive(writer, "5")
    add(writer, "clicks", UNKNOWN, 1, at=f"{DAY}T20:00:00Z")
    sync(servers)
    assert restated(servers) == {
        (DAY, UNKNOWN, "clicks", Decimal(3), Decimal(4), "late rows"),
        (DAY, UNKNOWN, "spend", Decimal(0), Decimal(20), "campaign arrived"),
        (DAY, UNKNOWN, "unpriced", Decimal(3), Decimal(0), "campaign arrived"),
    }


def test_a_campaign_worth_nothing_that_arrives_is_priced(servers: Servers, writer: Connection) -> None:
    before_its_campaign(servers, writer)
    settle(servers)
    arrive(writer, "0")
    sync(servers)
    assert restated(servers) == {(DAY, UNKNOWN, "unpriced", Decimal(3), Decimal(0), "campaign arrived")}
    found = row(servers, UNKNOWN)
    assert (found["spend_amount"], found["cpm"], found["cpc"]) == (0, 0, 0)


def test_what_an_older_version_published_as_nothing_becomes_unpriced(servers: Servers, writer: Connection) -> None:
    before_its_campaign(servers, writer)
    settle(servers)
    for table, columns in (
        ("daily_campaign_performance", "unpriced_count = 0, cpm = 0, cpc = 0"),
        ("daily_campaign_history", "unpriced_count = 0"),
    ):
        servers.sink.command(
            "as it was", f"ALTER TABLE {table} UPDATE {columns} WHERE true SETTINGS mutations_sync = 2"
        )
    rebuild(servers)
    assert row(servers, UNKNOWN)["unpriced_count"] == 3
    assert restated(servers) == {(DAY, UNKNOWN, "unpriced", Decimal(0), Decimal(3), "campaign unknown")}


def test_events_of_a_deleted_campaign_keep_their_price(servers: Servers, writer: Connection) -> None:
    unbound(writer)
    (known, *_) = campaigns(writer)
    add(writer, "clicks", known, 3, at=f"{DAY}T10:00:00Z")
    sync(servers)
    write(writer, "DELETE FROM campaign WHERE id = %s", known)
    sync(servers)
    assert (row(servers, known)["spend_amount"], row(servers, known)["unpriced_count"]) == (Decimal("1.41"), 0)


# Campaign 0


def test_a_campaign_zero_prices_no_event_without_a_campaign(servers: Servers, writer: Connection) -> None:
    """Fifteen for clicks of campaign 1; ten clicks without a campaign cost nothing, though one of id 0 has a bid of 3."""
    unbound(writer)
    (first, *_) = campaigns(writer)
    write(writer, "UPDATE campaign SET bid = 3, updated_at = '2026-10-01T00:00:00Z' WHERE id = %s", first)
    arrive(writer, "3", campaign=0)
    add(writer, "clicks", first, 5, at=f"{DAY}T10:00:00Z")
    add(writer, "clicks", None, 10, at=f"{DAY}T10:00:00Z")
    sync(servers)
    assert {r["campaign_id"]: (r["spend"], r["unpriced"]) for r in ask(servers, "campaign_summary")} == {
        first: (15, 0),
        0: (0, 0),
    }
    assert servers.sink.query("looking", "SELECT count() FROM campaign_history WHERE campaign_id = 0") == [(0,)]
    assert metrics.outdated_days(servers.sink, servers.settings) == []


def test_days_priced_by_a_campaign_zero_of_an_older_version_are_mended(servers: Servers, writer: Connection) -> None:
    unbound(writer)
    campaigns(writer)
    add(writer, "clicks", None, 10, at=f"{DAY}T10:00:00Z")
    sync(servers)
    settle(servers)
    servers.sink.insert_rows(
        "campaign_history",
        ("campaign_id", "valid_from", "campaign_name", "bid_amount", "budget_amount", "loaded_at", "_version"),
        [(0, datetime(2026, 10, 1, tzinfo=UTC), "none", 3, 100, datetime(2026, 10, 1, tzinfo=UTC), 1)],
    )
    for table in ("daily_campaign_performance", "daily_campaign_history"):
        statement = f"ALTER TABLE {table} UPDATE spend_amount = 30 WHERE campaign_id = 0 SETTINGS mutations_sync = 2"
        servers.sink.command("as it was", statement)
    sync(servers)
    assert row(servers, 0)["spend_amount"] == 0
    assert restated(servers) == {(DAY, 0, "spend", Decimal(30), Decimal(0), "no campaign")}


# Whoever shows spend


def test_status_report_and_metrics_say_how_many_are_unpriced(servers: Servers, writer: Connection) -> None:
    before_its_campaign(servers, writer)
    found = standing.overview(servers.source, servers.sink, servers.ledger, servers.store, list(STREAMS.values()))
    assert found.unpriced == standing.Unpriced(3, 1, 1)
    assert screens.unpriced_line(found.unpriced).startswith(
        "Unpriced: 3 events of 1 campaign that is not known, on 1 day;"
    )
    assert json.loads(json.dumps(screens.status_json(found), default=screens.plain))["unpriced"]["events"] == 3
    page = built(servers)
    assert "3 events on 1 of these days are unpriced" in page
    assert "3 unpriced" in page
    assert "retailmedia_unpriced_events 3.0" in prometheus.rendered(servers).decode()
    arrive(writer, "5")
    sync(servers)
    assert standing.unpriced(servers.sink) == standing.Unpriced()
    assert "are unpriced" not in built(servers)


def test_a_table_shows_unpriced_only_where_something_is(servers: Servers, writer: Connection) -> None:
    before_its_campaign(servers, writer)

    def heads() -> list[str]:
        answer = queries.run(servers.sink, queries.find("campaign_summary"), {})
        return [str(column.header) for column in screens.answer_table(answer.columns, answer.rows).columns]

    assert "unpriced" in heads()
    arrive(writer, "5")
    sync(servers)
    assert "unpriced" not in heads()
    assert "unpriced" in queries.run(servers.sink, queries.find("campaign_summary"), {}).columns
