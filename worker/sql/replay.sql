-- Statements that compare a window read again, in a table of its own, with the live table, and bring it over. {shadow},
-- {live} and {plan} are quoted tables; the window is [lo, hi) on inserted_at.

-- name: create_shadow
CREATE TABLE {staging} AS ad_events

-- name: create_plan
CREATE TABLE {staging}
(
    event_id        Int64,
    cause           Enum8('missing' = 1, 'extra' = 2, 'stale' = 3, 'suspect' = 4, 'no longer kept' = 5),
    before          Bool,
    campaign_before Int64,
    created_before  DateTime64(6, 'UTC'),
    inserted_before DateTime64(6, 'UTC'),
    after           Bool,
    campaign_after  Int64,
    created_after   DateTime64(6, 'UTC')
)
ENGINE = MergeTree ORDER BY event_id

-- name: plan
-- Events in which what was read and what is kept differ. What a newer reading brought meanwhile is left alone, it knows
-- better; so is what the window no longer holds at the source, until it is known whether the row is gone or has moved,
-- and for good where it is older than the source keeps.
INSERT INTO {plan} (event_id, cause, before, campaign_before, created_before, inserted_before, after, campaign_after,
    created_after)
WITH
    read AS
    (
        SELECT event_id, argMax((campaign_id, created_at, _deleted), _version) AS last, max(_version) AS version
        FROM {shadow}
        WHERE event_type = %(event_type)s
        GROUP BY event_id
    ),
    kept AS
    (
        SELECT event_id, campaign_id, created_at, inserted_at
        FROM {live} FINAL
        WHERE event_type = %(event_type)s
            AND (inserted_at >= %(lo)s AND inserted_at < %(hi)s OR event_id IN (SELECT event_id FROM read))
    ),
    stored AS
    (
        SELECT event_id, max(_version) AS newest
        FROM {live}
        WHERE event_type = %(event_type)s AND event_id IN (SELECT event_id FROM read)
        GROUP BY event_id
    ),
    sides AS
    (
        SELECT
            event_id,
            max(side = 1) AS is_read,
            max(side = 2) AS is_kept,
            anyIf(campaign, side = 1) AS campaign_read,
            anyIf(created, side = 1) AS created_read,
            anyIf(number, side = 1) AS version,
            max(dead) AS is_dead,
            anyIf(campaign, side = 2) AS campaign_kept,
            anyIf(created, side = 2) AS created_kept,
            anyIf(inserted, side = 2) AS inserted_kept,
            anyIf(number, side = 3) AS newest
        FROM
        (
            SELECT event_id, 1 AS side, last.1 AS campaign, last.2 AS created, toDateTime64(0, 6, 'UTC') AS inserted,
                version AS number, last.3 AS dead
            FROM read
            UNION ALL
            SELECT event_id, 2, campaign_id, created_at, inserted_at, toUInt64(0), 0 FROM kept
            UNION ALL
            SELECT event_id, 3, toInt64(0), toDateTime64(0, 6, 'UTC'), toDateTime64(0, 6, 'UTC'), newest, 0 FROM stored
        )
        GROUP BY event_id
    )
SELECT
    event_id,
    multiIf(NOT is_read AND (created_kept < %(since)s OR inserted_kept < %(since)s), 'no longer kept', NOT is_read,
        'suspect', is_dead, 'extra', NOT is_kept, 'missing', 'stale'),
    is_kept,
    campaign_kept,
    created_kept,
    inserted_kept,
    is_read AND NOT is_dead,
    campaign_read,
    created_read
FROM sides
WHERE if(is_read,
    newest < version AND if(is_dead, is_kept, NOT is_kept OR (campaign_read, created_read) != (campaign_kept, created_kept)),
    is_kept)
SETTINGS do_not_merge_across_partitions_select_final = 1

-- name: suspects
SELECT event_id, toUnixTimestamp64Micro(created_before) FROM {plan} WHERE cause = 'suspect' ORDER BY event_id

-- name: newest
-- The newest version stored of events of the window.
SELECT max(_version) FROM {live} WHERE event_type = %(event_type)s AND inserted_at >= %(lo)s AND inserted_at < %(hi)s

-- name: ahead
-- How many events of the window are stored in this version or a newer one.
SELECT uniqExact(event_id) FROM {live}
WHERE event_type = %(event_type)s AND inserted_at >= %(lo)s AND inserted_at < %(hi)s AND _version >= %(version)s

