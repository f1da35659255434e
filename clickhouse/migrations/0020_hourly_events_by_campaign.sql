-- Events of each campaign in each hour that has any; hours in the reporting time zone.
CREATE OR REPLACE VIEW hourly_events_by_campaign AS
SELECT
    date_id,
    toUInt8(position - 1) AS hour,
    campaign_id,
    impressions AS impressions_count,
    clicks AS clicks_count,
    updated_at
FROM daily_campaign_performance
ARRAY JOIN
    impressions_by_hour AS impressions,
    clicks_by_hour AS clicks,
    arrayEnumerate(impressions_by_hour) AS position
WHERE impressions + clicks > 0
