-- The calendars by which days were cut: the one of the highest number is in force. A calendar is adopted once every day
-- that it cuts otherwise than those before it is marked to be built anew. Written by `migrate` and the sweep.
CREATE TABLE IF NOT EXISTS reporting_calendars
(
    number             UInt32,
    state              Enum8('adopting' = 1, 'adopted' = 2),
    reporting_timezone String,
    iana_version       String COMMENT 'of the zone data',
    fingerprint        UInt64 COMMENT 'the same where all days and hours are',
    starts             Array(Int64) COMMENT 'microseconds since 1970 from which clocks show UTC and the offset of the same place',
    offsets            Array(Int32) COMMENT 'seconds',
    begins             Array(Int64) COMMENT 'when each day from 1900-01-02 on begins, microseconds since 1970, up to the end of 2299-12-30' CODEC(ZSTD(3)),
    noted_at           DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC')
)
ENGINE = MergeTree
ORDER BY (number, state)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
