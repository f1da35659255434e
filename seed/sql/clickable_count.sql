SELECT count(*)
FROM impressions
WHERE campaign_id = %(campaign_id)s AND isfinite(created_at) AND created_at <= %(now)s
