-- Statements on the ledger tables in ClickHouse.

-- name: table_uuid
SELECT uuid FROM system.tables WHERE database = %(database)s AND name = %(table)s

-- name: generations
SELECT generation, system_id, timeline, rewind_to FROM source_generations ORDER BY generation, first_seen

-- name: newest_version
-- The newest snapshot from which a window of these tables was read and committed; 0 without any.
SELECT max(version) FROM sync_commits WHERE target_uuid IN %(uuids)s AND kind = 'window'

-- name: setback
-- Why nothing may be loaded from the present generation of the source, if so.
SELECT message FROM source_setbacks
WHERE generation = (SELECT max(generation) FROM source_generations)
ORDER BY noticed_at
LIMIT 1

-- name: commits
-- What is needed to compute the watermarks of some streams: for each, the furthest checkpoint of the current
-- generation and every commit that ends after it. Of a generation that ended, every commit counts, so no checkpoint
-- of it may hide one.
SELECT stream, lo, hi, generation
FROM
(
    SELECT stream, lo, hi, toUInt8(bitShiftRight(version, 56)) AS generation,
        maxIf(hi, kind = 'checkpoint' AND bitShiftRight(version, 56) = %(generation)s) OVER (PARTITION BY stream) AS base
    FROM sync_commits
    WHERE target_uuid IN %(uuids)s AND stream IN %(streams)s
)
WHERE hi >= base
ORDER BY stream, lo, hi

-- name: covered
-- Commits that touch one window, and when this was asked.
SELECT groupArray((lo, hi)), now64(6, 'UTC') FROM sync_commits
WHERE stream = %(stream)s AND target_uuid = %(uuid)s AND hi > %(lo)s AND lo < %(hi)s
    AND bitShiftRight(version, 56) = %(generation)s

-- name: superseded_days
-- Days from which earlier attempts at the same rows may have moved events away without living to say so, and those
-- marked since.
SELECT arrayJoin(days) AS day, false FROM sync_attempts
WHERE stream = %(stream)s AND target_uuid = %(uuid)s AND hi > %(lo)s AND lo < %(hi)s AND outcome = 'superseding'
UNION DISTINCT
SELECT date_id, true FROM day_marks WHERE marked_at >= %(since)s AND NOT again

-- name: failures
-- Failures of windows not behind the watermark, newest cause kept.
SELECT lo, hi, count(), max(noted_at), argMax(error, noted_at), now64(6, 'UTC'), min(noted_at), countIf(noted_at >= %(since)s)
FROM sync_attempts
WHERE stream = %(stream)s AND target_uuid = %(uuid)s AND hi > %(watermark)s AND outcome = 'failed'
GROUP BY lo, hi

-- name: totals
SELECT stream, sumIf(rows, kind = 'window'), sumIf(quarantined, kind = 'window'), max(committed_at)
FROM sync_commits
WHERE target_uuid IN %(uuids)s
GROUP BY stream

-- name: run
SELECT run_id, toString(kind), toString(state), streams, metrics_update, until, target_uuid, version, message,
    started_at, updated_at, now64(6, 'UTC')
FROM sync_runs FINAL
WHERE run_id = %(run_id)s

-- name: open_runs
SELECT run_id, toString(kind), toString(state), streams, metrics_update, until, target_uuid, version, message,
    started_at, updated_at, now64(6, 'UTC')
FROM sync_runs FINAL
WHERE state = 'running'
ORDER BY started_at

-- name: last_runs
SELECT run_id, toString(kind), toString(state), streams, metrics_update, until, target_uuid, version, message,
    started_at, updated_at, now64(6, 'UTC')
FROM sync_runs FINAL
ORDER BY started_at DESC
LIMIT %(limit)s

-- name: run_progress
SELECT stream, count(), sum(rows) FROM sync_commits WHERE run_id = %(run_id)s AND kind = 'window' GROUP BY stream

-- name: now
SELECT now64(6, 'UTC')

-- name: abandoned_tables
SELECT name FROM system.tables
WHERE database = %(database)s AND startsWith(name, %(prefix)s)
    AND dateDiff('second', metadata_modification_time, now()) > %(age)s
