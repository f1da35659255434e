-- What the metrics exporter asks ClickHouse.

-- name: tables
-- Tables that later migrations bring are asked only where they are.
SELECT name FROM system.tables WHERE database = %(database)s

-- name: stored
-- Rows and bytes of active parts by stream, replaced rows included until they are merged away.
SELECT
    multiIf(table = 'ad_events', if(startsWith(partition, '(\'impression\''), 'impressions', 'clicks'), table) AS stream,
    sum(rows),
    sum(bytes_on_disk),
    sum(data_uncompressed_bytes)
FROM system.parts
WHERE database = %(database)s AND active AND table IN ('ad_events', 'advertiser_dimension', 'campaign_history')
GROUP BY stream

-- name: quarantined
-- Of dimensions by what cannot be loaded, not by each value.
SELECT stream, toString(rule), count() FROM quarantined_events FINAL GROUP BY stream, rule
UNION ALL
SELECT stream, splitByString(': ', rule)[1], count()
FROM quarantined_dimension_rows FINAL
WHERE state = 'held'
GROUP BY stream, splitByString(': ', rule)[1]

-- name: quality
-- How each check ended when it last ran.
SELECT
    check_name,
    toString(argMax(severity, checked_at)),
    toString(argMax(state, checked_at)) AS last_state,
    argMax(failing, checked_at)
FROM quality_results
GROUP BY check_name

-- name: mismatches
-- Days whose newest comparison with the source found a difference that was not mended, by stream.
SELECT stream, countIf(newest = 'mismatch'), sumIf(rows_off, newest = 'mismatch')
FROM
(
    SELECT
        stream,
        date_id,
        toString(argMax(state, checked_at)) AS newest,
        argMax(missing + extra + stale + duplicate, checked_at) AS rows_off
    FROM reconciliations
    GROUP BY stream, date_id
)
GROUP BY stream
