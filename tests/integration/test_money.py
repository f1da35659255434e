"""Money at the source's precision: bids finer than a cent, what cannot be kept, and what an older schema left."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

import pytest
from psycopg2.extensions import connection as Connection

from tests.agreement import assert_agreement, sync, target_performance
from tests.integration.test_metrics import ask
from tests.integration.test_pipeline import add, campaigns, write
from worker import metrics
from worker.celery import Servers

BIDS = (Decimal("0.0075"), Decimal("0.1299"), Decimal("1.005"))
DAY = "2026-11-02"


def fine_bids(writer: Connection) -> list[int]:
    """Three campaigns whose bids have four decimals, with 1,000 impressions and clicks each."""
    write(writer, "ALTER TABLE campaign ALTER COLUMN bid TYPE numeric(12, 4)")
    ids = campaigns(writer)[:3]
    for campaign, bid in zip(ids, BIDS, strict=True):
        write(writer, "UPDATE campaign SET bid = %s WHERE id = %s", bid, campaign)
        for table in ("impressions", "clicks"):
            add(writer, table, campaign, 1000, at=f"{DAY}T08:00:00Z")
    return ids


@pytest.mark.parametrize(("model", "divisor"), [("cpc", 1), ("cpm", 1000), ("cpi", 1)])
def test_bids_finer_than_a_cent_are_paid_to_the_last_digit(
    servers: Servers, writer: Connection, model: str, divisor: int
) -> None:
    ids = fine_bids(writer)
    sync(servers)
    if model == "cpc":
        assert_agreement(writer, servers)
    changed = servers.settings.model_copy(update={"pricing_model": model})
    metrics.rebuild(servers.sink, changed, metrics.outdated_days(servers.sink, changed))
    expected = {campaign: bid * 1000 / divisor for campaign, bid in zip(ids, BIDS, strict=True)}
    assert {row[1]: row[4] for row in target_performance(servers)} == expected
    summary = ask(servers, "campaign_summary")
    assert {row["campaign_id"]: row["spend"] for row in summary} == expected
    # Under cpc the click costs the bid; a thousand impressions cost what was spent, which is the same count here.
    assert {row["campaign_id"]: row["cpm"] for row in summary} == expected
    # Ratios are rounded to six decimals, half away from zero.
    a_click = {c: (spend / 1000).quantize(Decimal("0.000001"), ROUND_HALF_UP) for c, spend in expected.items()}
    assert {row["campaign_id"]: row["cpc"] for row in summary} == a_click
    dimension = servers.sink.query("looking", "SELECT campaign_id, bid_amount FROM campaign_dimension")
    assert {campaign: bid for campaign, bid in dimension if campaign in ids} == dict(zip(ids, BIDS, strict=True))
    (total,) = servers.sink.query("adding", "SELECT sum(spend) FROM advertiser_daily")[0]
    assert total == sum(expected.values())
