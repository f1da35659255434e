-- Statements that rebuild daily_campaign_performance.

-- name: now
SELECT now64(6, 'UTC')

-- name: dirty_days
-- Days whose content changed at or after the moment their metrics hold. `updated_at` travels with the rows, so a
-- rebuild that was overtaken and published late is seen as what it is.
SELECT marks.date_id AS date_id
FROM
(
    SELECT date_id, max(marked_at) AS marked FROM day_marks GROUP BY date_id HAVING marked >= %(since)s
) AS marks
LEFT JOIN
(
    SELECT date_id, min(updated_at) AS holds
    FROM daily_campaign_performance
    WHERE date_id IN (SELECT date_id FROM day_marks GROUP BY date_id HAVING max(marked_at) >= %(since)s)
    GROUP BY date_id
) AS built ON built.date_id = marks.date_id
LEFT JOIN
(
    SELECT date_id, max(updated_at) AS holds FROM empty_days GROUP BY date_id
) AS emptied ON emptied.date_id = marks.date_id
WHERE marks.marked >= if(toYear(built.holds) > 1970, built.holds, emptied.holds)
ORDER BY date_id DESC
SETTINGS join_use_nulls = 0

-- name: marks_since
SELECT count(), now64(6, 'UTC') FROM day_marks WHERE marked_at >= %(since)s

-- name: outdated_days
-- Days not marked and yet wrong: published twice at once by workers of which the later died, priced by another model,
-- built before a version of one of their campaigns arrived, or built by a version that did not keep the hours, priced
-- events without a campaign, or said 0 where the campaign was not known.
-- Each with an instant: it is wrong if it does not end by then. Days of any time zone begin within two days of UTC's.
SELECT DISTINCT date_id, toDateTime64('1900-01-01 00:00:00', 6, 'UTC') AS since FROM daily_campaign_performance
WHERE pricing_model != %(pricing_model)s OR empty(impressions_by_hour)
    OR (campaign_id = 0 AND spend_amount != 0)
    OR (campaign_id != 0 AND if(pricing_model = 'cpc', clicks_count, impressions_count) > 0
        AND (unpriced_count > 0) = (campaign_id IN (SELECT campaign_id FROM campaign_history)))
UNION ALL
SELECT date_id, toDateTime64('1900-01-01 00:00:00', 6, 'UTC') FROM daily_campaign_performance
GROUP BY date_id HAVING min(updated_at) != max(updated_at)
UNION ALL
SELECT daily.date_id, min(history.since)
FROM daily_campaign_performance AS daily
INNER JOIN
(
    SELECT campaign_id, loaded_at,
        if(valid_from = min(valid_from) OVER (PARTITION BY campaign_id), toDateTime64('1900-01-01 00:00:00', 6, 'UTC'), valid_from) AS since
    FROM campaign_history
) AS history ON history.campaign_id = daily.campaign_id
WHERE history.loaded_at >= daily.updated_at AND daily.date_id >= toDate32(history.since, 'UTC') - 2
GROUP BY daily.date_id

-- name: create_staging
CREATE TABLE {staging} AS daily_campaign_performance

-- name: within
-- Events of one run of adjoining days; the UTC days let parts and granules be passed over.
(event_date BETWEEN %(first_utc_day)s AND %(last_utc_day)s AND created_at >= %(lo)s AND created_at < %(hi)s)

-- name: build
-- One row per campaign and day. Each event is priced at the bid in force when it happened; a campaign's first known
-- version counts from the beginning of time; an event of an unknown campaign has no price and is counted as such. Events
-- are counted first
-- and priced then: only on days on which a campaign's bid changes is each moment looked up, on all others one bid holds
-- throughout, and any of the day's events tells which. Day and hour of a moment are those of the piece of the calendar
-- that begins last before it; the piece stands for its day until events are counted, and where clocks do not change, its
-- hours are those since it began.
INSERT INTO {staging}
    (date_id, campaign_id, impressions_count, clicks_count, spend_amount, unpriced_count, ctr, cpm, cpc,
    impressions_by_hour, clicks_by_hour, pricing_model, updated_at)
