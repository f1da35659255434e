-- Statements that rebuild daily_campaign_performance.

-- name: now
SELECT now64(6, 'UTC')

-- name: dirty_days
-- Days whose content changed at or after the moment their metrics hold. `updated_at` travels with the rows, so a
-- rebuild that was overtaken and published late is seen as what it is.
SELECT marks.date_id AS date_id
FROM
(
    SELECT date_id, max(marked_at) AS marked FROM day_marks GROUP BY date_id HAVING marked >= %(since)s
) AS marks
LEFT JOIN
(
    SELECT date_id, min(updated_at) AS holds
    FROM daily_campaign_performance
    WHERE date_id IN (SELECT date_id FROM day_marks GROUP BY date_id HAVING max(marked_at) >= %(since)s)
    GROUP BY date_id
) AS built ON built.date_id = marks.date_id
LEFT JOIN
(
    SELECT date_id, max(updated_at) AS holds FROM empty_days GROUP BY date_id
) AS emptied ON emptied.date_id = marks.date_id
WHERE marks.marked >= if(toYear(built.holds) > 1970, built.holds, emptied.holds)
ORDER BY date_id DESC
SETTINGS join_use_nulls = 0

-- name: outdated_days
-- Days not marked and yet wrong: priced by another model, or built before a version of one of their campaigns arrived.
SELECT DISTINCT date_id FROM daily_campaign_performance WHERE pricing_model != %(pricing_model)s
UNION DISTINCT
SELECT DISTINCT daily.date_id
FROM daily_campaign_performance AS daily
INNER JOIN
(
    SELECT campaign_id, loaded_at,
        if(valid_from = min(valid_from) OVER (PARTITION BY campaign_id), toDate32('1900-01-01'), toDate32(valid_from, %(zone)s)) AS first_day
    FROM campaign_history
) AS history ON history.campaign_id = daily.campaign_id
WHERE history.loaded_at >= daily.updated_at AND daily.date_id >= history.first_day

-- name: create_staging
CREATE TABLE {staging} AS daily_campaign_performance

-- name: build
-- One row per campaign and day. Each event is priced at the bid in force when it happened; a campaign's first known
-- version counts from the beginning of time; an event of an unknown campaign costs nothing.
INSERT INTO {staging}
    (date_id, campaign_id, impressions_count, clicks_count, spend_amount, ctr, cpm, cpc, pricing_model, updated_at)
WITH
    events AS
    (
        SELECT toDate32(created_at, %(zone)s) AS date_id, campaign_id, event_type, created_at
        FROM ad_events FINAL
        WHERE event_date BETWEEN %(first_utc_day)s AND %(last_utc_day)s
            AND created_at >= %(lo)s AND created_at < %(hi)s
            AND toDate32(created_at, %(zone)s) IN %(days)s
    ),
    bids AS
    (
        SELECT campaign_id, bid_amount,
            if(valid_from = min(valid_from) OVER (PARTITION BY campaign_id), toDateTime64('1900-01-01 00:00:00', 6, 'UTC'), valid_from) AS valid_from
        FROM campaign_history FINAL
    ),
    priced AS
    (
        SELECT
            events.date_id AS date_id,
            events.campaign_id AS campaign_id,
            countIf(events.event_type = 'impression') AS impressions,
            countIf(events.event_type = 'click') AS clicks,
            sumIf(toDecimal128(bids.bid_amount, 5), events.event_type = %(billed)s) AS billed
        FROM events
        ASOF LEFT JOIN bids ON bids.campaign_id = events.campaign_id AND events.created_at >= bids.valid_from
        GROUP BY date_id, campaign_id
    )
SELECT
    date_id,
    campaign_id,
    impressions,
    clicks,
    toDecimal128(divideDecimal(billed, toDecimal128(%(divisor)s, 0), 5), 5) AS spend,
    if(impressions = 0, NULL, clicks / impressions),
    if(impressions = 0, NULL, toDecimal128(round(divideDecimal(toDecimal256(spend, 5) * 1000, toDecimal256(impressions, 0), 8), 6), 6)),
    if(clicks = 0, NULL, toDecimal128(round(divideDecimal(toDecimal256(spend, 5), toDecimal256(clicks, 0), 8), 6), 6)),
    %(pricing_model)s,
    %(holds)s
FROM priced
SETTINGS max_insert_threads = 1, min_insert_block_size_rows = 10000000, min_insert_block_size_bytes = 1073741824,
    do_not_merge_across_partitions_select_final = 1, join_use_nulls = 0

-- name: staged_parts
SELECT partition, count(), sum(rows)
FROM system.parts
WHERE database = %(database)s AND table = %(staging)s AND active
GROUP BY partition

-- name: optimize
OPTIMIZE TABLE {staging} PARTITION %(day)s FINAL

-- name: replace_day
ALTER TABLE daily_campaign_performance REPLACE PARTITION %(day)s FROM {staging}

-- name: drop_day
ALTER TABLE daily_campaign_performance DROP PARTITION %(day)s

-- name: note_empty
INSERT INTO empty_days (date_id, updated_at) SELECT arrayJoin(%(days)s), %(holds)s
