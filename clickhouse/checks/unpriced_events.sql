-- Which campaign-days hold events whose campaign is not known, so that what they cost is in no spend?
-- Severity: warn
-- Owner: campaign management
-- Do: Add or restore the campaign at the source, or correct the events; their days are then priced by themselves.
-- Grain: a campaign id and reporting day
SET param_first_day = '1900-01-02'; -- first reporting day looked at
SET param_last_day = '2299-12-30'; -- last reporting day looked at
SET param_grace_seconds = '300'; -- how long an event of a day that is not final may wait for its campaign
SELECT
    daily.date_id AS date_id,
    daily.campaign_id AS campaign_id,
    daily.unpriced_count AS unpriced,
    toString(daily.pricing_model) AS pricing_model,
    said.since AS since,
    toBool(daily.date_id <= (SELECT ifNull(maxOrNull(final_through), toDate32('1900-01-01')) FROM finality)) AS is_final
FROM daily_campaign_performance AS daily
INNER JOIN
(
    SELECT date_id, campaign_id, min(said_at) AS since
    FROM daily_campaign_history
    WHERE unpriced_count > 0 AND date_id BETWEEN {first_day:Date32} AND {last_day:Date32}
    GROUP BY date_id, campaign_id
) AS said ON said.date_id = daily.date_id AND said.campaign_id = daily.campaign_id
WHERE daily.unpriced_count > 0
    AND daily.date_id BETWEEN {first_day:Date32} AND {last_day:Date32}
    AND (is_final OR said.since <= now64(6, 'UTC') - toIntervalSecond({grace_seconds:UInt32}))
ORDER BY unpriced DESC, date_id DESC, campaign_id
