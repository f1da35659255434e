"""Puts the input of a case into ClickHouse and rebuilds the metrics from it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from worker import metrics
from worker.config import Settings
from worker.sink import Sink, literal

TABLES = (
    "ad_events", "campaign_history", "advertiser_dimension", "daily_campaign_performance", "daily_campaign_history",
    "metric_anomalies", "finality", "empty_days",
)  # fmt: skip

COLUMNS = "SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = %(table)s"


def records(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def fill(sink: Sink, settings: Settings, case: Path) -> None:
    """Puts the case's input in place of whatever there was, and rebuilds the metrics."""
    for table in TABLES:
        sink.command("emptying", f"TRUNCATE TABLE {table}")
    for position, row in enumerate(records(case / "campaigns.csv")):
        sink.command(
            "adding a campaign",
            "INSERT INTO campaign_history (campaign_id, campaign_name, advertiser_id, bid_amount, budget_amount, start_date, "
            "end_date, valid_from, is_deleted, _version) SELECT "
            f"{row['campaign_id']}, {literal(row['campaign_name'])}, {row['advertiser_id'] or 'NULL'}, "
            f"toDecimal64('{row['bid']}', 2), toDecimal64('{row['budget']}', 2), toDate32OrNull({literal(row['start_date'])}), "
            f"toDate32OrNull({literal(row['end_date'])}), "
            f"parseDateTime64BestEffort({literal(row.get('valid_from') or '2020-01-01T00:00:00Z')}, 6, 'UTC'), "
            f"{row.get('is_deleted') or 'false'}, {position + 1}",
        )
    for row in records(case / "advertisers.csv"):
        sink.command(
            "adding an advertiser",
            "INSERT INTO advertiser_dimension (advertiser_id, advertiser_name, is_deleted, _version) "
            f"SELECT {row['advertiser_id']}, {literal(row['advertiser_name'])}, false, 1",
        )
    first = {"impressions": 1, "clicks": 1}
    for row in records(case / "events.csv"):
        for code, kind in ((1, "impressions"), (2, "clicks")):
            count = int(row[kind])
            sink.command(
                "adding events",
                "INSERT INTO ad_events (event_code, event_id, campaign_id, created_at, inserted_at, _version) "
                f"SELECT {code}, {first[kind]} + number, {row['campaign_id']}, at, at, 1 FROM "
                f"(SELECT number, parseDateTime64BestEffort({literal(row['at'])}, 6, 'UTC') AS at FROM numbers({count}))",
            )
            first[kind] += count
    for table in ("metric_anomalies", "daily_campaign_history", "finality"):
        rows = records(case / f"{table}.csv")
        if rows:
            lists = {name for name in rows[0] if name in {"hours", "known_causes"}}
            text = "\n".join(
                json.dumps(
                    {
                        name: json.loads(value) if name in lists or value in {"true", "false"} else value
                        for name, value in row.items()
                    }
                )
                for row in rows
            )
            types: dict[str, str] = dict(sink.query("looking", COLUMNS, {"table": table}))
            shape = ", ".join(f"{name} {types[name]}" for name in rows[0])
            sink.command(
                "adding rows",
                f"INSERT INTO {table} ({', '.join(rows[0])}) "
                f"SELECT * FROM format(JSONEachRow, {literal(shape)}, {literal(text)}) "
                "SETTINGS date_time_input_format = 'best_effort'",
            )
    days = sink.query(
        "looking for days",
        f"SELECT DISTINCT toDate32(created_at, {literal(settings.reporting_timezone)}) FROM ad_events FINAL",
    )
    metrics.rebuild(sink, settings, [day for (day,) in days])
