-- At which hours of the day does traffic happen? Hours in the reporting time zone; an hour that a clock set back runs
-- through twice counts both.
-- Grain: an hour of the day, all 24 as soon as there are events.
-- Example: retailmedia query hourly_pattern --param campaign_id=7
SET param_first_day = '1970-01-01'; -- first reporting day that counts
SET param_last_day = '2299-12-31'; -- last reporting day that counts
SET param_campaign_id = '0'; -- the one campaign that counts, 0 for all
SELECT
    toUInt8(position - 1) AS hour,
    impressions,
    clicks,
    if(impressions = 0, NULL, clicks / impressions) AS ctr,
    (impressions + clicks) / (arraySum(all_impressions) + arraySum(all_clicks)) AS share_of_events
FROM
(
    SELECT sumForEach(impressions_by_hour) AS all_impressions, sumForEach(clicks_by_hour) AS all_clicks
    FROM daily_campaign_performance
    WHERE date_id BETWEEN {first_day:Date32} AND {last_day:Date32}
        AND ({campaign_id:Int64} = 0 OR campaign_id = {campaign_id:Int64})
)
ARRAY JOIN
    all_impressions AS impressions,
    all_clicks AS clicks,
    arrayEnumerate(all_impressions) AS position
ORDER BY hour
SETTINGS optimize_move_to_prewhere = 0
