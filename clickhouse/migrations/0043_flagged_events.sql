-- Rows that were loaded although a cleansing rule found something to say about them; read with FINAL.
CREATE TABLE IF NOT EXISTS flagged_events
(
    stream     LowCardinality(String),
    event_id   Int64,
    rule       LowCardinality(String),
    row        String COMMENT 'the source row as JSON',
    lo         DateTime64(6, 'UTC'),
    hi         DateTime64(6, 'UTC'),
    run_id     String,
    flagged_at DateTime64(6, 'UTC') DEFAULT now64(6),
    _version   UInt64
)
ENGINE = ReplacingMergeTree(_version)
ORDER BY (stream, event_id, rule)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1
