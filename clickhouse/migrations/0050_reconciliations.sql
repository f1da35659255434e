-- What each comparison of a stream with its source found, a row for each day; read with FINAL. While rows are being
-- mended a day stands as 'mending', so that a process that died in between leaves word which days to rebuild.
CREATE TABLE IF NOT EXISTS reconciliations
(
    run_id      String,
    stream      LowCardinality(String),
    date_id     Date32 COMMENT 'day in the reporting time zone',
    horizon     DateTime64(6, 'UTC') COMMENT 'rows inserted at the source before this were compared',
    source_rows UInt64,
    target_rows UInt64,
    source_hash UInt64 COMMENT 'order-independent, over id, campaign and time of the events',
    target_hash UInt64,
    state       Enum8('equal' = 1, 'mended' = 2, 'mending' = 3, 'mismatch' = 4),
    missing     UInt64 COMMENT 'at the source and not here',
    extra       UInt64 COMMENT 'here and no longer at the source',
    stale       UInt64 COMMENT 'here with other values than at the source',
    duplicate   UInt64 COMMENT 'stored more than once in their newest version',
    mended      UInt64,
    sample      String COMMENT 'some of the rows, as JSON',
    checked_at  DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = ReplacingMergeTree(checked_at)
ORDER BY (stream, date_id, run_id)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1
