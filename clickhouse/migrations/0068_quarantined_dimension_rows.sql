-- Rows of dimensions that could not be loaded, with the reason; read with FINAL. What was loaded of them before stays in
-- force. A reading writes what differs from the reading before it, so quarantined_at is since when a row stands as it does.
CREATE TABLE IF NOT EXISTS quarantined_dimension_rows
(
    stream         LowCardinality(String),
    key            String COMMENT 'the id as the source shows it',
    row_id         Int64 COMMENT 'the id, 0 where it is none',
    state          Enum8('held' = 1, 'loaded' = 2, 'gone' = 3) COMMENT 'loaded by a later reading, or no longer at the source',
    row            String COMMENT 'the source row as JSON, values cut to 200 characters',
    rule           String COMMENT 'which column, which value and why',
    run_id         String,
    quarantined_at DateTime64(6, 'UTC') DEFAULT now64(6),
    _version       UInt64
)
ENGINE = ReplacingMergeTree(_version)
ORDER BY (stream, key)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1
