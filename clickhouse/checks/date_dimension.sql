-- Does the calendar cover every day with events and five years ahead?
-- Severity: error
-- Owner: data platform
-- Do: Run `retailmedia migrate`; the calendar is a view and cannot run out.
-- Grain: a day
SET param_first_day = '1900-01-02'; -- first reporting day looked at
SET param_last_day = '2299-12-30'; -- last reporting day looked at
SET param_years_ahead = '5'; -- how far the calendar must reach
WITH
    days AS
    (
        SELECT date_id, begins_at, ends_at, 1 AS one FROM reporting_calendar
        WHERE date_id BETWEEN {first_day:Date32} AND {last_day:Date32} AND begins_at < ends_at
    )
SELECT date_id, why
FROM
(
    SELECT days.date_id AS date_id, 'has events' AS why
    FROM
    (
        SELECT created_at, 1 AS one FROM ad_events FINAL
        WHERE event_date BETWEEN {first_day:Date32} - 1 AND {last_day:Date32} + 1
    ) AS events
    ASOF INNER JOIN days ON days.one = events.one AND events.created_at >= days.begins_at
    WHERE events.created_at < days.ends_at
    GROUP BY date_id
    UNION ALL
    SELECT toDate32(addYears(today(), {years_ahead:UInt8})) AS date_id, 'lies ahead' AS why
)
WHERE date_id NOT IN (SELECT date_id FROM date_dimension)
ORDER BY date_id
SETTINGS do_not_merge_across_partitions_select_final = 1
