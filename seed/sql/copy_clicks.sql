-- The database gives the id (unique whoever else writes) and `inserted_at` (never in the past of what is synced).
COPY clicks (campaign_id, created_at) FROM STDIN (FORMAT binary)
