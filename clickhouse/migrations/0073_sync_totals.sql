-- What the ledger adds up to, for each stream, table and generation of the source: how far the table is whole
-- (`checkpoint`, written by whoever publishes watermarks), and sums of the windows committed, which a view adds. Reading
-- the ledger begins at the checkpoint, so that its age costs nothing, and commits that lie before it may go. Sums outlive
-- them. All of it is aggregated at any time: read it with max and sum.
CREATE TABLE IF NOT EXISTS sync_totals
(
    stream         LowCardinality(String),
    target_uuid    UUID,
    generation     UInt8,
    checkpoint     SimpleAggregateFunction(max, DateTime64(6, 'UTC')) COMMENT 'everything before it is in the table, as of this generation',
    windows        SimpleAggregateFunction(sum, UInt64),
    loaded         SimpleAggregateFunction(sum, UInt64) COMMENT 'rows',
    set_aside      SimpleAggregateFunction(sum, UInt64) COMMENT 'rows in quarantine instead',
    newest_version SimpleAggregateFunction(max, UInt64),
    last_commit_at SimpleAggregateFunction(max, DateTime64(6, 'UTC'))
)
ENGINE = AggregatingMergeTree
ORDER BY (stream, target_uuid, generation)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1
