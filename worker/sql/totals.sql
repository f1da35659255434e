-- What ClickHouse holds, in one row, to be put beside PostgreSQL's.

-- name: target
-- `edited`: campaigns that had more than one bid.
SELECT
    (SELECT count() FROM advertiser_dimension FINAL WHERE NOT is_deleted) AS advertisers,
    (SELECT count() FROM campaign_dimension WHERE NOT is_deleted) AS campaigns,
    (SELECT sum(impressions_count) FROM daily_campaign_performance) AS impressions,
    (SELECT sum(clicks_count) FROM daily_campaign_performance) AS clicks,
    (SELECT sum(spend_amount) FROM daily_campaign_performance) AS spend,
    (
        SELECT count() FROM
        (SELECT campaign_id FROM campaign_history FINAL GROUP BY campaign_id HAVING uniqExact(bid_amount) > 1)
    ) AS edited

-- name: unpriced
-- Events that are not in spend because their campaign is not known, of how many campaigns and days.
SELECT sum(unpriced_count), uniqExact(campaign_id), uniqExact(date_id)
FROM daily_campaign_performance
WHERE unpriced_count > 0

-- name: rows
-- Rows of each stream in the live tables.
SELECT if(event_type = 'impression', 'impressions', 'clicks') AS stream, count() FROM ad_events FINAL GROUP BY stream
SETTINGS do_not_merge_across_partitions_select_final = 1
UNION ALL
SELECT 'advertisers', count() FROM advertiser_dimension FINAL WHERE NOT is_deleted
UNION ALL
SELECT 'campaigns', count() FROM campaign_dimension WHERE NOT is_deleted
