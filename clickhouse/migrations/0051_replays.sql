-- Windows that a person had read again, and what that changed. 'applying' is written before anything is changed, so
-- that days whose metrics were not rebuilt yet are known.
CREATE TABLE IF NOT EXISTS replays
(
    run_id   String,
    stream   LowCardinality(String),
    lo       DateTime64(6, 'UTC'),
    hi       DateTime64(6, 'UTC'),
    state    Enum8('compared' = 1, 'applying' = 2, 'applied' = 3),
    missing  UInt64 COMMENT 'read at the source and not here before',
    extra    UInt64 COMMENT 'here and no longer at the source',
    stale    UInt64 COMMENT 'here with other values',
    days     Array(Date32) COMMENT 'reporting days whose content changes',
    noted_at DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = MergeTree
ORDER BY (stream, lo, run_id)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1
