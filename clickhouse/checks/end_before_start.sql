-- Do campaigns end before they start?
-- Severity: error
-- Owner: campaign management
-- Do: Correct the dates at the source; such a campaign is never active.
-- Grain: a campaign
SELECT campaign_id, campaign_name, start_date, end_date
FROM campaign_dimension
WHERE NOT is_deleted AND end_date < start_date
ORDER BY campaign_id
