-- Are there hours with clicks and no impression of the campaign?
-- Severity: info
-- Owner: ad serving
-- Do: Nothing for a few; many in a row are a robot, or impressions that were not reported.
-- Grain: a campaign and hour of a reporting day
SET param_first_day = '1900-01-02'; -- first reporting day looked at
SET param_last_day = '2299-12-30'; -- last reporting day looked at
SET param_min_clicks = '3'; -- fewer clicks than this say nothing
SELECT date_id, hour, campaign_id, clicks_count AS clicks
FROM hourly_events_by_campaign
WHERE date_id BETWEEN {first_day:Date32} AND {last_day:Date32}
    AND impressions_count = 0
    AND clicks_count >= {min_clicks:UInt64}
ORDER BY date_id DESC, campaign_id, hour
