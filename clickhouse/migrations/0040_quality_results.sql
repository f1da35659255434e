-- What each check found, each time it ran. The history is kept for half a year.
CREATE TABLE IF NOT EXISTS quality_results
(
    check_name    LowCardinality(String) COMMENT 'the file in clickhouse/checks, with source/ before it where it asks PostgreSQL',
    severity      Enum8('error' = 1, 'warn' = 2, 'info' = 3),
    state         Enum8('passed' = 1, 'failed' = 2, 'broken' = 3) COMMENT 'broken: the check itself could not be carried out',
    trigger       Enum8('rebuild' = 1, 'nightly' = 2, 'manual' = 3),
    run_id        String,
    checked_at    DateTime64(6, 'UTC'),
    first_day     Date32 COMMENT 'of the reporting days looked at, where the check looks at days',
    last_day      Date32,
    failing       UInt64 COMMENT 'rows',
    samples       Array(String) COMMENT 'some of them, each a JSON object' CODEC(ZSTD(3)),
    message       String COMMENT 'why the check is broken',
    seconds       Float64,
    statement     String COMMENT 'what was asked, where the check did not pass' CODEC(ZSTD(3))
)
ENGINE = MergeTree
ORDER BY (check_name, checked_at)
TTL toDateTime(checked_at) + INTERVAL 180 DAY
SETTINGS non_replicated_deduplication_window = 100, fsync_after_insert = 1, fsync_part_directory = 1
