-- Days whose metrics could not be built, with the cause; and, of such a day, that it was built since.
CREATE TABLE IF NOT EXISTS day_attempts
(
    date_id  Date32,
    outcome  Enum8('failed' = 1, 'built' = 2),
    error    String,
    seconds  Float32 COMMENT 'how long the attempt took',
    noted_at DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = MergeTree
ORDER BY (date_id, noted_at)
TTL toDateTime(noted_at) + INTERVAL 60 DAY
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1
