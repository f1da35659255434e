-- Statements on the tables that hold events, or are about to.

-- name: tables
SELECT name, uuid
FROM system.tables
WHERE database = %(database)s AND (name = %(live)s OR startsWith(name, 'ad_events_shadow_'))
ORDER BY name != %(live)s, name

-- name: shapes_differ
SELECT
(
    SELECT uniqExact(columns) != 1 OR count() != 2
    FROM
    (
        SELECT groupArray((name, type, default_kind, default_expression)) AS columns
        FROM
        (
            SELECT table, name, type, default_kind, default_expression FROM system.columns
            WHERE database = %(database)s AND table IN (%(table)s, %(live)s)
            ORDER BY table, position
        )
        GROUP BY table
    )
)
OR
(
    SELECT uniqExact((sorting_key, partition_key)) != 1 FROM system.tables
    WHERE database = %(database)s AND name IN (%(table)s, %(live)s)
)
