-- Which figures changed after their day had been declared final, from what to what, when and why? Causes: late rows,
-- update, bid edit, campaign arrived (its events were unpriced before), campaign unknown, no campaign, replay,
-- reconciliation, full refresh, pricing model, time zone.
-- Grain: a day, campaign and column, once for each change.
-- Example: retailmedia query restatements --param first_day=2026-11-10 --param last_day=2026-11-10
SET param_first_day = '1970-01-01'; -- first reporting day to show
SET param_last_day = '2299-12-31'; -- last reporting day to show
SET param_campaign_id = '-1'; -- the one campaign to show, -1 for all
SET param_limit = '1000'; -- rows to show at most
SELECT date_id, campaign_id, column_name, value_before, value_after, pricing_model, restated_at, cause
FROM metric_restatements
WHERE date_id BETWEEN {first_day:Date32} AND {last_day:Date32}
    AND ({campaign_id:Int64} = -1 OR campaign_id = {campaign_id:Int64})
ORDER BY restated_at DESC, date_id, campaign_id, column_name
LIMIT {limit:UInt32}
