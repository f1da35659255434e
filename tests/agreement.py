"""What must be equal in PostgreSQL and ClickHouse, and a driver that syncs to the end without Celery."""

from __future__ import annotations

import io
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cache
from importlib import resources
from typing import Any
from zoneinfo import ZoneInfo

from psycopg2.extensions import connection as Connection

from worker import dimensions, metrics, pipeline, planner
from worker.celery import Servers
from worker.streams import EVENTS_TABLE, STREAMS, Stream

PERFORMANCE = """
SELECT coalesce(i.day, c.day), coalesce(i.campaign_id, c.campaign_id), coalesce(i.n, 0), coalesce(c.n, 0),
    coalesce(c.n, 0) * coalesce(campaign.bid, 0)
FROM (
    SELECT day, coalesce(campaign_id, 0) AS campaign_id, count(*) AS n
    FROM impressions JOIN unnest(%(quarters)s::bigint[], %(days)s::date[]) AS cut (quarter, day)
        ON quarter = floor(extract(epoch FROM created_at) / 900)::bigint
    GROUP BY 1, 2
) AS i
FULL JOIN (
    SELECT day, coalesce(campaign_id, 0) AS campaign_id, count(*) AS n
    FROM clicks JOIN unnest(%(quarters)s::bigint[], %(days)s::date[]) AS cut (quarter, day)
        ON quarter = floor(extract(epoch FROM created_at) / 900)::bigint
    GROUP BY 1, 2
) AS c ON c.day = i.day AND c.campaign_id = i.campaign_id
LEFT JOIN campaign ON campaign.id = coalesce(i.campaign_id, c.campaign_id) AND campaign.id <> 0
ORDER BY 1, 2
"""

QUARTERS = """
SELECT floor(extract(epoch FROM created_at) / 900)::bigint FROM impressions
UNION SELECT floor(extract(epoch FROM created_at) / 900)::bigint FROM clicks
"""

Row = tuple[date, int, int, int, Decimal]


@cache
def zone_data(zone: str) -> ZoneInfo:
    """A zone by the package `tzdata`, whatever the operating system holds."""
    data = resources.files("tzdata.zoneinfo").joinpath(*zone.split("/")).read_bytes()
    return ZoneInfo.from_file(io.BytesIO(data))


@cache
def day_of_quarter(quarter: int, zone: str) -> str:
    """The reporting day of a quarter of an hour since 1970: the latest date that clocks have shown by its beginning.

    The product's own calendar is not asked. Looks back two days, for zones whose days begin at quarters.
    """
    begins = (datetime.fromtimestamp(900 * (quarter - back), UTC) for back in range(192))
    return max(begin.astimezone(zone_data(zone)).date() for begin in begins).isoformat()


def source_performance(writer: Connection, zone: str = "UTC") -> list[Row]:
    """Per day and campaign: impressions, clicks and spend (cpc, today's bids), computed by PostgreSQL."""
    with writer.cursor() as cursor:
        cursor.execute(QUARTERS)
        quarters = [int(quarter) for (quarter,) in cursor.fetchall()]
        cursor.execute(PERFORMANCE, {"quarters": quarters, "days": [day_of_quarter(q, zone) for q in quarters]})
        return [(day, int(c), int(i), int(k), Decimal(spend)) for day, c, i, k, spend in cursor.fetchall()]


def target_performance(servers: Servers) -> list[Row]:
    """The same as ClickHouse has it ready."""
    return servers.sink.query(
        "reading metrics",
        "SELECT date_id, campaign_id, impressions_count, clicks_count, spend_amount "
        "FROM daily_campaign_performance ORDER BY date_id, campaign_id",
    )


def source_events(writer: Connection) -> list[tuple[Any, ...]]:
    """Every event in PostgreSQL: type, id, campaign, microseconds of both times."""
    with writer.cursor() as cursor:
        cursor.execute(
            """
            SELECT kind, id, coalesce(campaign_id, 0),
                (extract(epoch FROM created_at) * 1000000)::bigint, (extract(epoch FROM inserted_at) * 1000000)::bigint
            FROM (
                SELECT 'impression' AS kind, * FROM impressions UNION ALL SELECT 'click', * FROM clicks
            ) AS events
            ORDER BY kind DESC, id
            """
        )
        return cursor.fetchall()


def target_events(servers: Servers) -> list[tuple[Any, ...]]:
    """Every event in ClickHouse, one logical row each."""
    return servers.sink.query(
        "reading events",
        """
        SELECT toString(event_type), event_id, campaign_id, toUnixTimestamp64Micro(created_at),
            toUnixTimestamp64Micro(inserted_at)
        FROM ad_events FINAL
        ORDER BY event_type, event_id
        """,
    )


def assert_agreement(writer: Connection, servers: Servers) -> None:
    """Every event once with equal columns, every campaign-day with equal counts and spend."""
    assert target_events(servers) == source_events(writer)
    assert target_performance(servers) == source_performance(writer, servers.settings.reporting_timezone)


def sync(servers: Servers, *, streams: list[Stream] | None = None, metrics_update: bool = True) -> int:
    """Loads everything committed before the call, in this process; returns the number of windows it took."""
    chosen = streams or list(STREAMS.values())
    until = servers.source.now()
    windows = 0
    while True:
        plans = planner.plan(servers.source, servers.ledger, servers.store, servers.settings, chosen, until=until)
        for planned in plans:
            for window in planned.windows:
                windows += 1
                if planned.stream.kind == "dimension":
                    dimensions.load_dimension(
                        servers.source,
                        servers.sink,
                        servers.ledger,
                        servers.settings,
                        planned.stream,
                        uuid=planned.target_uuid,
                    )
                else:
                    pipeline.load_window(
                        servers.source,
                        servers.sink,
                        servers.ledger,
                        servers.settings,
                        planned.stream,
                        window,
                        table=EVENTS_TABLE,
                        uuid=planned.target_uuid,
                    )
        if planner.complete(plans, until):
            break
    if metrics_update:
        rebuild(servers)
    return windows


def read_dimension(servers: Servers, name: str, **options: Any) -> Any:
    """Reads one dimension once, and returns what became of its rows."""
    stream = STREAMS[name]
    uuid = servers.ledger.live([stream])[stream.target]
    return dimensions.load_dimension(
        servers.source, servers.sink, servers.ledger, servers.settings, stream, uuid=uuid, **options
    )


def rebuild(servers: Servers) -> int:
    """Rebuilds whatever changed; returns the number of days."""
    servers.ledger.mark_days(metrics.outdated_days(servers.sink, servers.settings))
    return metrics.rebuild(servers.sink, servers.settings, metrics.dirty_days(servers.sink)).days
