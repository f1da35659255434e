-- Which campaigns have spent more than their budget?
-- Severity: warn
-- Owner: campaign management
-- Do: Tell campaign management; what is spent over the budget may not be billed.
-- Grain: a campaign
SET param_tolerance = '0'; -- share of the budget that may be overspent
SELECT
    campaign.campaign_id AS campaign_id,
    campaign.campaign_name AS campaign_name,
    spent.spend AS spend,
    campaign.budget_amount AS budget,
    spent.pricing_model AS pricing_model
FROM
(
    SELECT
        campaign_id,
        sum(spend_amount) AS spend,
        arrayStringConcat(arraySort(groupUniqArray(daily.pricing_model)), ' + ') AS pricing_model
    FROM daily_campaign_performance AS daily
    GROUP BY campaign_id
) AS spent
INNER JOIN campaign_dimension AS campaign ON campaign.campaign_id = spent.campaign_id
WHERE NOT campaign.is_deleted
    AND toFloat64(spent.spend) > toFloat64(campaign.budget_amount) * (1 + {tolerance:Float64})
ORDER BY campaign_id
