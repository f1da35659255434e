-- What each day has said of each campaign, and from when: written by the rebuild before it publishes a day, and only
-- where something differs from what was said before. Read with FINAL: the newest row with said_at <= T is what the day
-- said at T. Of a provisional day the last word of each quarter of an hour is kept, of a final day every word.
CREATE TABLE IF NOT EXISTS daily_campaign_history
(
    date_id            Date32,
    campaign_id        Int64,
    slot               DateTime64(6, 'UTC') COMMENT 'said_at; for a provisional day the start of its quarter of an hour',
    said_at            DateTime64(6, 'UTC') COMMENT 'updated_at of the rebuild',
    impressions_count  UInt64,
    clicks_count       UInt64,
    spend_amount       Decimal(38, 5),
    pricing_model      LowCardinality(String),
    reporting_timezone LowCardinality(String),
    is_gone            Bool COMMENT 'the campaign has no events left on this day',
    was_final          Bool COMMENT 'the day had been declared final before this',
    impressions_before UInt64,
    clicks_before      UInt64,
    spend_before       Decimal(38, 5),
    cause              LowCardinality(String) COMMENT 'why a final day changed'
)
ENGINE = ReplacingMergeTree(said_at)
PARTITION BY toYYYYMM(date_id)
ORDER BY (date_id, campaign_id, slot)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
