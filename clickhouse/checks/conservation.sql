-- Is every row that was extracted either loaded or in quarantine?
-- Severity: error
-- Owner: data platform
-- Do: Run `retailmedia pipeline --full-refresh`; a row that is in both places goes away with the next reading of it.
-- Grain: a window of the ledger, or an event
WITH (SELECT uuid FROM system.tables WHERE database = currentDatabase() AND name = 'ad_events') AS live
SELECT
    'extracted is not loaded + quarantined' AS what,
    toString(stream) AS stream,
    lo,
    hi,
    extracted,
    rows AS loaded,
    quarantined,
    NULL AS event_id
FROM sync_commits
WHERE kind = 'window' AND target_uuid = live AND extracted != rows + quarantined
UNION ALL
SELECT
    'a window says more rows are in quarantine than were ever noted',
    toString(commits.stream),
    min(commits.lo),
    max(commits.hi),
    sum(commits.extracted),
    sum(commits.rows),
    sum(commits.quarantined),
    NULL
FROM sync_commits AS commits
WHERE commits.kind = 'window' AND commits.target_uuid = live AND commits.quarantined > 0
    AND commits.stream NOT IN (SELECT stream FROM quarantined_events)
GROUP BY commits.stream
UNION ALL
SELECT 'an event in quarantine is loaded too', toString(stream), lo, hi, 1, 1, 1, toNullable(event_id)
FROM quarantine
WHERE is_double
ORDER BY what, stream, lo
