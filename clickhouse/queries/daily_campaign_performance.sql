-- How did each campaign do on each day? CTR, CPM and CPC as the product keeps them, newest day first.
-- Grain: a campaign and day that have events.
-- Example: retailmedia query daily_campaign_performance --param campaign_id=7 --param first_day=2026-11-01
SET param_first_day = '1970-01-01'; -- first reporting day to show
SET param_last_day = '2299-12-31'; -- last reporting day to show
SET param_campaign_id = '0'; -- the one campaign to show, 0 for all
SET param_limit = '1000'; -- rows to show at most
SELECT
    daily.date_id AS date_id,
    daily.campaign_id AS campaign_id,
    if(daily.campaign_id = 0, 'no campaign', ifNull(campaign.campaign_name, 'not yet known')) AS campaign_name,
    daily.impressions_count AS impressions,
    daily.clicks_count AS clicks,
    daily.spend_amount AS spend,
    daily.unpriced_count AS unpriced,
    daily.ctr AS ctr,
    daily.cpm AS cpm,
    daily.cpc AS cpc,
    daily.pricing_model AS pricing_model
FROM
(
    SELECT date_id, campaign_id, impressions_count, clicks_count, spend_amount, unpriced_count, ctr, cpm, cpc, pricing_model
    FROM daily_campaign_performance
    WHERE date_id BETWEEN {first_day:Date32} AND {last_day:Date32}
        AND ({campaign_id:Int64} = 0 OR campaign_id = {campaign_id:Int64})
    ORDER BY date_id DESC, spend_amount DESC, impressions_count DESC, campaign_id
    LIMIT {limit:UInt32}
) AS daily
LEFT JOIN campaign_dimension AS campaign ON campaign.campaign_id = daily.campaign_id
ORDER BY date_id DESC, spend DESC, impressions DESC, campaign_id
SETTINGS join_use_nulls = 1, optimize_move_to_prewhere = 0
