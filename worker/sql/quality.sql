-- Statements around the checks of clickhouse/checks, and on what they found.

-- name: first_rows
SELECT * FROM
(
{statement}
) AS failing
LIMIT {limit}

-- name: count
SELECT count(*) FROM
(
{statement}
) AS failing

-- name: changed_days
-- Reporting days rebuilt at or after an instant.
SELECT date_id FROM daily_campaign_performance GROUP BY date_id HAVING max(updated_at) >= %(since)s
UNION DISTINCT
SELECT date_id FROM empty_days GROUP BY date_id HAVING max(updated_at) >= %(since)s

-- name: last_run
SELECT count(), max(checked_at) FROM quality_results WHERE trigger = %(trigger)s

-- name: now
SELECT now64(6, 'UTC')

-- name: latest
-- What each check found when it last looked at every day.
SELECT
    check_name,
    toString(argMax(severity, checked_at)),
    toString(argMax(state, checked_at)),
    argMax(failing, checked_at),
    argMax(samples, checked_at),
    argMax(message, checked_at),
    argMax(statement, checked_at),
    max(checked_at)
FROM quality_results
WHERE trigger != 'rebuild'
GROUP BY check_name
ORDER BY check_name
