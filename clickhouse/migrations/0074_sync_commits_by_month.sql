-- The ledger anew, parted by the month of the commit, so that what is older than 400 days goes as whole parts and nothing
-- is rewritten. It takes the place of `sync_commits` in the steps that follow. Checkpoints are kept elsewhere now.
CREATE TABLE IF NOT EXISTS sync_commits_by_month
(
    stream       LowCardinality(String),
    target_uuid  UUID,
    lo           DateTime64(6, 'UTC'),
    hi           DateTime64(6, 'UTC'),
    kind         Enum8('window' = 1, 'checkpoint' = 2),
    run_id       String,
    version      UInt64 COMMENT 'of the snapshot read; its top byte is the generation',
    extracted    UInt64 DEFAULT rows + quarantined COMMENT 'read from the source',
    rows         UInt64 COMMENT 'loaded',
    quarantined  UInt64,
    content_hash UInt64 COMMENT 'order-independent, over the loaded rows',
    system_id    UInt64 COMMENT 'pg_control_system().system_identifier',
    timeline     UInt32,
    committed_at DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(committed_at)
ORDER BY (stream, target_uuid, hi, lo)
TTL toDateTime(committed_at) + INTERVAL 400 DAY
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1, ttl_only_drop_parts = 1
