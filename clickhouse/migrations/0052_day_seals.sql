-- What a day held when it was declared final, and again each time a final day was restated; the newest seal of a day is
-- the one with the greatest number. Read with FINAL. Stream columns are in the order of `streams`.
CREATE TABLE IF NOT EXISTS day_seals
(
    date_id            Date32 COMMENT 'day in reporting_timezone',
    number             UInt32 COMMENT '1 for the first seal of a day',
    replaces           UInt32 COMMENT 'number of the seal this one takes the place of; 0 for the first',
    streams            Array(LowCardinality(String)),
    rows               Array(UInt64),
    first_ids          Array(Int64),
    last_ids           Array(Int64),
    content_hashes     Array(UInt64) COMMENT 'order-independent, over id, campaign and time of the events; equal in PostgreSQL and ClickHouse',
    metrics_rows       UInt64,
    metrics_hash       UInt64 COMMENT 'order-independent, over campaigns, counts and spend of the day',
    spend              Decimal(38, 5) COMMENT 'by pricing_model',
    pricing_model      LowCardinality(String),
    reporting_timezone LowCardinality(String),
    source_system_id   UInt64 COMMENT 'pg_control_system().system_identifier',
    source_timeline    UInt32,
    source_snapshot    UInt64 COMMENT 'version of the snapshot PostgreSQL was read in',
    complete_through   DateTime64(6, 'UTC') COMMENT 'rows inserted at the source before this are in the seal',
    code_version       LowCardinality(String) COMMENT 'digest of the code that made the seal',
    sealed_at          DateTime64(6, 'UTC'),
    looked_at          DateTime64(6, 'UTC') COMMENT 'when the day was last found to hold what the seal says; until then nothing more need be looked at'
)
ENGINE = ReplacingMergeTree(looked_at)
ORDER BY (date_id, number)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1