WITH
    bids AS
    (
        SELECT campaign_id, bid_amount,
            if(valid_from = min(valid_from) OVER (PARTITION BY campaign_id), toDateTime64('1900-01-01 00:00:00', 6, 'UTC'), valid_from) AS valid_from,
            true AS is_known
        FROM campaign_history FINAL
        WHERE campaign_id != 0
    ),
    counted AS
    (
        SELECT
            roundDown(toUnixTimestamp64Micro(created_at), %(begins)s) AS piece,
            campaign_id,
            if((campaign_id, piece) IN (SELECT campaign_id, roundDown(toUnixTimestamp64Micro(valid_from), %(begins)s) FROM bids WHERE valid_from > %(lo)s AND valid_from < %(hi)s), created_at, %(lo)s) AS moment,
            min(created_at) AS priced_at,
            countResampleIf(0, 24, 1)(if(%(whole)s,
                intDiv(toUnixTimestamp64Micro(created_at) - roundDown(toUnixTimestamp64Micro(created_at), %(begins)s), 3600000000),
                intDiv(toUnixTimestamp64Micro(created_at) - transform(roundDown(toUnixTimestamp64Micro(created_at), %(begins)s), %(begins)s, %(midnights)s, toInt64(0)), 3600000000) %% 24) AS hour, event_type = 'impression') AS impressions_of,
            countResampleIf(0, 24, 1)(hour, event_type = 'click') AS clicks_of
        FROM ad_events FINAL
        WHERE {within}
        GROUP BY piece, campaign_id, moment
    ),
    priced AS
    (
        SELECT
            toDate32(toInt32(transform(counted.piece, %(begins)s, %(day_numbers)s, 0))) AS date_id,
            counted.campaign_id AS campaign_id,
            sumForEach(impressions_of) AS impressions_by_hour,
            sumForEach(clicks_of) AS clicks_by_hour,
            arraySum(impressions_by_hour) AS impressions,
            arraySum(clicks_by_hour) AS clicks,
            sum(toDecimal128(bids.bid_amount, 6) * arraySum(if(%(billed)s = 'click', clicks_of, impressions_of))) AS billed,
            sumIf(arraySum(if(%(billed)s = 'click', clicks_of, impressions_of)), NOT bids.is_known AND counted.campaign_id != 0) AS unpriced
        FROM counted
        ASOF LEFT JOIN bids ON bids.campaign_id = counted.campaign_id AND counted.priced_at >= bids.valid_from
        GROUP BY date_id, campaign_id
    )
SELECT
    date_id,
    campaign_id,
    impressions,
    clicks,
    toDecimal128(divideDecimal(billed, toDecimal128(%(divisor)s, 0), 9), 9) AS spend,
    unpriced,
    if(impressions = 0, NULL, clicks / impressions),
    if(impressions = 0 OR unpriced > 0, NULL, toDecimal128(round(divideDecimal(toDecimal256(spend, 9) * 1000, toDecimal256(impressions, 0), 8), 6), 6)),
    if(clicks = 0 OR unpriced > 0, NULL, toDecimal128(round(divideDecimal(toDecimal256(spend, 9), toDecimal256(clicks, 0), 8), 6), 6)),
    impressions_by_hour,
    clicks_by_hour,
    %(pricing_model)s,
    %(holds)s
FROM priced
SETTINGS max_insert_threads = 1, min_insert_block_size_rows = 10000000, min_insert_block_size_bytes = 1073741824,
    do_not_merge_across_partitions_select_final = 1, join_use_nulls = 0

-- name: record
-- What these days are about to say, where it differs from what they said last. Written before they are published: a
-- day whose publication fails is still to be rebuilt, and then compared with what stands here. Rows are named by the
-- rebuild's own time, so the same rebuild written twice is one.
INSERT INTO daily_campaign_history
    (date_id, campaign_id, slot, said_at, impressions_count, clicks_count, spend_amount, unpriced_count,
    pricing_model, reporting_timezone, is_gone, was_final, impressions_before, clicks_before, spend_before, unpriced_before,
    cause)
WITH
    said AS
    (
        SELECT date_id, campaign_id,
            argMax((impressions_count, clicks_count, spend_amount, pricing_model, reporting_timezone, is_gone, unpriced_count), said_at) AS last
        FROM daily_campaign_history
        WHERE date_id IN %(days)s
        GROUP BY date_id, campaign_id
    ),
    compared AS
    (
        SELECT
            date_id,
            campaign_id,
            max(here) AS is_there,
            max(was) AS was_there,
            sum(impressions) AS impressions_now,
            sum(clicks) AS clicks_now,
            sum(spend) AS spend_now,
            sum(unpriced) AS unpriced_now,
            max(model) AS model_now,
            sum(impressions_was) AS impressions_then,
            sum(clicks_was) AS clicks_then,
            sum(spend_was) AS spend_then,
            sum(unpriced_was) AS unpriced_then,
            max(model_was) AS model_then,
            max(zone_was) AS zone_then
        FROM
        (
            SELECT date_id, campaign_id, true AS here, false AS was,
                impressions_count AS impressions, clicks_count AS clicks, spend_amount AS spend,
                toString(pricing_model) AS model, toUInt64(0) AS impressions_was, toUInt64(0) AS clicks_was,
                toDecimal128(0, 9) AS spend_was, '' AS model_was, '' AS zone_was,
                unpriced_count AS unpriced, toUInt64(0) AS unpriced_was
            FROM {staging}
            UNION ALL
            SELECT date_id, campaign_id, false, NOT last.6, 0, 0, toDecimal128(0, 9), '',
                last.1, last.2, last.3, toString(last.4), toString(last.5), 0, last.7
            FROM said
        )
        GROUP BY date_id, campaign_id
        HAVING (is_there, impressions_now, clicks_now, spend_now, unpriced_now)
            != (was_there, impressions_then, clicks_then, spend_then, unpriced_then)
            OR (is_there AND model_now != model_then)
    )
