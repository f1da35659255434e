-- The ledger: each row says that a window of a stream is in a table, whole. The watermark of a stream is the end of
-- the contiguous run of its commits for the uuid of the table that is live. A row of kind 'checkpoint' stands for all
-- commits before its end.
CREATE TABLE IF NOT EXISTS sync_commits
(
    stream       LowCardinality(String),
    target_uuid  UUID,
    lo           DateTime64(6, 'UTC'),
    hi           DateTime64(6, 'UTC'),
    kind         Enum8('window' = 1, 'checkpoint' = 2),
    run_id       String,
    version      UInt64 COMMENT 'of the snapshot read; its top byte is the generation',
    rows         UInt64 COMMENT 'loaded',
    quarantined  UInt64,
    content_hash UInt64 COMMENT 'order-independent, over the loaded rows',
    system_id    UInt64 COMMENT 'pg_control_system().system_identifier',
    timeline     UInt32,
    committed_at DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = MergeTree
ORDER BY (stream, target_uuid, hi, lo)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1
