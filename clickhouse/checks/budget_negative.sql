-- Do campaigns have a budget below zero?
-- Severity: error
-- Owner: campaign management
-- Do: Correct the budget at the source.
-- Grain: a campaign
SET param_lowest_budget = '0'; -- the least a budget may be
SELECT campaign_id, campaign_name, budget_amount
FROM campaign_dimension
WHERE NOT is_deleted AND budget_amount < {lowest_budget:Decimal(18, 6)}
ORDER BY campaign_id
