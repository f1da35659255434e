-- Ordered, so that a seed picks the same impressions again.
COPY (
    SELECT created_at
    FROM impressions
    WHERE campaign_id = %(campaign_id)s AND isfinite(created_at) AND created_at <= %(now)s
    ORDER BY created_at, id
) TO STDOUT (FORMAT binary)
