-- On which days did a campaign's CTR depart from what its own history makes plausible? As the detector found it: an exact
-- tail probability, corrected for the number of campaign-days looked at, so chance alone does not fill this list.
-- Grain: a campaign and day.
-- Example: retailmedia query ctr_anomalies --param first_day=2026-11-01
SET param_first_day = '1970-01-01'; -- first reporting day that counts
SET param_last_day = '2299-12-31'; -- last reporting day that counts
SET param_limit = '1000'; -- rows to show at most
SELECT
    found.date_id AS date_id,
    found.campaign_id AS campaign_id,
    if(found.campaign_id = 0, 'no campaign', ifNull(campaign.campaign_name, 'not yet known')) AS campaign_name,
    found.kind AS kind,
    found.observed AS observed,
    found.expected AS expected,
    found.expected_low AS expected_low,
    found.expected_high AS expected_high,
    found.q_value AS q_value,
    if(found.expected = 0, NULL, found.observed / found.expected - 1) AS deviation,
    found.explanation AS explanation
FROM metric_anomalies AS found FINAL
LEFT JOIN campaign_dimension AS campaign ON campaign.campaign_id = found.campaign_id
WHERE NOT found.is_withdrawn AND found.kind IN ('ctr up', 'ctr down')
    AND found.date_id BETWEEN {first_day:Date32} AND {last_day:Date32}
ORDER BY date_id DESC, q_value, campaign_id, kind
LIMIT {limit:UInt32}
SETTINGS join_use_nulls = 1
