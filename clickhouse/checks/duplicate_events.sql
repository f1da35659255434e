-- Is an event there twice, with different content, in one reading of the source?
-- Severity: error
-- Owner: data platform
-- Do: Run the pipeline with --full-refresh; if it comes back, look for duplicate ids at the source.
-- Grain: an event
SET param_first_day = '1900-01-02'; -- first reporting day looked at
SET param_last_day = '2299-12-30'; -- last reporting day looked at
SELECT
    event_type,
    event_id,
    count() AS copies,
    arraySort(groupUniqArray(campaign_id)) AS campaigns,
    min(created_at) AS first_created_at,
    max(created_at) AS last_created_at
FROM ad_events
WHERE NOT _deleted
    AND event_date BETWEEN {first_day:Date32} - 1 AND {last_day:Date32} + 1
    AND created_at >= (SELECT min(begins_at) FROM reporting_calendar WHERE date_id >= {first_day:Date32})
    AND created_at < (SELECT max(ends_at) FROM reporting_calendar WHERE date_id <= {last_day:Date32})
GROUP BY event_type, event_id, _version
HAVING uniqExact(campaign_id, created_at, inserted_at) > 1
ORDER BY event_type, event_id
SETTINGS optimize_aggregation_in_order = 1