SELECT
    date_id,
    campaign_id,
    if(was_final, %(holds)s, toDateTime64(toStartOfInterval(%(holds)s, INTERVAL 15 MINUTE), 6, 'UTC')),
    %(holds)s,
    impressions_now,
    clicks_now,
    spend_now,
    unpriced_now,
    if(is_there, model_now, model_then),
    %(zone)s,
    NOT is_there,
    date_id IN %(final_days)s AS was_final,
    impressions_then,
    clicks_then,
    spend_then,
    unpriced_then,
    multiIf(
        NOT was_final, '',
        zone_then NOT IN ('', %(zone)s), 'time zone',
        (impressions_now, clicks_now) != (impressions_then, clicks_then), transform(toString(date_id), %(caused_days)s, %(causes)s, 'late rows'),
        is_there AND model_now != model_then, 'pricing model',
        unpriced_now < unpriced_then, 'campaign arrived',
        unpriced_now > unpriced_then, 'campaign unknown',
        campaign_id = 0, 'no campaign',
        'bid edit')
FROM compared
SETTINGS max_partitions_per_insert_block = 0

-- name: built_since
-- Since when each of these days counts as said: it was last built, or became final, whichever was later.
SELECT days.date_id AS date_id, greatest(max(said.at), any(final.at)) AS since
FROM (SELECT arrayJoin(%(days)s) AS date_id) AS days
LEFT JOIN
(
    SELECT asked.date_id AS date_id, min(finality.noted_at) AS at
    FROM (SELECT arrayJoin(%(days)s) AS date_id) AS asked
    CROSS JOIN finality
    WHERE finality.final_through >= asked.date_id
    GROUP BY date_id
) AS final ON final.date_id = days.date_id
LEFT JOIN
(
    SELECT date_id, min(updated_at) AS at FROM daily_campaign_performance WHERE date_id IN %(days)s GROUP BY date_id
    UNION ALL
    SELECT date_id, max(updated_at) AS at FROM empty_days WHERE date_id IN %(days)s GROUP BY date_id
) AS said ON said.date_id = days.date_id
GROUP BY days.date_id
SETTINGS join_use_nulls = 0

