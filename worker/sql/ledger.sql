-- Statements on the ledger tables in ClickHouse.

-- name: table_uuid
SELECT uuid FROM system.tables WHERE database = %(database)s AND name = %(table)s

-- name: generations
SELECT generation, system_id, timeline, rewind_to FROM source_generations ORDER BY generation, first_seen

-- name: setbacks
-- Times that the source went back and since which no table was filled anew: which generation that table is of its comment
-- says, and it has none where it was never swapped in.
SELECT generation, message FROM source_setbacks
WHERE generation >=
(
    SELECT max(bitShiftRight(toUInt64OrZero(extract(comment, 'version ([0-9]+)')), 56))
    FROM system.tables
    WHERE database = %(database)s AND name = %(live)s
)
ORDER BY generation DESC, noticed_at
LIMIT 1

-- name: checkpoints
-- How far each table is whole, as of each generation of the source.
SELECT stream, target_uuid, generation, max(checkpoint) AS until
FROM sync_totals
WHERE stream IN %(streams)s AND target_uuid IN %(uuids)s
GROUP BY stream, target_uuid, generation
HAVING until > toDateTime64('1970-01-01 00:00:00', 6, 'UTC')

-- name: commits
-- Commits that can say more than the checkpoints: those that end before a stream's base only repeat it, and of a
-- generation that ended what begins behind every later one's limit does not count.
SELECT stream, lo, hi, toUInt8(bitShiftRight(version, 56)) AS generation,
    committed_at < now64(6, 'UTC') - toIntervalSecond(%(settled_seconds)s)
FROM sync_commits
WHERE ({ranges}) AND toUnixTimestamp64Micro(lo) < transform(generation, %(generations)s, %(limits)s, 9223372036854775807)
ORDER BY stream, lo, hi

-- name: commits_from
-- One stream's, {number} its place.
(stream = %(stream_{number})s AND target_uuid = %(uuid_{number})s AND hi >= %(base_{number})s)

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
SELECT stream, sum(loaded), sum(set_aside), max(last_commit_at)
FROM sync_totals
WHERE target_uuid IN %(uuids)s
GROUP BY stream
HAVING sum(windows) > 0

-- name: newest_version
SELECT max(newest_version) FROM sync_totals WHERE target_uuid IN %(uuids)s

-- name: run
SELECT run_id, toString(kind), toString(state), streams, metrics_update, until, target_uuid, version, message,
    started_at, updated_at, now64(6, 'UTC')
FROM sync_runs FINAL
WHERE run_id = %(run_id)s

-- name: open_runs
-- Those that ever said so are found by one column of a byte a row; only they are read.
SELECT run_id, toString(kind), toString(state), streams, metrics_update, until, target_uuid, version, message,
    started_at, updated_at, now64(6, 'UTC')
FROM sync_runs FINAL
WHERE state = 'running' AND run_id IN (SELECT run_id FROM sync_runs WHERE state = 'running')
ORDER BY started_at

-- name: last_runs
SELECT run_id, toString(kind), toString(state), streams, metrics_update, until, target_uuid, version, message,
    started_at, updated_at, now64(6, 'UTC')
FROM sync_runs FINAL
WHERE run_id IN (SELECT run_id FROM sync_runs GROUP BY run_id ORDER BY max(started_at) DESC LIMIT %(limit)s)
ORDER BY started_at DESC
LIMIT %(limit)s

-- name: now
SELECT now64(6, 'UTC')

-- name: abandoned_tables
SELECT name FROM system.tables
WHERE database = %(database)s AND startsWith(name, %(prefix)s)
    AND dateDiff('second', metadata_modification_time, now()) > %(age)s
