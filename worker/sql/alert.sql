-- Statements on incidents, and on what becomes one.

-- name: failing_checks
-- Checks whose newest word is that something is wrong: the newest look at every day found rows, or a look at some days
-- since then did and no later look at those days has passed. A check that breaks says nothing about the rows.
WITH
    looked AS (SELECT * FROM quality_results WHERE checked_at >= now() - INTERVAL 30 DAY AND state != 'broken'),
    whole AS
    (
        SELECT check_name, max(checked_at) AS at, argMax(state, checked_at) AS state
        FROM looked
        WHERE first_day <= %(first_day)s AND last_day >= %(last_day)s
        GROUP BY check_name
    ),
    since AS
    (
        SELECT looked.check_name AS check_name, looked.checked_at AS checked_at, looked.first_day AS first_day,
            looked.last_day AS last_day, looked.state AS state, looked.failing AS failing, looked.severity AS severity
        FROM looked
        LEFT JOIN whole ON whole.check_name = looked.check_name
        WHERE looked.checked_at >= whole.at
    ),
    open AS
    (
        SELECT failed.check_name AS check_name, failed.checked_at AS checked_at, any(failed.failing) AS failing,
            any(failed.severity) AS severity
        FROM since AS failed
        LEFT JOIN since AS later ON later.check_name = failed.check_name
        WHERE failed.state = 'failed'
        GROUP BY check_name, checked_at, failed.first_day, failed.last_day
        HAVING countIf(later.state = 'passed' AND later.checked_at > failed.checked_at
            AND later.first_day <= failed.first_day AND later.last_day >= failed.last_day) = 0
    )
SELECT check_name, toString(argMax(severity, checked_at)), argMax(failing, checked_at), max(checked_at)
FROM open
GROUP BY check_name
ORDER BY check_name
SETTINGS join_use_nulls = 0

-- name: broken_checks
SELECT check_name, argMax(message, checked_at)
FROM quality_results
WHERE checked_at >= now() - INTERVAL 2 DAY
GROUP BY check_name
HAVING argMax(state, checked_at) = 'broken'
ORDER BY check_name

-- name: quarantine_growth
-- Rows set aside within the last hour that nobody decided about.
SELECT stream, count() FROM quarantine
WHERE state = 'held' AND quarantined_at >= %(now)s - INTERVAL 1 HOUR
GROUP BY stream
ORDER BY stream

-- name: held_dimension_rows
-- By dimension, rows that cannot be loaded and that nobody decided about, with the newest. The view on quarantine would
-- look at events, too.
SELECT stream, count(), argMax(row_id, quarantined_at), argMax(rule, quarantined_at)
FROM quarantined_dimension_rows FINAL
WHERE state = 'held' AND (stream, row_id, row) NOT IN
    (SELECT stream, event_id, content FROM quarantine_decisions FINAL WHERE decision = 'discard')
GROUP BY stream
ORDER BY stream

-- name: open
SELECT incident, began_at, ended_at, toString(severity), message, toString(told_as), told_at, told_over_at
FROM alerts FINAL
WHERE ended_at IS NULL OR (told_at IS NOT NULL AND told_over_at IS NULL)
ORDER BY began_at, incident

-- name: latest
SELECT incident, began_at, ended_at, toString(severity), message, toString(told_as), told_at, told_over_at
FROM alerts FINAL
ORDER BY ended_at IS NULL DESC, began_at DESC, incident
LIMIT %(limit)s

-- name: sent_since
SELECT countIf(told_at >= %(since)s) + countIf(told_over_at >= %(since)s)
FROM alerts FINAL
WHERE told_at >= %(since)s OR told_over_at >= %(since)s

-- name: now
SELECT now64(6, 'UTC')
