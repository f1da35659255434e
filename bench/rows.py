"""Events in PostgreSQL in any number, made by the server itself, and totals by which source and target are compared."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from bench.stage import connected
from worker.sink import Sink, quoted

CAMPAIGNS = 1000
DAYS = 7
"""Days over which a source's rows were written; a tenth of the events happened up to three days before."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Rows, their sums, and the last `inserted_at`; times in microseconds since 1970, a campaign that is NULL as 0."""

    count: int
    ids: int
    campaigns: int
    created: int
    inserted: int
    last: int


def add_campaigns(connection: Connection) -> None:
    """Fills the dimensions: a thousand campaigns of fifty advertisers."""
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO advertiser (name) SELECT 'advertiser ' || n FROM generate_series(1, 50) AS n")
        cursor.execute(
            "INSERT INTO campaign (name, bid, budget, start_date, advertiser_id) "
            "SELECT 'campaign ' || n, 0.10 + n %% 90 / 100.0, 1000, '2020-01-01', 1 + n %% 50 "
            "FROM generate_series(1, %s) AS n",
            (CAMPAIGNS,),
        )


def add_events(
    dsn: str,
    count: int,
    *,
    table: Literal["impressions", "clicks"] = "impressions",
    until: datetime | None = None,
    span: timedelta = timedelta(days=DAYS),
) -> None:
    """Writes events over the `span` before `until` (default a day ago), evenly, in order of time.

    One in a hundred has no campaign. A span of 0 gives them all the same `inserted_at`.
    """
    end = until or datetime.now(UTC) - timedelta(days=1)
    with connected(dsn) as connection, connection.cursor() as cursor:
        # Without the check of two million references; they hold.
        cursor.execute("SET session_replication_role = replica")
        cursor.execute("SET synchronous_commit = off")
        cursor.execute(
            sql.SQL(
                """
                INSERT INTO {} (campaign_id, created_at, inserted_at)
                SELECT
                    CASE WHEN n %% 100 <> 0 THEN 1 + n * 7919 %% %(campaigns)s END,
                    at - make_interval(secs => CASE WHEN n %% 10 = 0 THEN n * 104729 %% 259200 ELSE n %% 60 END),
                    at
                FROM generate_series(1, %(count)s::bigint) AS n
                CROSS JOIN LATERAL (SELECT %(lo)s + n * %(step)s AS at) AS times
                """
            ).format(sql.Identifier(table)),
            {"campaigns": CAMPAIGNS, "count": count, "lo": end - span, "step": span / count},
        )
        # Now, or autovacuum does it in the middle of a measurement.
        cursor.execute(sql.SQL("VACUUM (FREEZE, ANALYZE) {}").format(sql.Identifier(table)))
        cursor.execute("CHECKPOINT")


def source_totals(dsn: str, table: Literal["impressions", "clicks"] = "impressions", limit: int = 2**62) -> Totals:
    """Totals of a source table, up to the id `limit`."""
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute(
            sql.SQL(
                """
                SELECT count(*), sum(id), coalesce(sum(campaign_id), 0),
                    sum((extract(epoch FROM created_at) * 1000000)::bigint),
                    sum((extract(epoch FROM inserted_at) * 1000000)::bigint),
                    max((extract(epoch FROM inserted_at) * 1000000)::bigint)
                FROM {} WHERE id <= %s
                """
            ).format(sql.Identifier(table)),
            (limit,),
        )
        found = cursor.fetchone()
    assert found is not None  # noqa: S101 - an aggregate has one row
    return Totals(*(int(value or 0) for value in found))


def target_totals(sink: Sink, table: str, event_type: str = "impression") -> Totals:
    """Totals of a target table, each event once."""
    (found,) = sink.query(
        "adding up a table",
        f"""
        SELECT count(), sum(toInt128(event_id)), sum(toInt128(campaign_id)),
            sum(toInt128(toUnixTimestamp64Micro(created_at))), sum(toInt128(toUnixTimestamp64Micro(inserted_at))),
            max(toUnixTimestamp64Micro(inserted_at))
        FROM {quoted(table)} FINAL WHERE event_type = %(event_type)s
        """,  # noqa: S608 - a quoted name
        {"event_type": event_type},
    )
    return Totals(*(int(value) for value in found))
