-- Is the pipeline late?
-- Severity: error
-- Owner: data platform
-- Do: See `retailmedia status`: who holds the horizon back, which windows fail, whether a worker runs.
-- Grain: a stream
SET param_impressions_through = '2299-12-30 00:00:00'; -- every impression written before this is loaded
SET param_clicks_through = '2299-12-30 00:00:00'; -- every click written before this is loaded
SET param_max_lag_seconds = '900'; -- how late a stream may be
SELECT
    standing.1 AS stream,
    standing.2 AS complete_through,
    dateDiff('second', standing.2, now64(6, 'UTC')) AS lag_seconds
FROM
(
    SELECT arrayJoin([
        ('impressions', {impressions_through:DateTime64(6, 'UTC')}),
        ('clicks', {clicks_through:DateTime64(6, 'UTC')})]) AS standing
)
WHERE standing.2 < now64(6, 'UTC') - toIntervalSecond({max_lag_seconds:UInt32})
ORDER BY stream
