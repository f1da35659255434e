"""The views for common questions stay right whatever happens to the events beneath them."""

from __future__ import annotations

from typing import Any

from psycopg2.extensions import connection as Connection

from tests.agreement import assert_agreement, rebuild, sync
from tests.integration.test_pipeline import add, campaigns, write
from tests.integration.test_refresh import complete_refresh
from worker import metrics, pipeline
from worker.celery import Servers
from worker.streams import EVENT_STREAMS, EVENTS_TABLE
from worker.windows import ORIGIN, Window

HOURLY = (
    "SELECT date_id, hour, campaign_id, impressions_count, clicks_count FROM hourly_events_by_campaign ORDER BY 1, 2, 3",
    "SELECT toDate32(created_at, 'UTC'), toHour(created_at, 'UTC'), campaign_id, countIf(event_type = 'impression'), "
    "countIf(event_type = 'click') FROM ad_events FINAL GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
)
TYPES = (
    "SELECT date_id, event_type, events_count FROM event_type_distribution WHERE events_count > 0 ORDER BY 1, 2",
    "SELECT toDate32(created_at, 'UTC'), toString(event_type), count() FROM ad_events FINAL GROUP BY 1, 2 ORDER BY 1, 2",
)
ADVERTISERS = (
    "SELECT date_id, ifNull(advertiser_id, 0) AS advertiser, impressions, clicks, spend FROM advertiser_daily "
    "ORDER BY 1, 2",
    "SELECT toDate32(created_at, 'UTC'), ifNull(owner.advertiser_id, 0), countIf(event_type = 'impression'), "
    "countIf(event_type = 'click'), sum(if(event_type = 'click', toDecimal128(owner.bid_amount, 5), 0)) "
    "FROM ad_events AS events FINAL LEFT JOIN campaign_dimension AS owner ON owner.campaign_id = events.campaign_id "
    "GROUP BY 1, 2 ORDER BY 1, 2",
)


def recomputed(servers: Servers) -> list[list[Any]]:
    """Asserts that each view equals what the events themselves give; returns what they say."""
    found = []
    for view, events in (HOURLY, TYPES, ADVERTISERS):
        ours = servers.sink.query("reading a view", view)
        assert ours == servers.sink.query("recomputing it", events)
        found.append(ours)
    return found


def replay(servers: Servers) -> None:
    """Reads everything again, in windows the ledger has had before."""
    for stream in EVENT_STREAMS:
        uuid = servers.ledger.live([stream])[EVENTS_TABLE]
        window = Window(ORIGIN, servers.source.now())
        loaded = pipeline.load_window(
            servers.source,
            servers.sink,
            servers.ledger,
            servers.settings,
            stream,
            window,
            table=EVENTS_TABLE,
            uuid=uuid,
        )
        assert not loaded.already
    rebuild(servers)


def test_views_stay_right_under_replay_update_retry_and_refresh(servers: Servers, writer: Connection) -> None:
    first, second, third = campaigns(writer)
    write(writer, "INSERT INTO advertiser (name) VALUES ('Bolt')")
    write(writer, "UPDATE campaign SET advertiser_id = (SELECT max(id) FROM advertiser) WHERE id = %s", second)
    write(writer, "UPDATE campaign SET advertiser_id = NULL WHERE id = %s", third)
    for campaign, day in ((first, 2), (first, 3), (second, 3), (third, 4), (None, 4)):
        for hour in ("00", "09", "23"):
            add(writer, "impressions", campaign, 40, at=f"2026-11-0{day}T{hour}:30:00Z")
            add(writer, "clicks", campaign, 3, at=f"2026-11-0{day}T{hour}:31:00Z")
    sync(servers)
    loaded = recomputed(servers)
    assert sum(row[3] for row in loaded[0]) == 600
    assert_agreement(writer, servers)

    replay(servers)
    assert servers.sink.query("counting", "SELECT count() > 690 FROM ad_events")[0][0]  # stored twice, counted once
    assert recomputed(servers) == loaded

    metrics.rebuild(servers.sink, servers.settings, [row[0] for row in loaded[1]])
    assert recomputed(servers) == loaded

    write(
        writer,
        "UPDATE impressions SET campaign_id = %s, created_at = '2026-11-09T07:00:00Z' "
        "WHERE id IN (SELECT id FROM impressions ORDER BY id LIMIT 50)",
        second,
    )
    write(writer, "UPDATE campaign SET advertiser_id = (SELECT min(id) FROM advertiser) WHERE id = %s", second)
    sync(servers)
    updated = recomputed(servers)
    assert sum(row[3] for row in updated[0]) == 600
    assert {str(row[0]) for row in updated[2]} == {"2026-11-02", "2026-11-03", "2026-11-04", "2026-11-09"}
    assert_agreement(writer, servers)

    complete_refresh(servers, "views")
    assert recomputed(servers) == updated

    # The source was emptied and filled again, ids and all: only a full refresh can tell.
    write(writer, "TRUNCATE impressions, clicks RESTART IDENTITY")
    add(writer, "impressions", first, 5, at="2026-11-05T12:00:00Z")
    complete_refresh(servers, "emptied")
    (hourly, types, advertisers) = recomputed(servers)
    assert [row[1:] for row in hourly] == [(12, first, 5, 0)]
    assert [row[1:] for row in types] == [("impression", 5)]
    assert [row[2] for row in advertisers] == [5]
