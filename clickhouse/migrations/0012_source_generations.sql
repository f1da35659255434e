-- The PostgreSQL servers and timelines read from, in order. A new generation outranks every version of the ones
-- before it and takes watermarks back to rewind_to.
CREATE TABLE IF NOT EXISTS source_generations
(
    generation UInt8,
    system_id  UInt64,
    timeline   UInt32,
    rewind_to  DateTime64(6, 'UTC'),
    first_seen DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = MergeTree
ORDER BY generation
SETTINGS non_replicated_deduplication_window = 100, fsync_after_insert = 1, fsync_part_directory = 1
