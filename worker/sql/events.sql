-- Statements on ad_events and its shadows; {table} is the quoted table.

-- name: present
SELECT count() FROM {table} WHERE event_type = %(event_type)s AND event_id BETWEEN %(first)s AND %(last)s

-- name: hours_of
-- UTC hours since 1970 at which versions of these events happened.
SELECT DISTINCT toInt64(floor(toUnixTimestamp64Micro(created_at) / 3600000000))
FROM {table}
WHERE event_type = %(event_type)s AND event_id BETWEEN %(first)s AND %(last)s AND event_id IN %(ids)s AND NOT _deleted

-- name: hours_between
SELECT DISTINCT toInt64(floor(toUnixTimestamp64Micro(created_at) / 3600000000))
FROM {table}
WHERE event_type = %(event_type)s AND event_id BETWEEN %(first)s AND %(last)s AND NOT _deleted

-- name: loaded
-- Count and order-independent hash of what one reading of one window left in the table.
SELECT count(), sum(bitXor(mixed, bitShiftRight(mixed, 29)) * 13787848793156543929)
FROM
(
    SELECT
        toUInt64(event_id) * 11400714819323198485
            + toUInt64(campaign_id) * 14029467366897019727
            + toUInt64(toUnixTimestamp64Micro(created_at)) * 1609587929392839161
            + toUInt64(toUnixTimestamp64Micro(inserted_at)) * 9650029242287828579{extra} AS mixed
    FROM {table}
    WHERE event_type = %(event_type)s AND event_id BETWEEN %(first)s AND %(last)s
        AND inserted_at >= %(lo)s AND inserted_at < %(hi)s
        AND _version = %(version)s AND NOT _deleted
    {distinct}
)

-- name: words_number
-- The numbers that stand for a value of a further column in the hash above, parted by semicolons.
toUInt64({column})

-- name: words_float
toUInt64(reinterpretAsUInt64({column}))

-- name: words_date
toUInt64(toInt32({column}))

-- name: words_instant
toUInt64(toUnixTimestamp64Micro({column}))

-- name: words_small_decimal
toUInt64(reinterpretAsInt32({column}))

-- name: words_decimal
toUInt64(reinterpretAsInt64({column}))

-- name: words_wide
toUInt64(reinterpretAsUInt128({column}));toUInt64(bitShiftRight(reinterpretAsUInt128({column}), 64))

-- name: words_text
toUInt64(length({column}));reinterpretAsUInt64(substring({column}, 1, 8));reinterpretAsUInt64(right({column}, 8))

-- name: create_shadow
CREATE TABLE {table} AS ad_events COMMENT %(comment)s

-- name: shadows
SELECT name, uuid, comment FROM system.tables WHERE database = %(database)s AND startsWith(name, 'ad_events_shadow_')

-- name: partitions
SELECT DISTINCT partition_id FROM system.parts
WHERE database = %(database)s AND table = %(table)s AND active AND startsWith(partition, %(prefix)s)

-- name: ranges_present
-- The ranges of ids in which events of one kind lie, and how many rows: in the table, and in the one it is to replace.
SELECT toInt64OrZero(extract(partition, ',(-?[0-9]+)\\)$')), sum(rows)
FROM system.parts
WHERE database = %(database)s AND table IN %(tables)s AND active AND startsWith(partition, %(prefix)s)
GROUP BY 1

-- name: mark_days
-- The server's clock, after the rows it speaks of were acknowledged.
INSERT INTO day_marks (date_id, again, marked_at)
SELECT arrayJoin(%(days)s) AS day, has(%(again)s, day), now64(6, 'UTC')
