-- Runs that a person or a schedule asked for, and how they ended; read with FINAL.
CREATE TABLE IF NOT EXISTS sync_runs
(
    run_id         String,
    kind           Enum8('pipeline' = 1, 'refresh' = 2),
    state          Enum8('running' = 1, 'succeeded' = 2, 'failed' = 3, 'superseded' = 4),
    streams        Array(String),
    metrics_update Bool,
    until          DateTime64(6, 'UTC') COMMENT 'the run is complete when everything inserted before this is loaded',
    target_uuid    Nullable(UUID) COMMENT 'of the shadow table (refresh)',
    version        UInt64 COMMENT 'of the snapshot taken when the shadow was created (refresh)',
    message        String,
    started_at     DateTime64(6, 'UTC'),
    updated_at     DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = ReplacingMergeTree(updated_at)
ORDER BY run_id
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1
