-- Calendar: every day from 1970, or from the first day that has metrics, to the later of five years ahead and the
-- last day that has metrics. A view, so that it cannot run out. Weeks are ISO weeks; day_of_week 1 is Monday.
CREATE OR REPLACE VIEW date_dimension AS
WITH
    (SELECT least(toDate32('1970-01-01'), min(date_id)) FROM daily_campaign_performance) AS first_day,
    (SELECT greatest(toDate32(addYears(today(), 5) + 1), max(date_id)) FROM daily_campaign_performance) AS last_day
SELECT
    toDate32('1900-01-01') + toIntervalDay(number) AS date_id,
    toDayOfWeek(date_id) AS day_of_week,
    toDayOfMonth(date_id) AS day_of_month,
    toISOWeek(date_id) AS week,
    toMonth(date_id) AS month,
    toQuarter(date_id) AS quarter,
    toYear(date_id) AS year,
    day_of_week >= 6 AS is_weekend
FROM numbers(146097)
WHERE date_id BETWEEN first_day AND last_day
