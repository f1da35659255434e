-- Statements on day_seals and what they are made of. Events are added up by the statements of reconcile.sql.

-- name: metrics
-- cityHash64 is the same in every version of ClickHouse; the sum does not hang on the order of rows. Spend is hashed
-- without trailing zeros and unpriced events only where there are some, so seals of older schemas still hold.
SELECT
    count(),
    sum(if(unpriced_count = 0,
        cityHash64(campaign_id, impressions_count, clicks_count, toString(spend_amount), toString(pricing_model)),
        cityHash64(campaign_id, impressions_count, clicks_count, toString(spend_amount), toString(pricing_model), unpriced_count))),
    sum(spend_amount),
    arrayStringConcat(arraySort(groupUniqArray(toString(pricing_model))), ' + ')
FROM daily_campaign_performance
WHERE date_id = %(day)s

-- name: last
SELECT
    number, replaces, streams, rows, first_ids, last_ids, content_hashes, metrics_rows, metrics_hash, spend,
    toString(pricing_model), toString(reporting_timezone), source_system_id, source_timeline, source_snapshot,
    complete_through, toString(code_version), sealed_at, looked_at
FROM day_seals FINAL
WHERE date_id = %(day)s
ORDER BY number DESC
LIMIT 1

-- name: due
-- Final days of which something was said or marked since their newest seal was last looked at, or that have none.
SELECT days.date_id
FROM
(
    SELECT date_id, max(at) AS at
    FROM
    (
        SELECT date_id, said_at AS at FROM daily_campaign_history WHERE date_id <= %(final_through)s
        UNION ALL
        SELECT date_id, marked_at AS at FROM day_marks WHERE date_id <= %(final_through)s
    )
    GROUP BY date_id
) AS days
LEFT JOIN
(
    SELECT date_id, max(looked_at) AS at FROM day_seals GROUP BY date_id
) AS seals ON seals.date_id = days.date_id
WHERE days.at >= seals.at
ORDER BY days.date_id
LIMIT %(limit)s
SETTINGS join_use_nulls = 0
