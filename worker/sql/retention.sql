-- Statements on events that the source no longer keeps, and on days that were sealed. {live} and {shadow} are quoted
-- tables; `kept` is the instant before which the source is not asked what it has deleted.

-- name: sealed_days
SELECT toString(reporting_timezone), groupUniqArray(date_id) FROM day_seals GROUP BY reporting_timezone

-- name: columns
-- What a row is copied by: columns that hold values of their own.
SELECT name FROM system.columns
WHERE database = %(database)s AND table = %(table)s AND default_kind IN ('', 'DEFAULT')
ORDER BY position

-- name: piece
-- How many versions of old events the next piece has, and the last id in it.
SELECT count(), max(event_id)
FROM
(
    SELECT event_id
    FROM {live}
    WHERE event_type = %(event_type)s AND (event_id > %(after)s OR %(with_after)s AND event_id = %(after)s)
        AND (created_at < %(kept)s OR inserted_at < %(kept)s) AND NOT _deleted
    ORDER BY event_type, event_id
    LIMIT %(rows)s
)

-- name: carry
INSERT INTO {shadow} ({columns})
SELECT {columns}
FROM
(
    SELECT {columns} FROM {live} FINAL
    WHERE event_type = %(event_type)s AND event_id <= %(until)s
        AND (event_id > %(after)s OR %(with_after)s AND event_id = %(after)s)
        AND (created_at < %(kept)s OR inserted_at < %(kept)s)
) AS kept
LEFT JOIN
(
    SELECT event_id AS known_id, max(_version) AS newest FROM {shadow}
    WHERE event_type = %(event_type)s AND event_id <= %(until)s
        AND (event_id > %(after)s OR %(with_after)s AND event_id = %(after)s)
    GROUP BY event_id
) AS there ON known_id = event_id
WHERE newest < _version
SETTINGS max_partitions_per_insert_block = 0, join_use_nulls = 0, do_not_merge_across_partitions_select_final = 1
