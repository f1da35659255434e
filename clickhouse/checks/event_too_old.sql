-- Did events happen before there was anything to advertise on?
-- Severity: error
-- Owner: ad serving
-- Do: Look for times that were never set (1970) or misread; the cleansing rule `too old` keeps such rows out.
-- Grain: an event
SET param_first_day = '1900-01-02'; -- first reporting day looked at
SET param_last_day = '2299-12-30'; -- last reporting day looked at
SET param_earliest = '2000-01-01'; -- the first day an event may have happened on
SELECT event_type, event_id, campaign_id, created_at, inserted_at
FROM ad_events FINAL
WHERE created_at < toDateTime64({earliest:Date32}, 6, 'UTC')
    AND event_date BETWEEN {first_day:Date32} - 1 AND {last_day:Date32} + 1
    AND created_at >= (SELECT min(begins_at) FROM reporting_calendar WHERE date_id >= {first_day:Date32})
    AND created_at < (SELECT max(ends_at) FROM reporting_calendar WHERE date_id <= {last_day:Date32})
ORDER BY event_type, event_id
SETTINGS do_not_merge_across_partitions_select_final = 1
