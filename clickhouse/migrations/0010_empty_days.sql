-- Days that were rebuilt and found without events: they have no row in daily_campaign_performance to say so.
CREATE TABLE IF NOT EXISTS empty_days
(
    date_id    Date32,
    updated_at SimpleAggregateFunction(max, DateTime64(6, 'UTC'))
)
ENGINE = AggregatingMergeTree
ORDER BY date_id
