-- What days said when the history began. The same rows again change nothing.
INSERT INTO daily_campaign_history
    (date_id, campaign_id, slot, said_at, impressions_count, clicks_count, spend_amount, pricing_model, reporting_timezone)
SELECT date_id, campaign_id, updated_at, updated_at, impressions_count, clicks_count, spend_amount, pricing_model, ''
FROM daily_campaign_performance
SETTINGS max_partitions_per_insert_block = 0
