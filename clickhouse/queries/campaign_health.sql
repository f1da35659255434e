-- How are the campaigns that run today? What they have spent and have left, how they click lately, when they last
-- delivered, and a verdict: never delivered, silent, overspent, nearly spent, no budget, or well.
-- Grain: a campaign whose flight includes the day, also one without dates.
-- Example: retailmedia query campaign_health --param today=2026-11-20 --param silent_days=1
SET param_today = ''; -- the day asked about; empty for today in the reporting time zone
SET param_recent_days = '7'; -- days up to that day that count as recent
SET param_silent_days = '2'; -- whole days without an event that make a campaign silent
SET param_limit = '1000'; -- campaigns to show at most
WITH
    ifNull(toDate32OrNull({today:String}), (SELECT today FROM reporting_day)) AS today
SELECT
    campaign.campaign_id AS campaign_id,
    campaign.campaign_name AS campaign_name,
    campaign.advertiser_name AS advertiser_name,
    if(delivery.campaign_id IS NULL, 'never delivered',
        if(dateDiff('day', delivery.last_day, today) > {silent_days:UInt16}, 'silent',
        if(campaign.budget_amount <= 0, 'no budget',
        if(delivery.spend > campaign.budget_amount, 'overspent',
        if(delivery.spend >= 0.9 * campaign.budget_amount, 'nearly spent', 'well'))))) AS health,
    campaign.start_date AS start_date,
    campaign.end_date AS end_date,
    dateDiff('day', today, campaign.end_date) AS days_left,
    delivery.last_day AS last_event_day,
    ifNull(delivery.impressions, 0) AS impressions,
    ifNull(delivery.clicks, 0) AS clicks,
    ifNull(delivery.spend, toDecimal128(0, 9)) AS spend,
    ifNull(delivery.unpriced, 0) AS unpriced,
    campaign.budget_amount AS budget,
    toDecimal128(campaign.budget_amount, 9) - ifNull(delivery.spend, toDecimal128(0, 9)) AS budget_left,
    if(campaign.budget_amount <= 0, NULL, toFloat64(ifNull(delivery.spend, 0)) / toFloat64(campaign.budget_amount)) AS utilisation,
    if(delivery.impressions > 0, delivery.clicks / delivery.impressions, NULL) AS ctr,
    if(delivery.recent_impressions > 0, delivery.recent_clicks / delivery.recent_impressions, NULL) AS recent_ctr,
    delivery.pricing_model AS pricing_model
FROM
(
    SELECT *
    FROM campaign_dimension
    WHERE NOT is_deleted AND ifNull(start_date <= today, true) AND ifNull(end_date >= today, true)
) AS campaign
LEFT JOIN
(
    SELECT
        campaign_id,
        max(date_id) AS last_day,
        sum(impressions_count) AS impressions,
        sum(clicks_count) AS clicks,
        sum(spend_amount) AS spend,
        sum(unpriced_count) AS unpriced,
        sumIf(impressions_count, date_id > today - toIntervalDay({recent_days:UInt16})) AS recent_impressions,
        sumIf(clicks_count, date_id > today - toIntervalDay({recent_days:UInt16})) AS recent_clicks,
        arrayStringConcat(arraySort(groupUniqArray(pricing_model)), ' + ') AS pricing_model
    FROM daily_campaign_performance
    WHERE date_id <= today
    GROUP BY campaign_id
) AS delivery ON delivery.campaign_id = campaign.campaign_id
ORDER BY health = 'well', spend DESC, campaign_id
LIMIT {limit:UInt32}
SETTINGS join_use_nulls = 1, optimize_move_to_prewhere = 0
