-- Money as the source has it, not to the cent: six decimals and twelve digits before them. What does not fit is refused
-- by name before it gets here (worker/money.py).
ALTER TABLE campaign_history
    MODIFY COLUMN bid_amount Decimal(18, 6),
    MODIFY COLUMN budget_amount Decimal(18, 6)
