-- Statements of the anomaly detector. Nothing here reads events but the one that asks how late a few campaigns' came.

-- name: first_day
-- The first day that has metrics: most often it is not whole.
SELECT minOrNull(date_id) FROM daily_campaign_performance

-- name: history
-- Each campaign's days up to the one judged; hours of that one only.
SELECT
    campaign_id,
    date_id,
    impressions_count,
    clicks_count,
    toFloat64(spend_amount),
    if(date_id = %(day)s, impressions_by_hour, []),
    if(date_id = %(day)s, clicks_by_hour, [])
FROM daily_campaign_performance
WHERE date_id BETWEEN %(first_day)s AND %(day)s
ORDER BY campaign_id, date_id

-- name: shapes
-- How each campaign's days spread over their hours. Of each hour the middle 80 %% of days say what is usual; days
-- beyond twice that and five more are cut to it, so that a day of bots or two does not become the profile.
SELECT
    campaign_id,
    kind,
    max(days),
    arrayMap(pair -> pair.2, arraySort(groupArray((hour, usual)))),
    arrayMap(pair -> pair.2, arraySort(groupArray((hour, variance))))
FROM
(
    SELECT
        campaign_id,
        kind,
        hour,
        arraySort(groupArray(toFloat64(events))) AS counts,
        length(counts) AS days,
        intDiv(days, 10) AS apart,
        arrayAvg(arraySlice(counts, apart + 1, days - 2 * apart)) AS middle,
        arrayMap(one -> least(one, 2 * middle + 5), counts) AS held,
        arrayAvg(held) AS usual,
        arrayAvg(arrayMap(one -> (one - usual) * (one - usual), held)) * days / greatest(days - 1, 1) AS variance
    FROM
    (
        SELECT campaign_id, counted.1 AS kind, counted.2 AS by_hour
        FROM daily_campaign_performance
        ARRAY JOIN [('impressions', impressions_by_hour), ('clicks', clicks_by_hour)] AS counted
        WHERE date_id >= %(first_day)s AND date_id < %(day)s AND notEmpty(impressions_by_hour)
    )
    ARRAY JOIN by_hour AS events, arrayEnumerate(by_hour) AS hour
    GROUP BY campaign_id, kind, hour
)
GROUP BY campaign_id, kind

-- name: campaigns
-- Flight and budget of each campaign as they held at the day's end, and what it had spent by then.
SELECT campaign.campaign_id, campaign.start_date, campaign.end_date, campaign.is_deleted,
    toFloat64(campaign.budget_amount), toFloat64(delivery.spend)
FROM
(
    -- Before the first version known, the first one holds.
    SELECT *
    FROM
    (
        SELECT *, min(valid_from) OVER (PARTITION BY campaign_id) AS first_known
        FROM campaign_history FINAL
    )
    WHERE valid_from < %(day_end)s OR valid_from = first_known
    ORDER BY campaign_id, _version DESC, valid_from DESC
    LIMIT 1 BY campaign_id
) AS campaign
LEFT JOIN
(
    SELECT campaign_id, sum(spend_amount) AS spend FROM daily_campaign_performance WHERE date_id <= %(day)s GROUP BY campaign_id
) AS delivery ON delivery.campaign_id = campaign.campaign_id
SETTINGS join_use_nulls = 0

-- name: standing
SELECT campaign_id, toString(kind) FROM metric_anomalies FINAL WHERE date_id = %(day)s AND NOT is_withdrawn

-- name: next_moment
SELECT greatest(now64(6, 'UTC'), max(detected_at) + toIntervalMicrosecond(1)) FROM metric_anomalies WHERE date_id = %(day)s

-- name: failures
-- Windows of rows written on the day that failed, and of which nothing has been loaded since, whole or in pieces.
SELECT failed.stream, failed.lo, failed.hi, any(failed.cause)
FROM
(
    SELECT toString(stream) AS stream, target_uuid, lo, hi, argMax(error, noted_at) AS cause, max(noted_at) AS at
    FROM sync_attempts
    WHERE outcome = 'failed' AND lo < %(hi)s AND hi > %(lo)s
        AND target_uuid IN (SELECT uuid FROM system.tables WHERE database = currentDatabase() AND name = 'ad_events')
    GROUP BY stream, target_uuid, lo, hi
) AS failed
LEFT JOIN
(
    SELECT toString(stream) AS stream, target_uuid, lo, hi, kind, committed_at
    FROM sync_commits
    WHERE hi > %(lo)s AND committed_at >= %(lo)s
        AND target_uuid IN (SELECT uuid FROM system.tables WHERE database = currentDatabase() AND name = 'ad_events')
) AS commits ON commits.stream = failed.stream AND commits.target_uuid = failed.target_uuid
GROUP BY failed.stream, failed.lo, failed.hi, failed.at
HAVING countIf(commits.committed_at >= failed.at AND commits.hi > failed.lo
    AND (commits.kind = 'checkpoint' OR commits.lo < failed.hi)) = 0
ORDER BY failed.lo
LIMIT 5
SETTINGS join_use_nulls = 0

-- name: edits
-- Edits that took hold on the day or the day before it.
SELECT campaign_id, valid_from, bid_before, bid_amount, budget_before, budget_amount
FROM
(
    SELECT campaign_id, valid_from, bid_amount, budget_amount,
        lagInFrame(bid_amount, 1, bid_amount) OVER versions AS bid_before,
        lagInFrame(budget_amount, 1, budget_amount) OVER versions AS budget_before
    FROM campaign_history FINAL
    WHERE campaign_id IN %(ids)s
    WINDOW versions AS (PARTITION BY campaign_id ORDER BY valid_from ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
)
WHERE valid_from >= %(lo)s - toIntervalDay(1) AND valid_from < %(hi)s
    AND (bid_before != bid_amount OR budget_before != budget_amount)
ORDER BY campaign_id, valid_from

-- name: quarantined
SELECT JSONExtractInt(row, 'campaign_id') AS campaign, toString(stream), toString(rule), count()
FROM quarantined_events FINAL
WHERE campaign IN %(ids)s
    AND parseDateTime64BestEffortOrNull(JSONExtractString(row, 'created_at'), 6, 'UTC') >= %(lo)s
    AND parseDateTime64BestEffortOrNull(JSONExtractString(row, 'created_at'), 6, 'UTC') < %(hi)s
GROUP BY campaign, stream, rule
ORDER BY campaign, stream, rule

-- name: late
-- How many events were written more than a day after they happened: on the day, and in the week before.
SELECT
    campaign_id,
    countIf(created_at >= %(lo)s AND inserted_at > created_at + toIntervalDay(1)),
    countIf(created_at >= %(lo)s) AS total,
    countIf(created_at < %(lo)s AND inserted_at > created_at + toIntervalDay(1)),
    countIf(created_at < %(lo)s)
FROM ad_events FINAL
WHERE event_date BETWEEN %(first_utc_day)s AND %(last_utc_day)s
    AND created_at >= %(before)s AND created_at < %(hi)s AND campaign_id IN %(ids)s
GROUP BY campaign_id
HAVING total > 0
SETTINGS do_not_merge_across_partitions_select_final = 1

-- name: restated
SELECT campaign_id, toString(cause), max(restated_at)
FROM metric_restatements
WHERE date_id = %(day)s AND campaign_id IN %(ids)s
GROUP BY campaign_id, cause
ORDER BY campaign_id, cause
