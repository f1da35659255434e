-- Every impression and click, one logical row per (event_type, event_id).
-- The key and the partition hold only what an UPDATE at the source cannot change; campaign_id 0 means the source
-- had NULL. A quarantined event leaves a row with _deleted = 1, so that no outdated version of it is counted.
CREATE TABLE IF NOT EXISTS ad_events
(
    event_code  Int8 EPHEMERAL 1 COMMENT 'event_type by number, as the loader sends it: a driver packs whole columns of numbers, not of names',
    event_type  Enum8('impression' = 1, 'click' = 2) DEFAULT CAST(event_code, 'Enum8(\'impression\' = 1, \'click\' = 2)'),
    event_id    Int64,
    campaign_id Int64,
    created_at  DateTime64(6, 'UTC') COMMENT 'when the event happened' CODEC(Delta, LZ4),
    event_date  Date32 DEFAULT toDate32(created_at, 'UTC') COMMENT 'UTC day of created_at; reports cut days in the reporting time zone',
    inserted_at DateTime64(6, 'UTC') COMMENT 'when the row was written at the source' CODEC(Delta, LZ4),
    loaded_at   DateTime64(3, 'UTC') DEFAULT now64(3) COMMENT 'when the row arrived here',
    _version    UInt64 COMMENT 'of the source snapshot that was read: generation, xmax, transactions in progress',
    _deleted    UInt8 DEFAULT 0,
    INDEX by_event_date event_date TYPE minmax GRANULARITY 1,
    INDEX by_created_at created_at TYPE minmax GRANULARITY 1,
    INDEX by_inserted_at inserted_at TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree(_version, _deleted)
PARTITION BY (event_type, intDiv(event_id, 10000000))
ORDER BY (event_type, event_id)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1
