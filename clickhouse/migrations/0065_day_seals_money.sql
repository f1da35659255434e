-- Sealed spend at the same precision. Hashes of metrics are over spend without trailing zeros, so old seals still hold.
ALTER TABLE day_seals MODIFY COLUMN spend Decimal(38, 9)
