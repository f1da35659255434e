-- Campaigns as of now, one row each. A view, so that is_active is true on the day it is asked and a renamed
-- advertiser reaches all its campaigns at once. Which day it is, reporting_day says.
CREATE OR REPLACE VIEW campaign_dimension AS
SELECT
    campaign.campaign_id AS campaign_id,
    campaign.campaign_name AS campaign_name,
    campaign.advertiser_id AS advertiser_id,
    if(advertiser.advertiser_id = 0, NULL, advertiser.advertiser_name) AS advertiser_name,
    campaign.bid_amount AS bid_amount,
    campaign.budget_amount AS budget_amount,
    campaign.start_date AS start_date,
    campaign.end_date AS end_date,
    dateDiff('day', campaign.start_date, campaign.end_date) + 1 AS campaign_duration_days,
    NOT campaign.is_deleted
        AND ifNull(campaign.start_date <= (SELECT today FROM reporting_day), true)
        AND ifNull(campaign.end_date >= (SELECT today FROM reporting_day), true) AS is_active,
    campaign.is_deleted AS is_deleted,
    ifNull(campaign.updated_at, campaign.valid_from) AS updated_at
FROM
(
    SELECT *
    FROM campaign_history
    ORDER BY campaign_id, _version DESC, valid_from DESC
    LIMIT 1 BY campaign_id
) AS campaign
LEFT JOIN
(
    SELECT advertiser_id, advertiser_name
    FROM advertiser_dimension FINAL
) AS advertiser ON assumeNotNull(campaign.advertiser_id) = advertiser.advertiser_id
SETTINGS join_use_nulls = 0
