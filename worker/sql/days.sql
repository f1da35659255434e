-- Statements on days whose metrics could not be built.

-- name: failing
SELECT
    date_id,
    count(),
    countIf(noted_at >= %(since)s),
    min(noted_at),
    max(noted_at),
    argMax(error, noted_at),
    argMax(seconds, noted_at),
    now64(6, 'UTC')
FROM
(
    SELECT *, maxIf(noted_at, outcome = 'built') OVER (PARTITION BY date_id) AS built_at
    FROM day_attempts
)
WHERE outcome = 'failed' AND noted_at > built_at
GROUP BY date_id
ORDER BY date_id
