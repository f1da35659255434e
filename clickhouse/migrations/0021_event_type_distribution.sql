-- Events of each type on each day.
CREATE OR REPLACE VIEW event_type_distribution AS
SELECT date_id, counted.1 AS event_type, counted.2 AS events_count, updated_at
FROM
(
    SELECT date_id, sum(impressions_count) AS impressions, sum(clicks_count) AS clicks, min(daily.updated_at) AS updated_at
    FROM daily_campaign_performance AS daily
    GROUP BY date_id
)
ARRAY JOIN [('impression', impressions), ('click', clicks)] AS counted
