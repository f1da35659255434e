-- What the doctor asks ClickHouse.

-- name: server
SELECT version(), timezone(), now64(6, 'UTC')

-- name: database
SELECT engine, toString(uuid) FROM system.databases WHERE name = %(database)s