-- name: present
-- Those of these events that the source still has.
SELECT id::bigint FROM {table} WHERE id = ANY (%(ids)s::bigint[])

-- name: confirm
INSERT INTO {plan} (event_id, cause, before, campaign_before, created_before, inserted_before, after, campaign_after,
    created_after)
SELECT event_id, 'extra', before, campaign_before, created_before, inserted_before, after, campaign_after, created_after
FROM {plan}
WHERE cause = 'suspect' AND event_id IN %(ids)s

-- name: causes
SELECT toString(cause), count() FROM {plan} WHERE cause != 'suspect' GROUP BY cause

-- name: hours_changed
-- The first and the last moment of each UTC hour in which the plan adds or takes events.
SELECT min(at), max(at)
FROM
(
    SELECT toUnixTimestamp64Micro(created_before) AS at FROM {plan} WHERE before AND cause != 'suspect'
    UNION ALL
    SELECT toUnixTimestamp64Micro(created_after) FROM {plan} WHERE after AND cause != 'suspect'
)
GROUP BY intDiv(at + 2208988800000000, 3600000000)

-- name: effect
-- What the plan does to each reporting day, each event at the bid in force when it happened.
WITH
    changes AS
    (
        SELECT campaign_before AS campaign_id, created_before AS created_at, -1 AS sign FROM {plan}
        WHERE before AND cause IN ('missing', 'extra', 'stale')
        UNION ALL
        SELECT campaign_after, created_after, 1 FROM {plan}
        WHERE after AND cause IN ('missing', 'extra', 'stale')
    ),
    bids AS
    (
        SELECT campaign_id, bid_amount,
            if(valid_from = min(valid_from) OVER (PARTITION BY campaign_id), toDateTime64('1900-01-01 00:00:00', 6, 'UTC'), valid_from) AS valid_from
        FROM campaign_history FINAL
        WHERE campaign_id != 0
    )
SELECT
    toDate32(toInt32(transform(roundDown(toUnixTimestamp64Micro(changes.created_at), %(begins)s), %(begins)s, %(day_numbers)s, 0))) AS date_id,
    sum(changes.sign),
    divideDecimal(sum(toDecimal128(bids.bid_amount, 6) * changes.sign), toDecimal128(%(divisor)s, 0), 9)
FROM changes
ASOF LEFT JOIN bids ON bids.campaign_id = changes.campaign_id AND changes.created_at >= bids.valid_from
GROUP BY date_id
ORDER BY date_id
SETTINGS join_use_nulls = 0

-- name: apply
-- With the version of the reading, which was greater than that of everything stored before it.
INSERT INTO {target} ({columns}, _version)
SELECT {columns}, _version
FROM {shadow}
WHERE event_type = %(event_type)s
    AND event_id IN (SELECT event_id FROM {plan} WHERE cause IN ('missing', 'extra', 'stale') AND (after OR before))
ORDER BY event_id, _version DESC
LIMIT 1 BY event_id
SETTINGS max_partitions_per_insert_block = 0

-- name: bury
-- Also where the event is not: a window of a shadow that was read before the row was deleted may still bring it.
INSERT INTO {target} (event_type, event_id, campaign_id, created_at, inserted_at, _version, _deleted)
SELECT %(event_type)s, event_id, 0, toDateTime64(0, 6, 'UTC'), any(inserted_before), %(version)s, 1
FROM {plan}
WHERE cause = 'extra' AND event_id IN %(ids)s
GROUP BY event_id
SETTINGS max_partitions_per_insert_block = 0

-- name: unfinished
-- Days of replays that were being applied by somebody who did not live to say that their metrics were rebuilt.
SELECT DISTINCT arrayJoin(days)
FROM replays
WHERE state = 'applying' AND (run_id, stream) NOT IN (SELECT run_id, stream FROM replays WHERE state = 'applied')
ORDER BY 1

-- name: finish_unfinished
INSERT INTO replays (run_id, stream, lo, hi, state, missing, extra, stale, days)
SELECT run_id, stream, lo, hi, 'applied', missing, extra, stale, days
FROM replays
WHERE state = 'applying' AND (run_id, stream) NOT IN (SELECT run_id, stream FROM replays WHERE state = 'applied')
