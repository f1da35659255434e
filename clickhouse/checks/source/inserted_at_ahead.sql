-- Do rows claim to be written later than now?
-- Severity: error
-- Owner: ad serving
-- Do: Let no writer supply inserted_at: such a row is loaded only when the clock gets there.
-- Grain: a source table
SET check.tolerance_seconds = '300'; -- how far a row may be ahead of the server's clock
SELECT source_table, rows_ahead, furthest_at
FROM (
    SELECT 'impressions' AS source_table, count(*) AS rows_ahead, max(inserted_at) AS furthest_at
    FROM impressions
    WHERE inserted_at > clock_timestamp() + current_setting('check.tolerance_seconds')::int * interval '1 second'
    UNION ALL
    SELECT 'clicks', count(*), max(inserted_at)
    FROM clicks
    WHERE inserted_at > clock_timestamp() + current_setting('check.tolerance_seconds')::int * interval '1 second'
) AS ahead
WHERE rows_ahead > 0
ORDER BY source_table
