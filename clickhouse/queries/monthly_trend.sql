-- How do months compare with the month before? A change is relative, +0.25 being a quarter more, and NULL where the
-- month before had nothing; of spend also where a month has events without a price.
-- Grain: a calendar month that has events, in the reporting time zone.
-- Example: retailmedia query monthly_trend --param first_day=2026-01-01
SET param_first_day = '1970-01-01'; -- first reporting day that counts
SET param_last_day = '2299-12-31'; -- last reporting day that counts
SELECT
    month,
    days_with_events,
    impressions,
    clicks,
    spend,
    unpriced,
    if(impressions = 0, NULL, clicks / impressions) AS ctr,
    if(impressions = 0 OR unpriced > 0, NULL, toDecimal128(round(divideDecimal(toDecimal256(spend, 9) * 1000, toDecimal256(impressions, 0), 8), 6), 6)) AS cpm,
    if(clicks = 0 OR unpriced > 0, NULL, toDecimal128(round(divideDecimal(toDecimal256(spend, 9), toDecimal256(clicks, 0), 8), 6), 6)) AS cpc,
    if(previous_month = addMonths(month, -1) AND impressions_before > 0, toFloat64(impressions) / toFloat64(impressions_before) - 1, NULL) AS impressions_change,
    if(previous_month = addMonths(month, -1) AND clicks_before > 0, toFloat64(clicks) / toFloat64(clicks_before) - 1, NULL) AS clicks_change,
    if(previous_month = addMonths(month, -1) AND spend_before > 0 AND unpriced + unpriced_before = 0, toFloat64(spend) / toFloat64(spend_before) - 1, NULL) AS spend_change,
    if(previous_month = addMonths(month, -1) AND clicks_before > 0 AND impressions_before > 0 AND impressions > 0,
        (clicks / impressions) / (clicks_before / impressions_before) - 1, NULL) AS ctr_change,
    pricing_model
FROM
(
    SELECT
        *,
        lagInFrame(month) OVER following AS previous_month,
        lagInFrame(impressions) OVER following AS impressions_before,
        lagInFrame(clicks) OVER following AS clicks_before,
        lagInFrame(spend) OVER following AS spend_before,
        lagInFrame(unpriced) OVER following AS unpriced_before
    FROM
    (
        SELECT
            date_id - toIntervalDay(toDayOfMonth(date_id) - 1) AS month,
            uniqExact(date_id) AS days_with_events,
            sum(impressions_count) AS impressions,
            sum(clicks_count) AS clicks,
            sum(spend_amount) AS spend,
            sum(unpriced_count) AS unpriced,
            arrayStringConcat(arraySort(groupUniqArray(pricing_model)), ' + ') AS pricing_model
        FROM daily_campaign_performance
        WHERE date_id BETWEEN {first_day:Date32} AND {last_day:Date32}
        GROUP BY month
    )
    WINDOW following AS (ORDER BY month ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
)
ORDER BY month
SETTINGS optimize_move_to_prewhere = 0
