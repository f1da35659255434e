-- What did each day say of each campaign at a given moment, and was the day final then? Days change while events come
-- in late, are corrected or are priced anew; this answers from the record of what was said. Provisional days are
-- remembered to the quarter of an hour, final ones to every change.
-- Grain: a campaign and day, as published at the moment asked about.
-- Example: retailmedia query campaign_daily --as-of 2026-11-17T09:00 --param first_day=2026-11-16
SET param_as_of = '2299-01-01T00:00'; -- the moment, in UTC unless it says otherwise
SET param_first_day = '1970-01-01'; -- first reporting day to show
SET param_last_day = '2299-12-31'; -- last reporting day to show
SET param_campaign_id = '0'; -- the one campaign to show, 0 for all
SET param_limit = '1000'; -- rows to show at most
WITH
    parseDateTime64BestEffort({as_of:String}, 6, 'UTC') AS moment,
    (SELECT ifNull(maxOrNull(final_through), toDate32('1900-01-01')) FROM finality WHERE noted_at <= moment) AS final_through
SELECT
    said.date_id AS date_id,
    said.campaign_id AS campaign_id,
    if(said.campaign_id = 0, 'no campaign', ifNull(campaign.campaign_name, 'not yet known')) AS campaign_name,
    said.impressions AS impressions,
    said.clicks AS clicks,
    said.spend AS spend,
    said.unpriced AS unpriced,
    if(said.impressions = 0, NULL, said.clicks / said.impressions) AS ctr,
    if(said.impressions = 0 OR said.unpriced > 0, NULL, toDecimal128(round(divideDecimal(toDecimal256(said.spend, 9) * 1000, toDecimal256(said.impressions, 0), 8), 6), 6)) AS cpm,
    if(said.clicks = 0 OR said.unpriced > 0, NULL, toDecimal128(round(divideDecimal(toDecimal256(said.spend, 9), toDecimal256(said.clicks, 0), 8), 6), 6)) AS cpc,
    said.pricing_model AS pricing_model,
    said.said_since AS said_since,
    toBool(said.date_id <= final_through) AS is_final
FROM
(
    SELECT
        date_id,
        campaign_id,
        impressions_count AS impressions,
        clicks_count AS clicks,
        spend_amount AS spend,
        unpriced_count AS unpriced,
        toString(history.pricing_model) AS pricing_model,
        said_at AS said_since,
        is_gone
    FROM daily_campaign_history AS history FINAL
    WHERE date_id BETWEEN {first_day:Date32} AND {last_day:Date32}
        AND ({campaign_id:Int64} = 0 OR campaign_id = {campaign_id:Int64})
        AND said_at <= moment
    ORDER BY date_id DESC, campaign_id DESC, slot DESC
    LIMIT 1 BY date_id, campaign_id
) AS said
LEFT JOIN campaign_dimension AS campaign ON campaign.campaign_id = said.campaign_id
WHERE NOT said.is_gone
ORDER BY date_id DESC, spend DESC, impressions DESC, campaign_id
LIMIT {limit:UInt32}
SETTINGS join_use_nulls = 1, do_not_merge_across_partitions_select_final = 1
