-- What the doctor asks ClickHouse.

-- name: server
SELECT version(), timezone(), now64(6, 'UTC')

-- name: database
SELECT engine, toString(uuid) FROM system.databases WHERE name = %(database)s

-- name: row_policies
-- Row policies on tables of the database, and whether each applies to whoever asks.
SELECT
    short_name,
    if(table = '', 'every table', table),
    apply_to_all AND NOT has(apply_to_except, currentUser())
        OR hasAny(apply_to_list, arrayConcat([currentUser()], currentRoles()))
FROM system.row_policies
WHERE database = %(database)s
ORDER BY 1, 2

-- name: fixed_disk
-- Whether this user may not let a table name a disk of its own, and with it a host to fetch from or write to.
SELECT max(readonly) FROM system.merge_tree_settings WHERE name = 'disk'

-- name: read_a_file
SELECT length(file('/etc/passwd'))
