-- Campaigns in flight; the clicks a day their budget is planned for (over 365 days where the flight has no start or
-- no end); and the first instant of the flight in seconds since 1970 UTC, NULL where it is open.
SELECT
    id,
    (
        budget / greatest(bid, 0.01)
        / CASE WHEN isfinite(start_date) AND isfinite(end_date) THEN greatest(end_date - start_date + 1, 1) ELSE 365 END
    )::float8 AS daily_clicks,
    extract(epoch FROM start_date::timestamp)::float8 AS starts
FROM campaign
WHERE (start_date IS NULL OR start_date <= %(today)s) AND (end_date IS NULL OR end_date >= %(today)s)
ORDER BY id
