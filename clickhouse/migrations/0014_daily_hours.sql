-- The hours of a day stand in the day's own row, so that whatever replaces a day replaces its hours with it.
ALTER TABLE daily_campaign_performance
    ADD COLUMN IF NOT EXISTS impressions_by_hour Array(UInt64) COMMENT 'impressions of each hour of the day in the reporting time zone, 0 to 23; the hour a clock is set back over holds both' AFTER cpc,
    ADD COLUMN IF NOT EXISTS clicks_by_hour Array(UInt64) COMMENT 'clicks, likewise' AFTER impressions_by_hour
