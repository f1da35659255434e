-- What people decided about rows in quarantine; read with FINAL. A decision holds for the row as it was judged: where
-- its campaign, time or further columns change at the source, it is judged anew.
CREATE TABLE IF NOT EXISTS quarantine_decisions
(
    stream     LowCardinality(String),
    event_id   Int64,
    decision   Enum8('release' = 1, 'discard' = 2),
    content    String COMMENT 'the row as judged, as JSON, without inserted_at',
    reason     String,
    decided_at DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = ReplacingMergeTree(decided_at)
ORDER BY (stream, event_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
