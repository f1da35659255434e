-- The flight as [first instant, first instant after), in seconds since 1970 UTC; NULL where it is open.
SELECT
    extract(epoch FROM start_date::timestamp)::float8 AS starts,
    extract(epoch FROM (end_date + 1)::timestamp)::float8 AS ends
FROM campaign
WHERE id = %(campaign_id)s
