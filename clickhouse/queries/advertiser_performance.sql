-- What does each advertiser get, and what goes into their return? Spend with its share of all spend, clicks with theirs,
-- and the break-even value of a click, which is its cost; revenue is not known here. Campaigns of nobody, and events
-- without a campaign, stand under no advertiser; so do events whose campaign is not known: they are `unpriced`.
-- Grain: an advertiser with events in the period, by who owns the campaigns now.
-- Example: retailmedia query advertiser_performance --param first_day=2026-11-01
SET param_first_day = '1970-01-01'; -- first reporting day that counts
SET param_last_day = '2299-12-31'; -- last reporting day that counts
SET param_limit = '1000'; -- advertisers to show at most
SELECT
    advertiser_id,
    if(advertiser_id IS NULL, 'no advertiser', ifNull(advertiser_name, 'not yet known')) AS advertiser_name,
    campaigns,
    impressions,
    clicks,
    spend,
    unpriced,
    if(impressions = 0, NULL, clicks / impressions) AS ctr,
    if(impressions = 0 OR unpriced > 0, NULL, toDecimal128(round(divideDecimal(toDecimal256(spend, 9) * 1000, toDecimal256(impressions, 0), 8), 6), 6)) AS cpm,
    if(clicks = 0 OR unpriced > 0, NULL, toDecimal128(round(divideDecimal(toDecimal256(spend, 9), toDecimal256(clicks, 0), 8), 6), 6)) AS break_even_click_value,
    if(sum(spend) OVER () = 0, NULL, toFloat64(spend) / toFloat64(sum(spend) OVER ())) AS share_of_spend,
    if(sum(clicks) OVER () = 0, NULL, clicks / sum(clicks) OVER ()) AS share_of_clicks,
    budget,
    if(budget > 0, toFloat64(spend) / toFloat64(budget), NULL) AS utilisation,
    pricing_model
FROM
(
    SELECT
        campaign.advertiser_id AS advertiser_id,
        any(campaign.advertiser_name) AS advertiser_name,
        countIf(daily.campaign_id != 0) AS campaigns,
        sum(daily.impressions) AS impressions,
        sum(daily.clicks) AS clicks,
        sum(daily.spend) AS spend,
        sum(daily.unpriced) AS unpriced,
        sum(ifNull(campaign.budget_amount, 0)) AS budget,
        arrayStringConcat(arraySort(arrayDistinct(arrayFlatten(groupArray(daily.models)))), ' + ') AS pricing_model
    FROM
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
    ) AS daily
    LEFT JOIN campaign_dimension AS campaign ON campaign.campaign_id = daily.campaign_id
    GROUP BY campaign.advertiser_id
)
ORDER BY spend DESC, impressions DESC, ifNull(advertiser_id, 0)
LIMIT {limit:UInt32}
SETTINGS join_use_nulls = 1, optimize_move_to_prewhere = 0
