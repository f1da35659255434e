"""The original project's ten questions on the input of `docs/parity.md`: what it answered, and what we answer.

Its answers are computed here the way it computed them: one row per campaign stamped with the day of the run, spend as
impressions times bid, CPM as spend per thousand impressions, plain division, and a sum over the rows of every run.
"""

from __future__ import annotations

import math
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.queries.cases import fill
from worker import anomalies, metrics, queries
from worker.config import Settings
from worker.sink import Sink

CAMPAIGNS = """campaign_id,campaign_name,advertiser_id,bid,budget,start_date,end_date
1,Spring,10,2.75,500.00,2026-11-01,2026-11-10
2,Quiet,10,1.00,0.00,2026-11-01,2026-11-30
"""
EVENTS = """at,campaign_id,impressions,clicks
2026-11-02T10:00:00Z,1,60,1
2026-11-07T20:00:00Z,1,40,1
2026-11-07T20:00:00Z,2,0,1
"""
BIDS = {1: 2.75, 2: 1.00}
COUNTS = {1: (100, 2), 2: (0, 1)}
DAY_OF_RUN = "2026-11-09"


def original_rows(runs: int) -> list[dict[str, Any]]:
    """`daily_campaign_performance` as the original left it after so many runs over the input."""
    rows = []
    for campaign, (impressions, clicks) in COUNTS.items():
        spend = impressions * BIDS[campaign]
        with np.errstate(divide="ignore", invalid="ignore"):
            ctr = float(np.float64(clicks) / impressions)
            cpm = float(np.float64(spend) * 1000 / impressions)
        rows.append(
            {
                "date_id": DAY_OF_RUN, "campaign_id": campaign, "impressions": impressions, "clicks": clicks,
                "spend": spend, "ctr": ctr, "cpm": cpm,
            }
        )  # fmt: skip
    return rows * runs


@pytest.fixture
def loaded(sink: Sink, settings: Settings, tmp_path: Path) -> Sink:
    """The input, and its metrics rebuilt twice, as two runs would."""
    (tmp_path / "campaigns.csv").write_text(CAMPAIGNS)
    (tmp_path / "events.csv").write_text(EVENTS)
    (tmp_path / "advertisers.csv").write_text("advertiser_id,advertiser_name\n10,Acme\n")
    fill(sink, settings, tmp_path)
    days = [day for (day,) in sink.query("looking", "SELECT DISTINCT date_id FROM daily_campaign_performance")]
    metrics.rebuild(sink, settings, days)
    return sink


def ask(sink: Sink, name: str, **parameters: str) -> list[dict[str, Any]]:
    answer = queries.run(sink, queries.find(name), parameters)
    return [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]


def test_1_daily_performance(loaded: Sink) -> None:
    theirs = original_rows(runs=1)
    assert {row["date_id"] for row in theirs} == {DAY_OF_RUN}
    assert (theirs[0]["spend"], theirs[0]["cpm"]) == (275.0, 2750.0)
    assert math.isinf(theirs[1]["ctr"])
    assert math.isnan(theirs[1]["cpm"])
    ours = [
        (
            str(row["date_id"]),
            row["campaign_id"],
            row["impressions"],
            row["clicks"],
            row["spend"],
            row["ctr"],
            row["cpm"],
        )
        for row in ask(loaded, "daily_campaign_performance")
    ]
    assert ours == [
        ("2026-11-07", 1, 40, 1, Decimal("2.75"), 0.025, Decimal("68.75")),
        ("2026-11-07", 2, 0, 1, Decimal("1.00"), None, None),
        ("2026-11-02", 1, 60, 1, Decimal("2.75"), 1 / 60, Decimal("45.833333")),
    ]


def test_2_campaign_summary(loaded: Sink) -> None:
    theirs = [row for row in original_rows(runs=2) if row["campaign_id"] == 1]
    assert sum(row["spend"] for row in theirs) == 550.0
    ours = [
        (row["campaign_id"], row["impressions"], row["clicks"], row["spend"]) for row in ask(loaded, "campaign_summary")
    ]
    assert ours == [(1, 100, 2, Decimal("5.50")), (2, 0, 1, Decimal("1.00"))]


