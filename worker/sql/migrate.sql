-- Statements of the migration runner.

-- name: create_history
CREATE TABLE IF NOT EXISTS schema_migrations
(
    name       String,
    checksum   String COMMENT 'SHA-256 of the file',
    rendered   String COMMENT 'SHA-256 of what was run: the file with settings filled in',
    applied_at DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC')
)
ENGINE = ReplacingMergeTree(applied_at)
ORDER BY name
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1

-- name: create_distributed
-- Reads of it go to any replica that answers; workers write to the table itself, whose blocks they number. Made anew
-- each time, as it keeps the columns of the day it was made and holds nothing.
CREATE OR REPLACE TABLE {distributed} AS {table}
ENGINE = Distributed({cluster}, {database}, {table}, campaign_id)

-- name: history
SELECT name, checksum, rendered, applied_at FROM schema_migrations FINAL ORDER BY name

-- name: history_exists
SELECT count() FROM system.tables WHERE database = %(database)s AND name = 'schema_migrations'

-- name: server
SELECT version(), timezone()
