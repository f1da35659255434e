-- Do events name a campaign that does not exist?
-- Severity: error
-- Owner: campaign management
-- Do: Restore the campaign at the source, or correct the events; until then they have no price.
-- Grain: a campaign id and event type
SET param_first_day = '1900-01-02'; -- first reporting day looked at
SET param_last_day = '2299-12-30'; -- last reporting day looked at
SET param_grace_seconds = '300'; -- how long an event may wait for its campaign
SELECT
    campaign_id,
    event_type,
    count() AS events,
    min(event_id) AS first_event_id,
    max(event_id) AS last_event_id,
    min(created_at) AS first_created_at,
    max(created_at) AS last_created_at
FROM ad_events FINAL
WHERE campaign_id != 0
    AND campaign_id NOT IN (SELECT campaign_id FROM campaign_dimension WHERE NOT is_deleted)
    AND loaded_at <= now64(3, 'UTC') - toIntervalSecond({grace_seconds:UInt32})
    AND event_date BETWEEN {first_day:Date32} - 1 AND {last_day:Date32} + 1
    AND created_at >= (SELECT min(begins_at) FROM reporting_calendar WHERE date_id >= {first_day:Date32})
    AND created_at < (SELECT max(ends_at) FROM reporting_calendar WHERE date_id <= {last_day:Date32})
GROUP BY campaign_id, event_type
ORDER BY events DESC, campaign_id, event_type
SETTINGS do_not_merge_across_partitions_select_final = 1
