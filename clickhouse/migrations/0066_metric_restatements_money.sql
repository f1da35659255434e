-- Changes of days that had been declared final: one row per day, campaign and column. A view on what days have said, so
-- a restatement is recorded in the same insert as the new word, or not at all. Where counts changed while a campaign
-- became known, the counts have a cause of their own.
CREATE OR REPLACE VIEW metric_restatements AS
SELECT
    date_id,
    campaign_id,
    change.1 AS column_name,
    change.2 AS value_before,
    change.3 AS value_after,
    history.pricing_model AS pricing_model,
    said_at AS restated_at,
    if(column_name IN ('spend_amount', 'unpriced_count') AND unpriced_before > 0 AND unpriced_count = 0 AND NOT is_gone,
        'campaign arrived', toString(history.cause)) AS cause
FROM daily_campaign_history AS history FINAL
ARRAY JOIN
    [
        ('impressions_count', toDecimal128(impressions_before, 9), toDecimal128(impressions_count, 9)),
        ('clicks_count', toDecimal128(clicks_before, 9), toDecimal128(clicks_count, 9)),
        ('spend_amount', spend_before, spend_amount),
        ('unpriced_count', toDecimal128(unpriced_before, 9), toDecimal128(unpriced_count, 9))
    ] AS change
WHERE was_final AND change.2 != change.3
