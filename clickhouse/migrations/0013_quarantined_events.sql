-- Rows that could not be loaded, with the reason; read with FINAL. They are counted in sync_commits.quarantined.
CREATE TABLE IF NOT EXISTS quarantined_events
(
    stream         LowCardinality(String),
    event_id       Int64,
    row            String COMMENT 'the source row as JSON',
    rule           LowCardinality(String),
    lo             DateTime64(6, 'UTC'),
    hi             DateTime64(6, 'UTC'),
    run_id         String,
    quarantined_at DateTime64(6, 'UTC') DEFAULT now64(6),
    _version       UInt64
)
ENGINE = ReplacingMergeTree(_version)
ORDER BY (stream, event_id)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1
