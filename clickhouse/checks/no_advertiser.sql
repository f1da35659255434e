-- Which campaigns belong to no advertiser?
-- Severity: info
-- Owner: campaign management
-- Do: Nothing where the network advertises for itself; else set the advertiser at the source.
-- Grain: a campaign
SELECT campaign_id, campaign_name, bid_amount, budget_amount
FROM campaign_dimension
WHERE NOT is_deleted AND advertiser_id IS NULL
ORDER BY campaign_id
