-- Do campaigns have events on days outside their flight?
-- Severity: warn
-- Owner: campaign management
-- Do: Ask campaign management whether the dates are right, or ad serving why it went on.
-- Grain: a campaign and reporting day
SET param_first_day = '1900-01-02'; -- first reporting day looked at
SET param_last_day = '2299-12-30'; -- last reporting day looked at
SET param_grace_days = '0'; -- days after the end on which late clicks are no fault
SELECT
    daily.date_id AS date_id,
    daily.campaign_id AS campaign_id,
    campaign.campaign_name AS campaign_name,
    campaign.start_date AS start_date,
    campaign.end_date AS end_date,
    daily.impressions_count AS impressions,
    daily.clicks_count AS clicks
FROM daily_campaign_performance AS daily
INNER JOIN campaign_dimension AS campaign ON campaign.campaign_id = daily.campaign_id
WHERE daily.date_id BETWEEN {first_day:Date32} AND {last_day:Date32}
    AND (ifNull(daily.date_id < campaign.start_date, false)
        OR ifNull(daily.date_id > campaign.end_date + toIntervalDay({grace_days:UInt16}), false))
ORDER BY date_id DESC, campaign_id
