-- Do campaigns name an advertiser that does not exist?
-- Severity: error
-- Owner: campaign management
-- Do: Restore the advertiser at the source, or correct the campaign.
-- Grain: a campaign
SELECT campaign_id, campaign_name, advertiser_id
FROM campaign_dimension
WHERE NOT is_deleted
    AND advertiser_id IS NOT NULL
    AND advertiser_id NOT IN (SELECT advertiser_id FROM advertiser_dimension FINAL WHERE NOT is_deleted)
ORDER BY campaign_id
