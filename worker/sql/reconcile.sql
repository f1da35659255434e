-- Statements that compare events in PostgreSQL (source_…) and ClickHouse (target_…) where they lie. {table} is the
-- quoted table. Both sides compute the same numbers: how many, sums of ids and of campaigns, and the sum of one number
-- a row that mixes id, campaign and time. Sums are taken modulo 2^64 by whoever compares them.

-- name: source_mixed
-- A product of two sums modulo primes below 2^31, each of pieces of 31 bits times constants below 2^28: nothing ever
-- reaches 2^63, where PostgreSQL would refuse and ClickHouse wrap, and a value that wanders from one row to another
-- changes the sum.
((((id & 2147483647) * 181783497 + (id >> 31) * 162259889 + (campaign & 2147483647) * 217645177
    + (campaign >> 31) * 240000001 + (at & 2147483647) * 99990001 + (at >> 31) * 198491317) %% 2147483629)
* (((id & 2147483647) * 122949823 + (at & 2147483647) * 160481183) %% 2147483587))

-- name: target_mixed
(toInt64((bitAnd(id, 2147483647) * toInt64(181783497) + bitShiftRight(id, 31) * toInt64(162259889)
    + bitAnd(campaign, 2147483647) * toInt64(217645177) + bitShiftRight(campaign, 31) * toInt64(240000001)
    + bitAnd(at, 2147483647) * toInt64(99990001) + bitShiftRight(at, 31) * toInt64(198491317)) %% toInt64(2147483629))
* toInt64((bitAnd(id, 2147483647) * toInt64(122949823) + bitAnd(at, 2147483647) * toInt64(160481183)) %% toInt64(2147483587)))

-- name: source_quarters
-- By quarter of an hour, counted from 1900 so that division never rounds up: hours, and days of almost every zone, are
-- made of these; `old` are events the source need not keep any more. `unplanned` keeps the planner from looking through the
-- subquery, where it would expect a group per row and sort ten million of them instead of adding up in parallel.
SELECT
    (at + 2208988800000000) / 900000000 AS place, count(*), sum(id), sum(campaign), sum({mixed}), min(id), max(id), old
FROM
(
    SELECT
        id::bigint AS id,
        coalesce(campaign_id, 0)::bigint AS campaign,
        (extract(epoch FROM created_at) * 1000000)::bigint AS at,
        created_at < %(kept)s OR inserted_at < %(kept)s AS old,
        clock_timestamp() AS unplanned
    FROM {table}
    WHERE inserted_at < %(horizon)s AND created_at >= %(lo)s AND created_at < %(hi)s
        AND id <> ALL (%(held)s::bigint[])
) AS events
GROUP BY place, old

-- name: target_quarters
SELECT
    intDiv(at + 2208988800000000, 900000000) AS place, count(), sum(id), sum(campaign), sum({mixed}), min(id), max(id), old
FROM
(
    SELECT
        event_id AS id, campaign_id AS campaign, toUnixTimestamp64Micro(created_at) AS at,
        created_at < %(kept)s OR inserted_at < %(kept)s AS old
    FROM {table} FINAL
    WHERE event_type = %(event_type)s AND inserted_at < %(horizon)s AND created_at >= %(lo)s AND created_at < %(hi)s
)
GROUP BY place, old
SETTINGS do_not_merge_across_partitions_select_final = 1

-- name: source_ranges
-- By range of ids, of the quarters that differ.
SELECT id >> %(shift)s AS place, count(*), sum(id), sum(campaign), sum({mixed})
FROM
(
    SELECT
        id::bigint AS id,
        coalesce(campaign_id, 0)::bigint AS campaign,
        (extract(epoch FROM created_at) * 1000000)::bigint AS at,
        clock_timestamp() AS unplanned
    FROM {table}
    WHERE inserted_at >= %(kept)s AND inserted_at < %(horizon)s AND created_at >= %(lo)s AND created_at < %(hi)s
        AND id <> ALL (%(held)s::bigint[])
) AS events
WHERE (at + 2208988800000000) / 900000000 = ANY (%(places)s::bigint[])
GROUP BY place

