-- What days said of spend at the same precision, and how many events were not in it for want of a price.
ALTER TABLE daily_campaign_history
    MODIFY COLUMN spend_amount Decimal(38, 9),
    MODIFY COLUMN spend_before Decimal(38, 9),
    ADD COLUMN IF NOT EXISTS unpriced_count UInt64 COMMENT 'events that cost money whose campaign was not known' AFTER spend_amount,
    ADD COLUMN IF NOT EXISTS unpriced_before UInt64 AFTER spend_before
