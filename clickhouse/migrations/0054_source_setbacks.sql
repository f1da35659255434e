-- Times at which the source was seen to have gone back: its newest transaction, or its clock, was behind what had been
-- loaded from it. While the newest generation has a row here nothing is loaded; a full refresh begins the next generation.
CREATE TABLE IF NOT EXISTS source_setbacks
(
    generation UInt8,
    cause      Enum8('transactions' = 1, 'clock' = 2),
    message    String,
    noticed_at DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = MergeTree
ORDER BY (generation, noticed_at)
SETTINGS non_replicated_deduplication_window = 100, fsync_after_insert = 1, fsync_part_directory = 1
