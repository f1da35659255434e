-- Did a day bring far more or far fewer events than the same weekday of the weeks before?
-- Severity: warn
-- Owner: ad serving
-- Do: Look at sync status first, then ask ad serving about an outage or a launch.
-- Grain: a reporting day and event type
SET param_first_day = '1900-01-02'; -- first reporting day looked at
SET param_last_day = '2299-12-30'; -- last reporting day looked at
SET param_complete_through = '2299-12-30 00:00:00'; -- everything written before this is loaded; later days are not judged
SET param_weeks = '4'; -- weeks looked back
SET param_min_weeks = '2'; -- so many of those weeks must have events
SET param_min_events = '500'; -- fewer expected events than this say nothing
SET param_lowest = '0.4'; -- share of the expected below which a day stands out
SET param_highest = '2.5'; -- share of the expected above which a day stands out
WITH
    days AS
    (
        SELECT date_id, event_type, toInt64(events_count) AS events
        FROM event_type_distribution
        WHERE date_id BETWEEN {first_day:Date32} - 7 * {weeks:UInt16} AND {last_day:Date32}
    ),
    judged AS
    (
        SELECT calendar.date_id AS date_id, types.event_type AS event_type
        FROM date_dimension AS calendar
        CROSS JOIN (SELECT DISTINCT event_type FROM days) AS types
        WHERE calendar.date_id BETWEEN {first_day:Date32} AND {last_day:Date32}
            AND calendar.date_id BETWEEN (SELECT min(date_id) FROM days)
                AND least((SELECT max(date_id) FROM days) + 7, (
                    SELECT max(date_id) - 1 FROM reporting_calendar
                    WHERE begins_at <= least(now64(6, 'UTC'), {complete_through:DateTime64(6, 'UTC')})
                ))
    ),
    expected AS
    (
        SELECT judged.date_id AS date_id, judged.event_type AS event_type, avg(days.events) AS mean, count() AS weeks_there
        FROM judged
        INNER JOIN days ON days.event_type = judged.event_type
        WHERE days.date_id < judged.date_id
            AND days.date_id >= judged.date_id - 7 * {weeks:UInt16}
            AND dateDiff('day', days.date_id, judged.date_id) % 7 = 0
            AND days.events > 0
        GROUP BY date_id, event_type
    )
SELECT
    expected.date_id AS date_id,
    expected.event_type AS event_type,
    ifNull(days.events, 0) AS events,
    round(expected.mean, 1) AS expected_events,
    round(events / expected.mean, 3) AS share
FROM expected
LEFT JOIN days ON days.date_id = expected.date_id AND days.event_type = expected.event_type
WHERE expected.weeks_there >= {min_weeks:UInt16}
    AND expected.mean >= {min_events:Float64}
    AND (share < {lowest:Float64} OR share > {highest:Float64})
ORDER BY date_id DESC, event_type
SETTINGS join_use_nulls = 0
