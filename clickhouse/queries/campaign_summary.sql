-- How has each campaign done over a period? Impressions, clicks and spend, with CTR, CPM and CPC computed from those
-- sums, dearest first. Events without a campaign stand under campaign 0; `unpriced` are those whose campaign is not
-- known, which are not in spend.
-- Grain: a campaign that has events in the period.
-- Example: retailmedia query campaign_summary --param first_day=2026-11-01 --param limit=10
SET param_first_day = '1970-01-01'; -- first reporting day that counts
SET param_last_day = '2299-12-31'; -- last reporting day that counts
SET param_limit = '1000'; -- campaigns to show at most
SELECT
    daily.campaign_id AS campaign_id,
    if(daily.campaign_id = 0, 'no campaign', ifNull(campaign.campaign_name, 'not yet known')) AS campaign_name,
    campaign.advertiser_name AS advertiser_name,
    daily.impressions AS impressions,
    daily.clicks AS clicks,
    daily.spend AS spend,
    daily.unpriced AS unpriced,
    if(daily.impressions = 0, NULL, daily.clicks / daily.impressions) AS ctr,
    if(daily.impressions = 0 OR daily.unpriced > 0, NULL, toDecimal128(round(divideDecimal(toDecimal256(daily.spend, 9) * 1000, toDecimal256(daily.impressions, 0), 8), 6), 6)) AS cpm,
    if(daily.clicks = 0 OR daily.unpriced > 0, NULL, toDecimal128(round(divideDecimal(toDecimal256(daily.spend, 9), toDecimal256(daily.clicks, 0), 8), 6), 6)) AS cpc,
    daily.pricing_model AS pricing_model
FROM
(
    SELECT
        campaign_id,
        sum(impressions_count) AS impressions,
        sum(clicks_count) AS clicks,
        sum(spend_amount) AS spend,
        sum(unpriced_count) AS unpriced,
        arrayStringConcat(arraySort(groupUniqArray(pricing_model)), ' + ') AS pricing_model
    FROM daily_campaign_performance
    WHERE date_id BETWEEN {first_day:Date32} AND {last_day:Date32}
    GROUP BY campaign_id
) AS daily
LEFT JOIN campaign_dimension AS campaign ON campaign.campaign_id = daily.campaign_id
ORDER BY spend DESC, impressions DESC, campaign_id
LIMIT {limit:UInt32}
SETTINGS join_use_nulls = 1, optimize_move_to_prewhere = 0
