-- One row per campaign and reporting day that has events; campaign_id 0 gathers events without a campaign.
-- Replaced one day at a time and atomically, so readers need no FINAL and never see half a day.
CREATE TABLE IF NOT EXISTS daily_campaign_performance
(
    date_id           Date32 COMMENT 'day in the reporting time zone',
    campaign_id       Int64,
    impressions_count UInt64,
    clicks_count      UInt64,
    spend_amount      Decimal(38, 5) COMMENT 'by pricing_model, each event at the bid in force when it happened',
    ctr               Nullable(Float64) COMMENT 'clicks / impressions',
    cpm               Nullable(Decimal(38, 6)) COMMENT '1000 * spend / impressions',
    cpc               Nullable(Decimal(38, 6)) COMMENT 'spend / clicks',
    pricing_model     LowCardinality(String),
    updated_at        DateTime64(6, 'UTC') COMMENT 'the day holds everything that had arrived at this time'
)
ENGINE = MergeTree
PARTITION BY date_id
ORDER BY (date_id, campaign_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
