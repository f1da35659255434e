-- Is every row that was extracted either loaded or in quarantine?
-- Severity: error
-- Owner: data platform
-- Do: Run `retailmedia pipeline --full-refresh`; a row that is in both places goes away with the next reading of it.
-- Grain: a window of the ledger, a reading of a dimension, or an event
SELECT what, stream, lo, hi, extracted, loaded, quarantined, event_id
FROM
(
    SELECT
        'extracted is not loaded + quarantined' AS what,
        toString(stream) AS stream,
        lo,
        hi,
        extracted,
        rows AS loaded,
        quarantined,
        toInt64(0) AS event_id
    FROM sync_commits
    WHERE kind = 'window' AND extracted != rows + quarantined
        AND target_uuid IN
        (
            SELECT uuid FROM system.tables
            WHERE database = currentDatabase() AND name IN ('ad_events', 'advertiser_dimension', 'campaign_history')
        )
    UNION ALL
    SELECT
        'an event in quarantine is loaded too',
        toString(stream),
        lo,
        hi,
        toUInt64(1),
        toUInt64(1),
        toUInt64(1),
        event_id
    FROM quarantine
    WHERE is_double
        -- While a full refresh runs, its readings are set aside before its table is the one that counts.
        AND (SELECT count() FROM sync_runs FINAL WHERE kind = 'refresh' AND state = 'running') = 0
)
ORDER BY what, stream, lo, event_id
