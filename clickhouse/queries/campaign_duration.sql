-- Do longer campaigns do better? Campaigns by the length of their flight; averages are per campaign, and CTR, CPM and
-- CPC are of the sums, never means of ratios.
-- Grain: a span of flight lengths, with campaigns that lack a date in one of their own.
-- Example: retailmedia query campaign_duration
SET param_first_day = '1970-01-01'; -- first reporting day that counts
SET param_last_day = '2299-12-31'; -- last reporting day that counts
SELECT
    flight,
    count() AS campaigns,
    countIf(delivery.impressions + delivery.clicks > 0) AS delivering,
    sum(delivery.impressions) AS impressions,
    sum(delivery.clicks) AS clicks,
    sum(delivery.spend) AS spend,
    sum(delivery.unpriced) AS unpriced,
    impressions / campaigns AS impressions_per_campaign,
    clicks / campaigns AS clicks_per_campaign,
    toDecimal128(divideDecimal(toDecimal256(spend, 9), toDecimal256(campaigns, 0), 9), 9) AS spend_per_campaign,
    if(impressions = 0, NULL, clicks / impressions) AS ctr,
    if(impressions = 0 OR unpriced > 0, NULL, toDecimal128(round(divideDecimal(toDecimal256(spend, 9) * 1000, toDecimal256(impressions, 0), 8), 6), 6)) AS cpm,
    if(clicks = 0 OR unpriced > 0, NULL, toDecimal128(round(divideDecimal(toDecimal256(spend, 9), toDecimal256(clicks, 0), 8), 6), 6)) AS cpc,
    arrayStringConcat(arraySort(arrayDistinct(arrayFlatten(groupArray(delivery.models)))), ' + ') AS pricing_model
FROM
(
    SELECT
        campaign_id,
        multiIf(
            campaign_duration_days IS NULL, 'undated',
            campaign_duration_days <= 7, '1 to 7 days',
            campaign_duration_days <= 14, '8 to 14 days',
            campaign_duration_days <= 30, '15 to 30 days',
            campaign_duration_days <= 90, '31 to 90 days',
            'over 90 days') AS flight,
        ifNull(campaign_duration_days, 1000000) AS days
    FROM campaign_dimension
) AS campaign
LEFT JOIN
(
    SELECT
        campaign_id,
        sum(impressions_count) AS impressions,
        sum(clicks_count) AS clicks,
        sum(spend_amount) AS spend,
        sum(unpriced_count) AS unpriced,
        groupUniqArray(toString(pricing_model)) AS models
    FROM daily_campaign_performance
    WHERE date_id BETWEEN {first_day:Date32} AND {last_day:Date32}
    GROUP BY campaign_id
) AS delivery ON delivery.campaign_id = campaign.campaign_id
GROUP BY flight
ORDER BY min(campaign.days)
SETTINGS join_use_nulls = 0, optimize_move_to_prewhere = 0