-- name: target_ranges
SELECT bitShiftRight(id, %(shift)s) AS place, count(), sum(id), sum(campaign), sum({mixed})
FROM
(
    SELECT event_id AS id, campaign_id AS campaign, toUnixTimestamp64Micro(created_at) AS at
    FROM {table} FINAL
    WHERE event_type = %(event_type)s AND inserted_at >= %(kept)s AND inserted_at < %(horizon)s
        AND created_at >= %(lo)s AND created_at < %(hi)s
)
WHERE intDiv(at + 2208988800000000, 900000000) IN %(places)s
GROUP BY place
SETTINGS do_not_merge_across_partitions_select_final = 1

-- name: source_pieces
-- By smaller range of ids, of ranges that begin at `begins` and whose last id is `beyond` higher: the one behind it may
-- be no number any more. Whenever their events happened.
SELECT id >> %(shift)s AS place, count(*), sum(id), sum(campaign), sum({mixed})
FROM unnest(%(begins)s::bigint[]) AS piece (start)
CROSS JOIN LATERAL
(
    SELECT
        id::bigint AS id,
        coalesce(campaign_id, 0)::bigint AS campaign,
        (extract(epoch FROM created_at) * 1000000)::bigint AS at
    FROM {table}
    WHERE id >= piece.start AND id <= piece.start + %(beyond)s
        AND inserted_at >= %(kept)s AND inserted_at < %(horizon)s AND created_at >= %(lo)s AND created_at < %(hi)s
        AND id <> ALL (%(held)s::bigint[])
) AS events
GROUP BY place

-- name: target_pieces
SELECT bitShiftRight(id, %(shift)s) AS place, count(), sum(id), sum(campaign), sum({mixed})
FROM
(
    SELECT event_id AS id, campaign_id AS campaign, toUnixTimestamp64Micro(created_at) AS at
    FROM {table} FINAL
    WHERE event_type = %(event_type)s AND event_id BETWEEN %(first)s AND %(last)s
        AND bitShiftRight(event_id, %(above)s) IN %(places)s
        AND inserted_at >= %(kept)s AND inserted_at < %(horizon)s AND created_at >= %(lo)s AND created_at < %(hi)s
)
GROUP BY place
SETTINGS do_not_merge_across_partitions_select_final = 1

-- name: source_events
-- The rows of the last ranges that differ, each as its id and its mixed number.
SELECT id, {mixed}
FROM unnest(%(begins)s::bigint[]) AS piece (start)
CROSS JOIN LATERAL
(
    SELECT
        id::bigint AS id,
        coalesce(campaign_id, 0)::bigint AS campaign,
        (extract(epoch FROM created_at) * 1000000)::bigint AS at
    FROM {table}
    WHERE id >= piece.start AND id <= piece.start + %(beyond)s
        AND inserted_at >= %(kept)s AND inserted_at < %(horizon)s AND created_at >= %(lo)s AND created_at < %(hi)s
        AND id <> ALL (%(held)s::bigint[])
) AS events

-- name: target_events
SELECT id, {mixed}
FROM
(
    SELECT event_id AS id, campaign_id AS campaign, toUnixTimestamp64Micro(created_at) AS at
    FROM {table} FINAL
    WHERE event_type = %(event_type)s AND event_id BETWEEN %(first)s AND %(last)s
        AND bitShiftRight(event_id, %(above)s) IN %(places)s
        AND inserted_at >= %(kept)s AND inserted_at < %(horizon)s AND created_at >= %(lo)s AND created_at < %(hi)s
)
SETTINGS do_not_merge_across_partitions_select_final = 1

-- name: source_rows
-- Chosen rows as they are now; the time is NULL where it cannot be loaded.
SELECT
    id::bigint,
    coalesce(campaign_id, 0)::bigint,
    CASE WHEN created_at >= %(lo)s AND created_at < %(hi)s THEN (extract(epoch FROM created_at) * 1000000)::bigint END,
    (extract(epoch FROM inserted_at) * 1000000)::bigint
FROM {table}
WHERE id = ANY (%(ids)s::bigint[])

