"""How fast the analyst's queries answer over two years of a thousand campaigns, as they stand and with their defaults."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta

from bench.measures import Findings, Goal, Line
from bench.stage import Options, Stage
from worker import migrate, queries
from worker.sink import Sink

GROUP = "analytical queries, 2 years of 1,000 campaigns"
DAYS, CAMPAIGNS = 730, 1000
ROUNDS = 5
LIMIT_MS = 200.0

CAMPAIGN_VERSIONS = """
INSERT INTO campaign_history
    (campaign_id, valid_from, campaign_name, advertiser_id, bid_amount, budget_amount, start_date, end_date, is_deleted, _version)
SELECT
    1 + number %% %(campaigns)s AS id,
    toDateTime64(%(first)s, 6, 'UTC') + toIntervalDay(200 * intDiv(number, %(campaigns)s)),
    concat('campaign ', toString(id)),
    if(id %% 50 = 0, NULL, 1 + id %% 100),
    toDecimal64(0.3 + (id * 7919 %% 270) / 100 + intDiv(number, %(campaigns)s) * 0.1, 2),
    toDecimal64(20000 + id * 10, 2),
    if(id %% 40 = 0, NULL, %(first)s),
    if(id %% 10 = 0, NULL, %(first)s + toIntervalDay(%(days)s + id %% 90)),
    false,
    number + 1
FROM numbers(4 * %(campaigns)s)
"""
"""Four versions of each campaign: the bid rises every 200 days."""

ADVERTISERS = """
INSERT INTO advertiser_dimension (advertiser_id, advertiser_name, is_deleted, _version)
SELECT number + 1, concat('advertiser ', toString(number + 1)), false, 1 FROM numbers(100)
"""

METRICS = """
INSERT INTO daily_campaign_performance
    (date_id, campaign_id, impressions_count, clicks_count, spend_amount, ctr, cpm, cpc, impressions_by_hour, clicks_by_hour,
    pricing_model, updated_at)
WITH
    arrayMap(hour -> toUInt64(cityHash64(number, hour) %% (1 + intDiv(40000, 10 + campaign_id))), range(24)) AS shown,
    arrayMap(one -> intDiv(one, 100 + campaign_id %% 200), shown) AS clicked
SELECT
    %(first)s + toIntervalDay(%(skip)s + intDiv(number, %(campaigns)s)) AS date_id,
    toInt64(1 + number %% %(campaigns)s) AS campaign_id,
    arraySum(shown) AS impressions,
    arraySum(clicked) AS clicks,
    toDecimal128(clicks, 5) * toDecimal64(0.3 + (campaign_id * 7919 %% 270) / 100, 2) AS spend,
    if(impressions = 0, NULL, clicks / impressions),
    if(impressions = 0, NULL, toDecimal128(toFloat64(spend) * 1000 / impressions, 6)),
    if(clicks = 0, NULL, toDecimal128(toFloat64(spend) / clicks, 6)),
    shown,
    clicked,
    'cpc',
    %(built)s
FROM numbers(%(chunk)s * %(campaigns)s)
SETTINGS max_partitions_per_insert_block = 0
"""

SAID = """
INSERT INTO daily_campaign_history
    (date_id, campaign_id, slot, said_at, impressions_count, clicks_count, spend_amount, pricing_model, reporting_timezone,
    is_gone, was_final, impressions_before, clicks_before, spend_before, cause)
SELECT
    date_id,
    campaign_id,
    toDateTime64(date_id, 6, 'UTC') + toIntervalHour(24 * version) AS at,
    at,
    if(version = 1, intDiv(impressions_count, 2), impressions_count),
    clicks_count,
    spend_amount,
    'cpc',
    'UTC',
    false,
    version = 3,
    if(version = 3, impressions_count + 1, 0),
    clicks_count,
    spend_amount,
    if(version = 3, 'late rows', '')
FROM daily_campaign_performance
ARRAY JOIN if(cityHash64(date_id, campaign_id) %% 100 = 0, [1, 2, 3], [1, 2]) AS version
WHERE date_id BETWEEN %(from)s AND %(to)s
SETTINGS max_partitions_per_insert_block = 0
"""
"""What each day said of a campaign: a first word, a last one, and of one in a hundred a restatement."""

FINALITY = """
INSERT INTO finality (final_through, noted_at)
SELECT date_id, toDateTime64(date_id, 6, 'UTC') + toIntervalDay(6)
FROM (SELECT DISTINCT date_id FROM daily_campaign_performance)
"""

ANOMALIES = """
INSERT INTO metric_anomalies
SELECT
    date_id, campaign_id, kind, 0.01, 0.004, 0.002, 0.006, 1e-9, 1e-6, [3, 4], 'CTR 1 % where 0.2 % to 0.6 % are plausible', [],
    toDateTime64(date_id, 6, 'UTC') + toIntervalDay(run), cityHash64(date_id, campaign_id) % 10 = 0 AND run = 2
FROM daily_campaign_performance
ARRAY JOIN [1, 2] AS run
ARRAY JOIN ['ctr up', 'volume up'] AS kind
WHERE cityHash64(campaign_id, date_id) % 100 = 0
SETTINGS max_partitions_per_insert_block = 0
"""
"""One campaign-day in a hundred is out of the ordinary, in two ways, found by two runs."""


def fill(sink: Sink, days: int, campaigns: int, last: date) -> None:
    """Fills every table the queries read with `days` days up to and with `last`, a part a day as the rebuild leaves it."""
    first = last - timedelta(days=days - 1)
    common = {"days": days, "campaigns": campaigns, "first": first}
    sink.command("writing campaigns", CAMPAIGN_VERSIONS, common)
    sink.command("writing advertisers", ADVERTISERS)
    built = datetime(last.year, last.month, last.day, tzinfo=UTC) + timedelta(days=1)
    for skip in range(0, days, 73):
        chunk = min(73, days - skip)
        sink.command("writing metrics", METRICS, {**common, "skip": skip, "chunk": chunk, "built": built}, retry=False)
        begins = first + timedelta(days=skip)
        sink.command("writing history", SAID, {"from": begins, "to": begins + timedelta(days=chunk - 1)}, retry=False)
    sink.command("writing finality", FINALITY)
    sink.command("writing anomalies", ANOMALIES)


def measure(stage: Stage, options: Options) -> Findings:
    """Each query five times after one that does not count, taking turns; a query without a row says nothing."""
    settings = stage.settings(stage.source("analytics"))
    days = options.size(DAYS, quick=73, full=DAYS)
    with Sink(settings) as sink:
        migrate.migrate(sink, settings)
        fill(sink, days, CAMPAIGNS, datetime.now(UTC).date() - timedelta(days=1))
        asked = queries.queries()
        samples: dict[str, list[float]] = {query.name: [] for query in asked}
        rows: dict[str, int] = {}
        for number in range(-1, ROUNDS):
            for query in asked:
                begun = time.perf_counter()
                answer = queries.run(sink, query, {})
                took = time.perf_counter() - begun
                rows[query.name] = len(answer.rows)
                if number >= 0:
                    samples[query.name].append(took * 1000)
    stage.drop(settings)
    result = Findings()
    for name, times in samples.items():
        if rows[name]:
            result.lines.append(Line(GROUP, name, "ms", tuple(times), note=f"{rows[name]:,} rows"))
        else:
            result.lines.append(Line(GROUP, name, "ms", note="no row", state="failed"))
        if not options.quick:
            result.goals.append(Goal(f"query {name}", "under", LIMIT_MS, "ms", tuple(times) if rows[name] else ()))
    return result
