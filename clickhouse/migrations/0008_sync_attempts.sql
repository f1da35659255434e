-- What happened to windows that did not go straight through: failures with their cause, and, noted before the insert
-- that overwrites them, the days from which events are about to move away.
CREATE TABLE IF NOT EXISTS sync_attempts
(
    stream      LowCardinality(String),
    target_uuid UUID,
    lo          DateTime64(6, 'UTC'),
    hi          DateTime64(6, 'UTC'),
    outcome     Enum8('superseding' = 1, 'failed' = 2),
    run_id      String,
    days        Array(Date32),
    error       String,
    noted_at    DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = MergeTree
ORDER BY (stream, target_uuid, hi, lo)
TTL toDateTime(noted_at) + INTERVAL 60 DAY
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1
