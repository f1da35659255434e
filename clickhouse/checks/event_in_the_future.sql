-- Did events happen after they were written down?
-- Severity: error
-- Owner: ad serving
-- Do: Look at the clock of whoever reports them; the cleansing rule `future` keeps such rows out.
-- Grain: an event
SET param_first_day = '1900-01-02'; -- first reporting day looked at
SET param_last_day = '2299-12-30'; -- last reporting day looked at
SET param_tolerance_seconds = '300'; -- how far a reporter's clock may be ahead
SELECT
    event_type,
    event_id,
    campaign_id,
    created_at,
    inserted_at,
    dateDiff('second', inserted_at, created_at) AS seconds_ahead
FROM ad_events FINAL
WHERE created_at > inserted_at + toIntervalSecond({tolerance_seconds:UInt32})
    AND event_date BETWEEN {first_day:Date32} - 1 AND {last_day:Date32} + 1
    AND created_at >= (SELECT min(begins_at) FROM reporting_calendar WHERE date_id >= {first_day:Date32})
    AND created_at < (SELECT max(ends_at) FROM reporting_calendar WHERE date_id <= {last_day:Date32})
ORDER BY event_type, event_id
SETTINGS do_not_merge_across_partitions_select_final = 1
