-- Do the ready-made views say what the events say?
-- Severity: error
-- Owner: data platform
-- Do: Run `retailmedia migrate`, then `retailmedia pipeline`; a view that still differs is defined wrongly.
-- Grain: a view, reporting day, hour (255 for the whole day) and campaign (0 for all)
SET param_first_day = '1900-01-02'; -- first reporting day looked at
SET param_last_day = '2299-12-30'; -- last reporting day looked at
SET param_grace_seconds = '300'; -- how long a rebuild may take to follow what arrives
WITH
    days AS
    (
        SELECT date_id, begins_at, ends_at, toUnixTimestamp64Micro(begins_at) AS begins, toUnixTimestamp64Micro(ends_at) AS ends, 1 AS one
        FROM reporting_calendar
        WHERE date_id BETWEEN {first_day:Date32} AND {last_day:Date32} AND begins_at < ends_at
    ),
    clocks AS
    (
        SELECT change.1 AS start, change.2 AS offset, 1 AS one
        FROM
        (
            SELECT arrayJoin(arrayZip(calendar.1, calendar.2)) AS change
            FROM (SELECT argMax((starts, offsets), (number, iana_version, fingerprint, state)) AS calendar FROM reporting_calendars)
        )
    ),
    rebuilt AS (SELECT date_id, min(updated_at) AS holds FROM daily_campaign_performance GROUP BY date_id),
    unsettled AS
    (
        SELECT arrived.date_id AS date_id
        FROM
        (
            SELECT days.date_id AS date_id, max(events.loaded_at) AS last_at
            FROM
            (
                SELECT created_at, loaded_at, 1 AS one FROM ad_events
                WHERE event_date BETWEEN {first_day:Date32} - 1 AND {last_day:Date32} + 1
            ) AS events
            ASOF INNER JOIN days ON days.one = events.one AND events.created_at >= days.begins_at
            WHERE events.created_at < days.ends_at
            GROUP BY date_id
            UNION ALL
            SELECT date_id, max(marked_at) AS last_at FROM day_marks GROUP BY date_id
        ) AS arrived
        LEFT JOIN rebuilt ON rebuilt.date_id = arrived.date_id
        GROUP BY date_id
        HAVING max(arrived.last_at) >= max(rebuilt.holds)
            AND max(arrived.last_at) >= now64(6, 'UTC') - toIntervalSecond({grace_seconds:UInt32})
    ),
    told AS
    (
        SELECT
            days.date_id AS date_id,
            toUInt8(intDiv(positiveModulo(events.at + 1000000 * clocks.offset, 86400000000), 3600000000)) AS hour,
            campaign_id,
            toInt64(countIf(event_type = 'impression')) AS impressions,
            toInt64(countIf(event_type = 'click')) AS clicks
        FROM
        (
            SELECT event_type, campaign_id, toUnixTimestamp64Micro(created_at) AS at, 1 AS one FROM ad_events FINAL
            WHERE event_date BETWEEN {first_day:Date32} - 1 AND {last_day:Date32} + 1
        ) AS events
        ASOF INNER JOIN days ON days.one = events.one AND events.at >= days.begins
        ASOF INNER JOIN clocks ON clocks.one = events.one AND events.at >= clocks.start
        WHERE events.at < days.ends
        GROUP BY date_id, hour, campaign_id
    )
SELECT
    view_name,
    date_id,
    hour,
    campaign_id,
    sum(of_view.1) AS impressions_in_view,
    sum(of_events.1) AS impressions_in_events,
    sum(of_view.2) AS clicks_in_view,
    sum(of_events.2) AS clicks_in_events
FROM
(
    SELECT 'hourly_events_by_campaign' AS view_name, date_id, hour, campaign_id,
        (toInt64(impressions_count), toInt64(clicks_count)) AS of_view, (toInt64(0), toInt64(0)) AS of_events
    FROM hourly_events_by_campaign
    UNION ALL
    SELECT 'hourly_events_by_campaign', date_id, hour, campaign_id, (toInt64(0), toInt64(0)), (impressions, clicks)
    FROM told
    UNION ALL
    SELECT 'event_type_distribution', date_id, toUInt8(255), toInt64(0),
        (if(event_type = 'impression', toInt64(events_count), 0), if(event_type = 'click', toInt64(events_count), 0)),
        (toInt64(0), toInt64(0))
    FROM event_type_distribution
    UNION ALL
    SELECT 'advertiser_daily', date_id, toUInt8(255), toInt64(0), (toInt64(impressions), toInt64(clicks)), (toInt64(0), toInt64(0))
    FROM advertiser_daily
    UNION ALL
    SELECT arrayJoin(['event_type_distribution', 'advertiser_daily']), date_id, toUInt8(255), toInt64(0),
        (toInt64(0), toInt64(0)), (impressions, clicks)
    FROM told
)
WHERE date_id BETWEEN {first_day:Date32} AND {last_day:Date32}
    AND date_id NOT IN (SELECT date_id FROM unsettled)
GROUP BY view_name, date_id, hour, campaign_id
HAVING (impressions_in_view, clicks_in_view) != (impressions_in_events, clicks_in_events)
ORDER BY date_id DESC, view_name, hour, campaign_id
SETTINGS join_use_nulls = 0, do_not_merge_across_partitions_select_final = 1
