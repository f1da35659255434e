-- Advertisers as of now; read with FINAL. A deleted advertiser stays, marked.
CREATE TABLE IF NOT EXISTS advertiser_dimension
(
    advertiser_id   Int64,
    advertiser_name String,
    is_deleted      Bool,
    created_at      Nullable(DateTime64(6, 'UTC')),
    updated_at      Nullable(DateTime64(6, 'UTC')) COMMENT 'as the source has it',
    loaded_at       DateTime64(6, 'UTC') DEFAULT now64(6),
    _version        UInt64
)
ENGINE = ReplacingMergeTree(_version)
ORDER BY advertiser_id
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1
