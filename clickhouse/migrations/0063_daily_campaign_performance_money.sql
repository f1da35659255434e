-- Spend at the precision of bids, three decimals more for a thousandth of them (cpm); and how many of the events that
-- cost money had no price, because their campaign was not known: spend is that of the others, not 0 for these.
ALTER TABLE daily_campaign_performance
    MODIFY COLUMN spend_amount Decimal(38, 9),
    ADD COLUMN IF NOT EXISTS unpriced_count UInt64 COMMENT 'events of the kind that costs money whose campaign was not known; they are not in spend_amount, and cpm and cpc are NULL' AFTER spend_amount
