-- Do the metrics of each day say what its events say?
-- Severity: error
-- Owner: data platform
-- Do: Run `retailmedia pipeline`, which rebuilds days that changed; if a day still differs, run it with --full-refresh.
-- Grain: a campaign and reporting day
SET param_first_day = '1900-01-02'; -- first reporting day looked at
SET param_last_day = '2299-12-30'; -- last reporting day looked at
SET param_grace_seconds = '300'; -- how long a rebuild may take to follow what arrives
WITH
    days AS
    (
        SELECT date_id, begins_at, ends_at, 1 AS one FROM reporting_calendar
        WHERE date_id BETWEEN {first_day:Date32} AND {last_day:Date32} AND begins_at < ends_at
    ),
    rebuilt AS (SELECT date_id, min(updated_at) AS holds FROM daily_campaign_performance GROUP BY date_id),
    arrived AS
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
        UNION ALL
        SELECT rebuilt.date_id AS date_id, toDateTime64((SELECT max(loaded_at) FROM campaign_history), 6, 'UTC') AS last_at
        FROM rebuilt
    ),
    unsettled AS
    (
        SELECT arrived.date_id AS date_id
        FROM arrived
        LEFT JOIN rebuilt ON rebuilt.date_id = arrived.date_id
        GROUP BY date_id
        HAVING max(arrived.last_at) >= max(rebuilt.holds)
            AND max(arrived.last_at) >= now64(6, 'UTC') - toIntervalSecond({grace_seconds:UInt32})
    ),
    bids AS
    (
        SELECT campaign_id, bid_amount,
            if(valid_from = min(valid_from) OVER (PARTITION BY campaign_id), toDateTime64('1900-01-01 00:00:00', 6, 'UTC'), valid_from) AS valid_from
        FROM campaign_history FINAL
        WHERE campaign_id != 0
    ),
    told AS
    (
        SELECT
            events.date_id AS date_id,
            events.campaign_id AS campaign_id,
            toInt64(countIf(events.event_type = 'impression')) AS impressions,
            toInt64(countIf(events.event_type = 'click')) AS clicks,
            sumIf(toDecimal128(bids.bid_amount, 9), events.event_type = 'impression') AS bids_of_impressions,
            sumIf(toDecimal128(bids.bid_amount, 9), events.event_type = 'click') AS bids_of_clicks
        FROM
        (
            SELECT days.date_id AS date_id, campaign_id, event_type, created_at
            FROM
            (
                SELECT campaign_id, event_type, created_at, 1 AS one FROM ad_events FINAL
                WHERE event_date BETWEEN {first_day:Date32} - 1 AND {last_day:Date32} + 1
            ) AS dated
            ASOF INNER JOIN days ON days.one = dated.one AND dated.created_at >= days.begins_at
            WHERE dated.created_at < days.ends_at
        ) AS events
        ASOF LEFT JOIN bids ON bids.campaign_id = events.campaign_id AND events.created_at >= bids.valid_from
        GROUP BY date_id, campaign_id
    ),
    compared AS
    (
        SELECT
            date_id,
            campaign_id,
            sum(of_metrics.1) AS impressions_in_metrics,
            sum(of_events.1) AS impressions_in_events,
            sum(of_metrics.2) AS clicks_in_metrics,
            sum(of_events.2) AS clicks_in_events,
            sum(of_metrics.3) AS spend_in_metrics,
            max(model) AS pricing_model,
            multiIf(
                pricing_model = 'cpm', toDecimal128(divideDecimal(sum(of_events.3), toDecimal128(1000, 0), 9), 9),
                pricing_model = 'cpi', sum(of_events.3),
                sum(of_events.4)) AS spend_in_events
        FROM
        (
            SELECT
                date_id,
                campaign_id,
                (toInt64(impressions_count), toInt64(clicks_count), spend_amount) AS of_metrics,
                (toInt64(0), toInt64(0), toDecimal128(0, 9), toDecimal128(0, 9)) AS of_events,
                toString(pricing_model) AS model
            FROM daily_campaign_performance
            WHERE date_id BETWEEN {first_day:Date32} AND {last_day:Date32}
            UNION ALL
            SELECT
                date_id,
                campaign_id,
                (toInt64(0), toInt64(0), toDecimal128(0, 9)),
                (impressions, clicks, bids_of_impressions, bids_of_clicks),
                ''
            FROM told
        )
        GROUP BY date_id, campaign_id
    )
SELECT *
FROM compared
WHERE date_id NOT IN (SELECT date_id FROM unsettled)
    AND (impressions_in_metrics != impressions_in_events
        OR clicks_in_metrics != clicks_in_events
        OR spend_in_metrics != spend_in_events)
ORDER BY date_id DESC, campaign_id
SETTINGS join_use_nulls = 0, do_not_merge_across_partitions_select_final = 1