-- name: target_rows
SELECT event_id, campaign_id, toUnixTimestamp64Micro(created_at), toUnixTimestamp64Micro(inserted_at)
FROM {table} FINAL
WHERE event_type = %(event_type)s AND event_id BETWEEN %(first)s AND %(last)s AND event_id IN %(ids)s

-- name: target_versions
-- The newest version stored of each event, tombstones too, and how many different rows there are of it. The same row
-- stored twice is one to readers and to merges.
SELECT event_id, max(_version) AS newest,
    arrayUniq(arrayFilter(row -> row.1 = newest, groupArray((_version, _deleted, campaign_id, created_at))))
FROM {table}
WHERE event_type = %(event_type)s AND event_id BETWEEN %(first)s AND %(last)s AND event_id IN %(ids)s
GROUP BY event_id

-- name: crowded
-- Ranges of ids in which more rows are stored than readers see: earlier versions, or copies. Counting by range first
-- spares grouping by id where nothing was ever written twice.
SELECT place
FROM
(
    SELECT bitShiftRight(event_id, %(shift)s) AS place, count() AS stored, 0 AS seen
    FROM {table}
    WHERE event_type = %(event_type)s AND created_at >= %(lo)s AND created_at < %(hi)s AND NOT _deleted
    GROUP BY place
    UNION ALL
    SELECT bitShiftRight(event_id, %(shift)s) AS place, 0 AS stored, count() AS seen
    FROM {table} FINAL
    WHERE event_type = %(event_type)s AND created_at >= %(lo)s AND created_at < %(hi)s
    GROUP BY place
)
GROUP BY place
HAVING sum(stored) > sum(seen)
ORDER BY place
SETTINGS do_not_merge_across_partitions_select_final = 1

-- name: repeated
-- Events of these ranges stored with different values in one version.
SELECT DISTINCT event_id
FROM
(
    SELECT event_id
    FROM {table}
    WHERE event_type = %(event_type)s AND event_id BETWEEN %(first)s AND %(last)s
        AND bitShiftRight(event_id, %(above)s) IN %(places)s
        AND created_at >= %(lo)s AND created_at < %(hi)s AND NOT _deleted
    GROUP BY event_id, _version
    HAVING uniqExact(campaign_id, created_at) > 1
)
LIMIT %(limit)s

-- name: held
-- Events kept out on purpose: quarantined, and their newest version here a tombstone.
SELECT event_id
FROM {table}
WHERE event_type = %(event_type)s AND event_id IN (SELECT event_id FROM quarantined_events WHERE stream = %(stream)s)
GROUP BY event_id
HAVING argMax(_deleted, _version) = 1

-- name: last_looks
-- When each day of a stream was last compared.
SELECT date_id, max(checked_at) FROM reconciliations WHERE stream = %(stream)s GROUP BY date_id

-- name: hours_held
-- The first and the last event of each UTC hour that has any.
SELECT min(at), max(at)
FROM
(
    SELECT toUnixTimestamp64Micro(created_at) AS at FROM {table} WHERE event_type = %(event_type)s AND NOT _deleted
)
GROUP BY intDiv(at + 2208988800000000, 3600000000)

-- name: unfinished
-- Days whose mending was begun and is not known to have ended.
SELECT DISTINCT date_id
FROM
(
    SELECT run_id, date_id, stream, argMax(state, checked_at) AS state
    FROM reconciliations
    GROUP BY run_id, date_id, stream
)
WHERE state = 'mending'
ORDER BY date_id

-- name: finish_unfinished
INSERT INTO reconciliations (run_id, stream, date_id, horizon, source_rows, target_rows, source_hash, target_hash, state,
    missing, extra, stale, duplicate, mended, no_longer_kept, sample)
SELECT run_id, stream, date_id, horizon, source_rows, target_rows, source_hash, target_hash, 'mismatch', missing, extra,
    stale, duplicate, mended, no_longer_kept, sample
FROM
(
    SELECT * FROM reconciliations ORDER BY checked_at DESC LIMIT 1 BY run_id, stream, date_id
)
WHERE state = 'mending' AND date_id IN %(days)s
