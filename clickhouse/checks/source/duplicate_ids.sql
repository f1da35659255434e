-- Does a source table hold an id twice?
-- Severity: error
-- Owner: ad serving
-- Do: Give the table back its primary key and remove one of the rows: only one of them can be loaded.
-- Grain: an id of a source table
-- Runs: nightly
-- A table whose id is unique by an index is not read.
SELECT source_table, id, copies
FROM (
    SELECT 'impressions' AS source_table, id, count(*) AS copies
    FROM impressions
    WHERE NOT EXISTS (
        SELECT FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attname = 'id'
        WHERE indrelid = 'impressions'::regclass AND indisunique AND indpred IS NULL AND indnatts = 1 AND indkey[0] = attnum
    )
    GROUP BY id HAVING count(*) > 1
    UNION ALL
    SELECT 'clicks', id, count(*)
    FROM clicks
    WHERE NOT EXISTS (
        SELECT FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attname = 'id'
        WHERE indrelid = 'clicks'::regclass AND indisunique AND indpred IS NULL AND indnatts = 1 AND indkey[0] = attnum
    )
    GROUP BY id HAVING count(*) > 1
) AS doubled
ORDER BY source_table, id
