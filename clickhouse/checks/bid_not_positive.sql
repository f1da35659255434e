-- Do campaigns have a bid of zero or less?
-- Severity: error
-- Owner: campaign management
-- Do: Correct the bid at the source; the days it was in force are then repriced.
-- Grain: a campaign
SET param_lowest_bid = '0.000001'; -- the least a bid may be
SELECT campaign_id, campaign_name, bid_amount
FROM campaign_dimension
WHERE NOT is_deleted AND bid_amount < {lowest_bid:Decimal(18, 6)}
ORDER BY campaign_id
