-- What was out of the ordinary? Every anomaly the detector stands by, with what it expected, how unlikely the value is,
-- the hours that stand out, and what the pipeline knows that could explain it.
-- Grain: a campaign, day and kind of anomaly.
-- Example: retailmedia query anomalies --param first_day=2026-11-01 --param kind=silence
SET param_first_day = '1970-01-01'; -- first reporting day that counts
SET param_last_day = '2299-12-31'; -- last reporting day that counts
SET param_campaign_id = '-1'; -- the one campaign to show, -1 for all
SET param_kind = ''; -- the one kind to show, empty for all
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
    found.p_value AS p_value,
    found.hours AS hours,
    found.explanation AS explanation,
    found.known_causes AS known_causes,
    found.detected_at AS detected_at
FROM metric_anomalies AS found FINAL
LEFT JOIN campaign_dimension AS campaign ON campaign.campaign_id = found.campaign_id
WHERE NOT found.is_withdrawn
    AND found.date_id BETWEEN {first_day:Date32} AND {last_day:Date32}
    AND ({campaign_id:Int64} = -1 OR found.campaign_id = {campaign_id:Int64})
    AND ({kind:String} = '' OR found.kind = {kind:String})
ORDER BY date_id DESC, q_value, campaign_id, kind
LIMIT {limit:UInt32}
SETTINGS join_use_nulls = 1
