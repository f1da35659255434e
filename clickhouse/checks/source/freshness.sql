-- Does the source still write events?
-- Severity: warn
-- Owner: ad serving
-- Do: Ask ad serving: the pipeline can only load what is written.
-- Grain: a source table
SET check.max_silence_seconds = '86400'; -- how long a table may stay without a new row
SELECT source_table, newest_at, round(extract(epoch FROM clock_timestamp() - newest_at))::bigint AS silent_seconds
FROM (
    SELECT 'impressions' AS source_table, max(inserted_at) AS newest_at FROM impressions
    UNION ALL
    SELECT 'clicks', max(inserted_at) FROM clicks
) AS newest
WHERE newest_at < clock_timestamp() - current_setting('check.max_silence_seconds')::int * interval '1 second'
ORDER BY source_table
