-- Is the share of impressions that were clicked higher than people click?
-- Severity: warn
-- Owner: ad serving
-- Do: Look for robots in the campaign's clicks, and for impressions that were not reported.
-- Grain: a campaign and reporting day
SET param_first_day = '1900-01-02'; -- first reporting day looked at
SET param_last_day = '2299-12-30'; -- last reporting day looked at
SET param_max_ctr = '0.5'; -- clicks by impressions above which nobody believes it
SET param_min_impressions = '100'; -- fewer impressions than this say nothing
SELECT date_id, campaign_id, impressions_count AS impressions, clicks_count AS clicks, ctr
FROM daily_campaign_performance
WHERE date_id BETWEEN {first_day:Date32} AND {last_day:Date32}
    AND impressions_count >= {min_impressions:UInt64}
    AND ctr > {max_ctr:Float64}
ORDER BY date_id DESC, campaign_id