-- name: causes
-- Why the counts of these days changed since they were last built, or became final, as the ledger tells: a full
-- refresh put another table in place; a reconciliation or a replay mended rows; windows were loaded that had been loaded
-- before; events that were there already were read again in a newer version; or, where none of this happened, rows came
-- late. A rebuild waits for this, so it must not grow with the square of the ledger: a day of ticks is 170,000 commits.
-- What asks for the oldest `since` does so in many places, so it comes from a statement of its own.
WITH
    (SELECT uuid FROM system.tables WHERE database = currentDatabase() AND name = 'ad_events') AS live,
    built AS
    (
        SELECT pair.1 AS date_id, pair.2 AS since FROM (SELECT arrayJoin(arrayZip(%(days)s, %(since)s)) AS pair)
    ),
    refreshed AS
    (
        SELECT max(if(state = 'running', now64(6, 'UTC'), updated_at)) AS at
        FROM sync_runs FINAL
        WHERE run_id IN (SELECT run_id FROM sync_runs WHERE kind = 'refresh' AND target_uuid = live)
    ),
    recent AS
    (
        SELECT min(lo) AS first_lo FROM sync_commits
        WHERE target_uuid = live AND kind = 'window' AND committed_at >= %(first_since)s
    ),
    -- Windows overlap only where rows were read again. In order of their beginnings each is compared with the one before
    -- it that ends last, not with every other: there are as many windows as there were ticks.
    replayed AS
    (
        SELECT max(greatest(committed_at, before.2)) AS at
        FROM
        (
            SELECT lo, committed_at,
                max((hi, committed_at)) OVER (
                    PARTITION BY stream ORDER BY lo, hi, committed_at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
                ) AS before
            FROM sync_commits
            WHERE target_uuid = live AND kind = 'window' AND hi > (SELECT first_lo FROM recent)
        )
        WHERE lo < before.1
    ),
    leaving AS
    (
        SELECT stream, lo, hi, noted_at, arrayIntersect(days, %(days)s) AS left_days
        FROM sync_attempts
        WHERE outcome = 'superseding' AND target_uuid = live AND notEmpty(left_days)
    ),
    overwritten AS
    (
        SELECT arrayJoin(leaving.left_days) AS date_id, max(commits.committed_at) AS at
        FROM leaving
        INNER JOIN
        (
            SELECT stream, lo, hi, committed_at
            FROM sync_commits
            WHERE target_uuid = live AND committed_at >= %(first_since)s
                AND hi > (SELECT min(lo) FROM leaving) AND lo < (SELECT max(hi) FROM leaving)
        ) AS commits ON commits.stream = leaving.stream
        WHERE leaving.lo < commits.hi AND commits.lo < leaving.hi AND commits.committed_at >= leaving.noted_at
        GROUP BY date_id
    ),
    mended AS
    (
        SELECT date_id, argMax(why, noted) AS cause, max(noted) AS at
        FROM
        (
            SELECT date_id, 'reconciliation' AS why, checked_at AS noted
            FROM reconciliations
            WHERE date_id IN %(days)s AND state IN ('mending', 'mended')
            UNION ALL
            SELECT arrayJoin(days) AS date_id, 'replay' AS why, noted_at AS noted FROM replays WHERE state != 'compared'
        )
        GROUP BY date_id
    ),
    moved AS
    (
        SELECT toString(stream) AS stream, lo, max(hi) AS hi
        FROM sync_attempts
        WHERE outcome = 'superseding' AND target_uuid = live AND noted_at >= %(first_since)s
        GROUP BY stream, lo
    ),
    -- Rows of a window that overwrote something, which came since the last time: whatever their version, something moved.
    arrived AS
    (
        SELECT came.date_id AS date_id, max(came.at) AS at
        FROM
        (
            SELECT toDate32(toInt32(transform(roundDown(toUnixTimestamp64Micro(created_at), %(begins)s), %(begins)s, %(day_numbers)s, 0))) AS date_id, inserted_at, loaded_at AS at,
                if(event_type = 'impression', 'impressions', 'clicks') AS stream
            FROM ad_events
            WHERE {within} AND loaded_at >= %(first_since)s
        ) AS came
        ASOF INNER JOIN moved ON moved.stream = came.stream AND came.inserted_at >= moved.lo
        WHERE came.inserted_at < moved.hi
        GROUP BY date_id
    )
SELECT
    built.date_id,
    multiIf(
        (SELECT at FROM refreshed) >= built.since, 'full refresh',
        mended.at >= built.since, mended.cause,
        (SELECT at FROM replayed) >= built.since, 'replay',
        greatest(overwritten.at, toDateTime64(arrived.at, 6, 'UTC')) >= built.since, 'update',
        'late rows')
FROM built
LEFT JOIN overwritten ON overwritten.date_id = built.date_id
LEFT JOIN arrived ON arrived.date_id = built.date_id
LEFT JOIN mended ON mended.date_id = built.date_id
SETTINGS join_use_nulls = 0

-- name: final_through
SELECT count(), max(final_through) FROM finality

-- name: note_final_through
INSERT INTO finality (final_through, noted_at)
SELECT toDate32(%(day)s), now64(6, 'UTC')
WHERE toDate32(%(day)s) NOT IN (SELECT final_through FROM finality)

-- name: staged_parts
SELECT partition, count(), sum(rows)
FROM system.parts
WHERE database = %(database)s AND table = %(staging)s AND active
GROUP BY partition

-- name: optimize
OPTIMIZE TABLE {staging} PARTITION %(day)s FINAL

-- name: replace_day
ALTER TABLE daily_campaign_performance REPLACE PARTITION %(day)s FROM {staging}

-- name: mixed_days
-- Days that hold rows of more than one rebuild. Of two replacements of a partition at once, the one that drew its block
-- numbers first and finishes last does not remove the part of the other.
SELECT toString(date_id) FROM daily_campaign_performance
WHERE date_id IN %(days)s
GROUP BY date_id
HAVING min(updated_at) != max(updated_at)

-- name: drop_day
ALTER TABLE daily_campaign_performance DROP PARTITION %(day)s

-- name: note_empty
INSERT INTO empty_days (date_id, updated_at) SELECT arrayJoin(%(days)s), %(holds)s
