-- Does the calendar cover every day with events and five years ahead?
-- Severity: error
-- Owner: data platform
-- Do: Run `retailmedia migrate`; the calendar is a view and cannot run out.
-- Grain: a day
SET param_first_day = '1900-01-02'; -- first reporting day looked at
SET param_last_day = '2299-12-30'; -- last reporting day looked at
SET param_zone = 'UTC'; -- time zone in which days are cut
SET param_years_ahead = '5'; -- how far the calendar must reach
SELECT date_id, why
FROM
(
    SELECT toDate32(created_at, {zone:String}) AS date_id, 'has events' AS why
    FROM ad_events FINAL
    WHERE event_date BETWEEN {first_day:Date32} - 1 AND {last_day:Date32} + 1
        AND toDate32(created_at, {zone:String}) BETWEEN {first_day:Date32} AND {last_day:Date32}
    GROUP BY date_id
    UNION ALL
    SELECT toDate32(addYears(today(), {years_ahead:UInt8})) AS date_id, 'lies ahead' AS why
)
WHERE date_id NOT IN (SELECT date_id FROM date_dimension)
ORDER BY date_id
SETTINGS do_not_merge_across_partitions_select_final = 1
