-- Which days have events without a campaign?
-- Severity: warn
-- Owner: ad serving
-- Do: Ask the ad server's team why; such events are counted under campaign 0 and cost nothing, also where the source has a campaign of that id.
-- Grain: a reporting day and event type
SET param_first_day = '1900-01-02'; -- first reporting day looked at
SET param_last_day = '2299-12-30'; -- last reporting day looked at
WITH
    days AS
    (
        SELECT date_id, begins_at, ends_at, 1 AS one FROM reporting_calendar
        WHERE date_id BETWEEN {first_day:Date32} AND {last_day:Date32} AND begins_at < ends_at
    )
SELECT
    days.date_id AS date_id,
    event_type,
    count() AS events,
    min(event_id) AS first_event_id,
    max(event_id) AS last_event_id
FROM
(
    SELECT event_type, event_id, created_at, 1 AS one FROM ad_events FINAL
    WHERE campaign_id = 0 AND event_date BETWEEN {first_day:Date32} - 1 AND {last_day:Date32} + 1
) AS events
ASOF INNER JOIN days ON days.one = events.one AND events.created_at >= days.begins_at
WHERE events.created_at < days.ends_at
GROUP BY date_id, event_type
ORDER BY date_id DESC, event_type
SETTINGS do_not_merge_across_partitions_select_final = 1
