-- One row. Event times outside the years 1 to 9998 (infinity too) are counted but left out of first and last.
SELECT
    (SELECT count(*) FROM advertiser) AS advertisers,
    campaigns.total AS campaigns,
    campaigns.running AS running_campaigns,
    campaigns.budget AS budget,
    impressions.total AS impressions,
    clicks.total AS clicks,
    least(impressions.first_at, clicks.first_at) AS first_event_at,
    greatest(impressions.last_at, clicks.last_at) AS last_event_at,
    greatest(impressions.written_at, clicks.written_at) AS last_written_at
FROM
    (
        SELECT
            count(*) AS total,
            count(*) FILTER (
                WHERE (start_date IS NULL OR start_date <= %(today)s) AND (end_date IS NULL OR end_date >= %(today)s)
            ) AS running,
            coalesce(sum(budget), 0) AS budget
        FROM campaign
    ) AS campaigns,
    (
        SELECT
            count(*) AS total,
            min(created_at) FILTER (WHERE created_at >= '0001-01-02' AND created_at < '9999-01-01') AS first_at,
            max(created_at) FILTER (WHERE created_at >= '0001-01-02' AND created_at < '9999-01-01') AS last_at,
            max(inserted_at) FILTER (WHERE inserted_at < '9999-01-01') AS written_at
        FROM impressions
    ) AS impressions,
    (
        SELECT
            count(*) AS total,
            min(created_at) FILTER (WHERE created_at >= '0001-01-02' AND created_at < '9999-01-01') AS first_at,
            max(created_at) FILTER (WHERE created_at >= '0001-01-02' AND created_at < '9999-01-01') AS last_at,
            max(inserted_at) FILTER (WHERE inserted_at < '9999-01-01') AS written_at
        FROM clicks
    ) AS clicks
