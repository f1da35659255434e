-- Will each campaign spend its budget by the end of its flight? Whole days only, up to the day asked about. The pacing
-- index is the share of budget spent over the share of flight elapsed: 1 is on plan, above it the money goes too fast.
-- The projection goes on at the rate of the latest days. Without an end date there is no elapsed share, index,
-- required spend or projection, but the days the budget lasts at that rate are told.
-- Grain: a campaign whose flight includes the day, also one without dates.
-- Example: retailmedia query budget_pacing --param as_of_day=2026-11-19
SET param_as_of_day = ''; -- last whole day that counts; empty for yesterday in the reporting time zone
SET param_rate_days = '7'; -- days up to it over which the present rate of spending is taken
SET param_limit = '1000'; -- campaigns to show at most
WITH
    ifNull(toDate32OrNull({as_of_day:String}), (SELECT today FROM reporting_day) - toIntervalDay(1)) AS day
SELECT
    campaign_id,
    campaign_name,
    advertiser_name,
    if(budget <= 0, 'no budget', if(spend >= budget, 'spent', if(pacing_index IS NULL, 'undated',
        if(pacing_index > 1.1, 'ahead', if(pacing_index < 0.9, 'behind', 'on pace'))))) AS pace,
    start_date,
    end_date,
    flight_days,
    elapsed_days,
    if(flight_days > 0, elapsed_days / flight_days, NULL) AS elapsed_share,
    budget,
    spend,
    unpriced,
    toDecimal128(budget, 9) - spend AS budget_left,
    if(budget <= 0, NULL, toFloat64(spend) / toFloat64(budget)) AS utilisation,
    if(budget > 0 AND elapsed_days > 0 AND flight_days > 0, utilisation / elapsed_share, NULL) AS pacing_index,
    if(remaining_days > 0, toDecimal128(divideDecimal(toDecimal256(greatest(budget_left, toDecimal128(0, 9)), 9), toDecimal256(remaining_days, 0), 9), 9), NULL) AS required_daily_spend,
    toDecimal128(divideDecimal(toDecimal256(recent_spend, 9), toDecimal256(rate_days, 0), 9), 9) AS daily_spend,
    if(remaining_days IS NULL, NULL, spend + toDecimal128(divideDecimal(toDecimal256(recent_spend, 9) * assumeNotNull(remaining_days), toDecimal256(rate_days, 0), 9), 9)) AS projected_end_spend,
    if(recent_spend > 0 AND budget_left > 0, toFloat64(budget_left) * rate_days / toFloat64(recent_spend), NULL) AS budget_lasts_days,
    pricing_model
FROM
(
    SELECT
        campaign.campaign_id AS campaign_id,
        campaign.campaign_name AS campaign_name,
        campaign.advertiser_name AS advertiser_name,
        campaign.start_date AS start_date,
        campaign.end_date AS end_date,
        campaign.budget_amount AS budget,
        campaign.campaign_duration_days AS flight_days,
        dateDiff('day', campaign.start_date, day) + 1 AS elapsed_days,
        dateDiff('day', day, campaign.end_date) AS remaining_days,
        ifNull(delivery.spend, toDecimal128(0, 9)) AS spend,
        ifNull(delivery.recent_spend, toDecimal128(0, 9)) AS recent_spend,
        ifNull(delivery.unpriced, 0) AS unpriced,
        greatest(1, least(toInt64({rate_days:UInt16}), ifNull(toInt64(elapsed_days), toInt64({rate_days:UInt16})))) AS rate_days,
        delivery.pricing_model AS pricing_model
    FROM
    (
        SELECT *
        FROM campaign_dimension
        WHERE NOT is_deleted AND ifNull(start_date <= day, true) AND ifNull(end_date >= day, true)
    ) AS campaign
    LEFT JOIN
    (
        SELECT
            campaign_id,
            sum(spend_amount) AS spend,
            sum(unpriced_count) AS unpriced,
            sumIf(spend_amount, date_id > day - toIntervalDay({rate_days:UInt16})) AS recent_spend,
            arrayStringConcat(arraySort(groupUniqArray(pricing_model)), ' + ') AS pricing_model
        FROM daily_campaign_performance
        WHERE date_id <= day
        GROUP BY campaign_id
    ) AS delivery ON delivery.campaign_id = campaign.campaign_id
)
ORDER BY ifNull(abs(pacing_index - 1), -1) DESC, spend DESC, campaign_id
LIMIT {limit:UInt32}
SETTINGS join_use_nulls = 1, optimize_move_to_prewhere = 0
