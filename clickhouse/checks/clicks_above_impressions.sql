-- Do campaigns have more clicks than impressions on a day?
-- Severity: warn
-- Owner: ad serving
-- Do: Look whether impressions are missing, or a robot clicks; after a flight's last day late clicks do it too.
-- Grain: a campaign and reporting day
SET param_first_day = '1900-01-02'; -- first reporting day looked at
SET param_last_day = '2299-12-30'; -- last reporting day looked at
SET param_min_clicks = '2'; -- fewer clicks than this say nothing
SELECT date_id, campaign_id, impressions_count AS impressions, clicks_count AS clicks
FROM daily_campaign_performance
WHERE date_id BETWEEN {first_day:Date32} AND {last_day:Date32}
    AND clicks_count > impressions_count
    AND clicks_count >= {min_clicks:UInt64}
ORDER BY date_id DESC, campaign_id
