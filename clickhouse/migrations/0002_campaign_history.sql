-- Every version of a campaign that was seen, with the time from which it holds. The first one known holds from the
-- beginning of time; a deletion is a version too. The one with the largest _version is the campaign as of now.
CREATE TABLE IF NOT EXISTS campaign_history
(
    campaign_id   Int64,
    valid_from    DateTime64(6, 'UTC') COMMENT 'the source row''s updated_at where usable, else when the change was seen',
    campaign_name String,
    advertiser_id Nullable(Int64),
    bid_amount    Decimal(10, 2),
    budget_amount Decimal(10, 2),
    start_date    Nullable(Date32),
    end_date      Nullable(Date32),
    is_deleted    Bool,
    created_at    Nullable(DateTime64(6, 'UTC')),
    updated_at    Nullable(DateTime64(6, 'UTC')) COMMENT 'as the source has it',
    loaded_at     DateTime64(6, 'UTC') DEFAULT now64(6),
    _version      UInt64
)
ENGINE = ReplacingMergeTree(_version)
ORDER BY (campaign_id, valid_from)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1
