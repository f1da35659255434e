-- Does traffic differ between weekends and weekdays? Averages are per day that has events, so that five weekdays do not
-- outweigh two weekend days.
-- Grain: weekday or weekend (Saturday and Sunday).
-- Example: retailmedia query weekend_vs_weekday --param first_day=2026-10-01
SET param_first_day = '1970-01-01'; -- first reporting day that counts
SET param_last_day = '2299-12-31'; -- last reporting day that counts
SELECT
    if(is_weekend, 'weekend', 'weekday') AS part_of_week,
    days,
    impressions,
    clicks,
    spend,
    unpriced,
    impressions / days AS impressions_per_day,
    clicks / days AS clicks_per_day,
    toDecimal128(divideDecimal(toDecimal256(spend, 9), toDecimal256(days, 0), 9), 9) AS spend_per_day,
    if(impressions = 0, NULL, clicks / impressions) AS ctr,
    if(impressions = 0 OR unpriced > 0, NULL, toDecimal128(round(divideDecimal(toDecimal256(spend, 9) * 1000, toDecimal256(impressions, 0), 8), 6), 6)) AS cpm,
    if(clicks = 0 OR unpriced > 0, NULL, toDecimal128(round(divideDecimal(toDecimal256(spend, 9), toDecimal256(clicks, 0), 8), 6), 6)) AS cpc,
    pricing_model
FROM
(
    SELECT
        toDayOfWeek(date_id) >= 6 AS is_weekend,
        uniqExact(date_id) AS days,
        sum(impressions_count) AS impressions,
        sum(clicks_count) AS clicks,
        sum(spend_amount) AS spend,
        sum(unpriced_count) AS unpriced,
        arrayStringConcat(arraySort(groupUniqArray(pricing_model)), ' + ') AS pricing_model
    FROM daily_campaign_performance
    WHERE date_id BETWEEN {first_day:Date32} AND {last_day:Date32}
    GROUP BY is_weekend
)
ORDER BY part_of_week
SETTINGS optimize_move_to_prewhere = 0
