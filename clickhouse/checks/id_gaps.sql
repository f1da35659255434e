-- Are ids missing: rolled back, deleted, or still in flight?
-- Severity: info
-- Owner: data platform
-- Do: Nothing for a few: a rolled back insert uses up its ids. Where many are missing, reconcile tells whether the source has them.
-- Grain: a thousand consecutive ids of an event type
-- Runs: nightly
SET param_complete_through = '2299-12-30 00:00:00'; -- everything written before this is loaded
SET param_max_missing = '0'; -- so many of a thousand ids may be missing
WITH
    (SELECT groupArray((toString(event_type), first_id, last_id)) FROM (SELECT event_type, min(event_id) AS first_id, max(event_id) AS last_id FROM ad_events GROUP BY event_type)) AS ends
SELECT
    event_type,
    greatest(arrayFirst(e -> e.1 = toString(event_type), ends).2, intDiv(event_id, 1000) * 1000) AS from_id,
    least(arrayFirst(e -> e.1 = toString(event_type), ends).3, intDiv(event_id, 1000) * 1000 + 999) AS to_id,
    count() AS present,
    to_id - from_id + 1 - present AS missing,
    if(max(inserted_at) >= least(now64(6, 'UTC'), {complete_through:DateTime64(6, 'UTC')}) - toIntervalMinute(5),
        'in flight, rolled back or deleted', 'rolled back or deleted') AS likely
FROM ad_events FINAL
GROUP BY event_type, intDiv(event_id, 1000)
HAVING missing > {max_missing:UInt32}
ORDER BY event_type, from_id
SETTINGS do_not_merge_across_partitions_select_final = 1
