-- When the content of a reporting day last changed. A day whose mark is not older than its metrics is rebuilt.
CREATE TABLE IF NOT EXISTS day_marks
(
    date_id   Date32,
    marked_at SimpleAggregateFunction(max, DateTime64(6, 'UTC'))
)
ENGINE = AggregatingMergeTree
ORDER BY date_id
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
