-- From when which days are final: the newest final_through noted by then, and every day before it. A day becomes final
-- when everything the source wrote until FINALITY_HOURS after its end is loaded.
CREATE TABLE IF NOT EXISTS finality
(
    final_through Date32,
    noted_at      SimpleAggregateFunction(min, DateTime64(6, 'UTC'))
)
ENGINE = AggregatingMergeTree
ORDER BY final_through
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
