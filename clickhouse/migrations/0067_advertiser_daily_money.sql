-- Each advertiser on each day, by who owns the campaigns now. Campaigns of nobody, events without a campaign, and events
-- whose campaign is not known, stand under advertiser NULL; what the latter cost is not known either.
CREATE OR REPLACE VIEW advertiser_daily AS
SELECT
    date_id,
    advertiser_id,
    any(advertiser_name) AS advertiser_name,
    count() AS campaigns,
    sum(daily.impressions_count) AS impressions,
    sum(daily.clicks_count) AS clicks,
    sum(daily.spend_amount) AS spend,
    sum(daily.unpriced_count) AS unpriced,
    if(impressions = 0, NULL, clicks / impressions) AS ctr,
    if(impressions = 0 OR unpriced > 0, NULL, toDecimal128(round(divideDecimal(toDecimal256(spend, 9) * 1000, toDecimal256(impressions, 0), 8), 6), 6)) AS cpm,
    if(clicks = 0 OR unpriced > 0, NULL, toDecimal128(round(divideDecimal(toDecimal256(spend, 9), toDecimal256(clicks, 0), 8), 6), 6)) AS cpc,
    arrayStringConcat(arraySort(groupUniqArray(daily.pricing_model)), ' + ') AS pricing_model,
    min(daily.updated_at) AS updated_at
FROM daily_campaign_performance AS daily
LEFT JOIN campaign_dimension AS campaign ON campaign.campaign_id = daily.campaign_id
GROUP BY date_id, campaign.advertiser_id AS advertiser_id
SETTINGS join_use_nulls = 1
