-- Which campaigns run and have had no event for long?
-- Severity: warn
-- Owner: ad serving
-- Do: Ask ad serving whether the campaign delivers. The pipeline is not to blame: only time that is loaded counts.
-- Grain: a campaign
SET param_complete_through = '2299-12-30 00:00:00'; -- everything written before this is loaded; silence is counted up to here
SET param_silent_hours = '24'; -- hours without an event that are a silence
WITH
    least(now64(6, 'UTC'), {complete_through:DateTime64(6, 'UTC')}) AS through,
    (SELECT max(date_id) FROM reporting_calendar WHERE begins_at <= least(now64(6, 'UTC'), {complete_through:DateTime64(6, 'UTC')})) AS day,
    (SELECT max(date_id) FROM reporting_calendar WHERE begins_at <= least(now64(6, 'UTC'), {complete_through:DateTime64(6, 'UTC')}) - toIntervalHour({silent_hours:UInt32})) AS day_before
SELECT
    campaign.campaign_id AS campaign_id,
    campaign.campaign_name AS campaign_name,
    campaign.start_date AS start_date,
    campaign.end_date AS end_date,
    if(delivered.days = 0, NULL, delivered.last_at) AS last_event_before,
    through AS complete_through
FROM campaign_dimension AS campaign
LEFT JOIN
(
    -- To the end of the hour of the last event.
    SELECT
        campaign_id,
        count() AS days,
        max(calendar.begins_at + toIntervalHour(arrayLastIndex(n -> n > 0, arrayMap((i, c) -> i + c, impressions_by_hour, clicks_by_hour)))) AS last_at
    FROM daily_campaign_performance AS daily
    INNER JOIN reporting_calendar AS calendar ON calendar.date_id = daily.date_id
    GROUP BY campaign_id
) AS delivered ON delivered.campaign_id = campaign.campaign_id
WHERE NOT campaign.is_deleted
    AND campaign.start_date IS NOT NULL
    AND campaign.start_date <= day_before
    AND ifNull(campaign.end_date >= day, true)
    AND (delivered.days = 0 OR delivered.last_at < through - toIntervalHour({silent_hours:UInt32}))
ORDER BY campaign_id
SETTINGS join_use_nulls = 0