def test_3_monthly_totals(loaded: Sink) -> None:
    assert sum(row["impressions"] for row in original_rows(runs=2)) == 200
    (november,) = ask(loaded, "monthly_trend")
    assert (str(november["month"]), november["impressions"], november["clicks"]) == ("2026-11-01", 100, 3)
    assert (november["spend"], november["ctr"], november["impressions_change"]) == (Decimal("6.50"), 0.03, None)


def test_4_weekend_against_weekday(loaded: Sink) -> None:
    last_day_it_knew = "2025-12-31"
    assert [row for row in original_rows(runs=1) if row["date_id"] <= last_day_it_knew] == []
    ours = [(row["part_of_week"], row["impressions"], row["clicks"]) for row in ask(loaded, "weekend_vs_weekday")]
    assert ours == [("weekday", 60, 1), ("weekend", 40, 2)]


def test_5_active_campaigns(loaded: Sink) -> None:
    spend = sum(row["spend"] for row in original_rows(runs=2) if row["campaign_id"] == 1)
    assert (500 - spend, spend / 500) == (-50.0, 1.1)
    ours = {row["campaign_id"]: row for row in ask(loaded, "campaign_health", today="2026-11-09")}
    assert (ours[1]["budget_left"], ours[1]["utilisation"]) == (Decimal("494.50"), 0.011)
    assert (ours[2]["budget_left"], ours[2]["utilisation"], ours[2]["health"]) == (Decimal("-1"), None, "no budget")


def test_6_by_duration(loaded: Sink) -> None:
    assert math.isinf(np.mean([row["ctr"] for row in original_rows(runs=1)]))
    ours = {
        row["flight"]: (row["campaigns"], row["impressions_per_campaign"], row["ctr"])
        for row in ask(loaded, "campaign_duration")
    }
    assert ours == {"8 to 14 days": (1, 100.0, 0.02), "15 to 30 days": (1, 0.0, None)}


def test_7_share_of_event_types(loaded: Sink) -> None:
    # Its load after ours brought rows again where clocks differ; a plain MergeTree counts them again.
    assert pytest.approx(100 / 103) == 200 / 206
    ours = {
        row["event_type"]: (row["events"], row["share_of_events"]) for row in ask(loaded, "event_type_distribution")
    }
    assert ours == {"impression": (100, 100 / 103), "click": (3, 3 / 103)}


def test_8_by_hour(loaded: Sink) -> None:
    ours = {
        row["hour"]: (row["impressions"], row["clicks"], row["share_of_events"])
        for row in ask(loaded, "hourly_pattern")
    }
    assert len(ours) == 24
    assert {hour: found for hour, found in ours.items() if found[2]} == {10: (60, 1, 61 / 103), 20: (40, 2, 42 / 103)}


def test_9_advertisers(loaded: Sink) -> None:
    assert sum(row["spend"] for row in original_rows(runs=2)) == 550.0
    (acme,) = ask(loaded, "advertiser_performance")
    assert (acme["advertiser_name"], acme["campaigns"], acme["impressions"], acme["clicks"]) == ("Acme", 2, 100, 3)
    assert (acme["spend"], acme["ctr"]) == (Decimal("6.50"), 0.03)


def test_10_days_of_unusual_ctr(sink: Sink, settings: Settings, tmp_path: Path) -> None:
    days = [f"2026-10-{day:02d}" for day in range(10, 31)]
    clicks = [8] * 20 + [60]
    (tmp_path / "campaigns.csv").write_text(CAMPAIGNS)
    rows = [f"{day}T10:00:00Z,1,2000,{count}\n" for day, count in zip(days, clicks, strict=True)]
    (tmp_path / "events.csv").write_text("at,campaign_id,impressions,clicks\n" + "".join(rows))
    fill(sink, settings, tmp_path)
    ctrs = np.array(clicks) / 2000
    assert not (np.abs(ctrs - ctrs.mean()) > 0.1).any()
    # Not even where every click is lost, or the day has 25 times its clicks.
    assert (0.1 - np.abs(np.array([0.0, 0.1]) - ctrs.mean()) > 0).all()
    for day in days[7:]:
        anomalies.detect(sink, settings, date.fromisoformat(day))
    (found,) = ask(sink, "ctr_anomalies")
    assert (str(found["date_id"]), found["campaign_id"], found["kind"]) == ("2026-10-30", 1, "ctr up")
    assert (found["observed"], round(found["expected"], 4)) == (0.03, 0.004)
    assert found["expected_high"] < 0.01
