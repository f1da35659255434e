-- Statements behind the report.

-- name: checked_days
-- What each check said on each day it ran, at its worst.
SELECT
    check_name,
    toDate32(toInt32(transform(roundDown(toUnixTimestamp64Micro(checked_at), %(begins)s), %(begins)s, %(day_numbers)s, 0))) AS day,
    count(),
    multiIf(countIf(state = 'failed') > 0, 'failed', countIf(state = 'broken') > 0, 'broken', 'passed'),
    max(failing)
FROM quality_results
WHERE checked_at >= %(since)s
GROUP BY check_name, day
ORDER BY check_name, day

-- name: last_words
-- The newest result of each check, and the newest in which it did not pass.
SELECT
    check_name,
    toString(argMax(state, checked_at)),
    max(checked_at),
    countIf(state != 'passed') > 0,
    maxIf(checked_at, state != 'passed'),
    toString(argMaxIf(state, checked_at, state != 'passed')),
    argMaxIf(failing, checked_at, state != 'passed'),
    argMaxIf(samples, checked_at, state != 'passed'),
    argMaxIf(message, checked_at, state != 'passed'),
    argMaxIf(statement, checked_at, state != 'passed')
FROM quality_results
WHERE checked_at >= %(since)s
GROUP BY check_name
ORDER BY check_name

-- name: restatements
SELECT
    restated.date_id AS day,
    restated.campaign_id AS campaign,
    if(restated.campaign_id = 0, 'no campaign', ifNull(campaigns.campaign_name, 'not known')) AS name,
    restated.column_name AS column,
    restated.value_before AS before,
    restated.value_after AS after,
    restated.pricing_model AS model,
    restated.restated_at AS at,
    restated.cause AS why
FROM metric_restatements AS restated
LEFT JOIN campaign_dimension AS campaigns ON campaigns.campaign_id = restated.campaign_id
ORDER BY at DESC, day DESC, campaign, column
LIMIT %(limit)s
SETTINGS join_use_nulls = 1

-- name: last_day
SELECT count(), max(date_id) FROM daily_campaign_performance WHERE date_id <= %(today)s

-- name: days
SELECT date_id, sum(impressions_count), sum(clicks_count), sum(spend_amount),
    arrayStringConcat(arraySort(groupUniqArray(pricing_model)), ' + '), sum(unpriced_count)
FROM daily_campaign_performance
WHERE date_id BETWEEN %(first_day)s AND %(last_day)s
GROUP BY date_id
ORDER BY date_id

-- name: final_through
SELECT count(), max(final_through) FROM finality

-- name: campaigns
-- The campaigns that spent most between two days, with their spend of each day.
SELECT
    daily.campaign_id AS campaign,
    if(campaign = 0, 'no campaign', ifNull(any(campaigns.campaign_name), 'not known')) AS name,
    any(campaigns.advertiser_name) AS advertiser,
    sum(daily.impressions_count) AS impressions,
    sum(daily.clicks_count) AS clicks,
    sum(daily.spend_amount) AS spend,
    any(campaigns.budget_amount) AS budget,
    arrayStringConcat(arraySort(groupUniqArray(daily.pricing_model)), ' + ') AS model,
    groupArray((daily.date_id, daily.spend_amount)) AS spend_by_day,
    sum(daily.unpriced_count) AS unpriced
FROM daily_campaign_performance AS daily
LEFT JOIN campaign_dimension AS campaigns ON campaigns.campaign_id = daily.campaign_id
WHERE daily.date_id BETWEEN %(first_day)s AND %(last_day)s
GROUP BY campaign
ORDER BY spend DESC, impressions DESC, campaign
LIMIT %(limit)s
SETTINGS join_use_nulls = 1

-- name: spent
SELECT campaign_id, sum(spend_amount) FROM daily_campaign_performance WHERE campaign_id IN %(ids)s GROUP BY campaign_id

-- name: anomalies
SELECT
    found.date_id AS day,
    found.campaign_id AS campaign,
    if(found.campaign_id = 0, 'no campaign', ifNull(campaigns.campaign_name, 'not known')) AS name,
    toString(found.kind),
    found.observed,
    found.expected_low,
    found.expected_high,
    found.q_value,
    found.explanation,
    found.known_causes
FROM
(
    SELECT * FROM metric_anomalies FINAL WHERE NOT is_withdrawn AND date_id >= %(since)s
) AS found
LEFT JOIN campaign_dimension AS campaigns ON campaigns.campaign_id = found.campaign_id
ORDER BY day DESC, found.q_value, campaign, toString(found.kind)
LIMIT %(limit)s
SETTINGS join_use_nulls = 1

-- name: reconciled
-- Days of streams looked at since then, how many of them differed at the last look, and the oldest of these looks.
SELECT count(), countIf(state = 'mismatch'), min(at)
FROM
(
    SELECT argMax(state, checked_at) AS state, max(checked_at) AS at
    FROM reconciliations
    GROUP BY stream, date_id
    HAVING at >= %(since)s
)

-- name: reconciliations
-- The last look at each day of a stream, days that differ first.
SELECT
    toString(stream),
    date_id,
    max(checked_at) AS at,
    toString(argMax(state, checked_at)) AS said,
    argMax(source_rows, checked_at),
    argMax(target_rows, checked_at),
    argMax(missing, checked_at),
    argMax(extra, checked_at),
    argMax(stale, checked_at),
    argMax(duplicate, checked_at),
    argMax(mended, checked_at)
FROM reconciliations
GROUP BY stream, date_id
ORDER BY said = 'mismatch' DESC, date_id DESC, stream
LIMIT %(limit)s

-- name: seals
-- The newest seal of each day.
SELECT
    date_id,
    argMax(number, number) AS newest,
    argMax(replaces, number),
    argMax(streams, number),
    argMax(rows, number),
    argMax(spend, number),
    toString(argMax(pricing_model, number)),
    toString(argMax(reporting_timezone, number)),
    argMax(metrics_hash, number),
    argMax(sealed_at, number)
FROM day_seals
GROUP BY date_id
ORDER BY date_id DESC
LIMIT %(limit)s
