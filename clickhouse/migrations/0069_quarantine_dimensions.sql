-- Every row that was set aside and how it stands: held; released by a person and not loaded yet; discarded for good; or
-- loaded since, because it was released or corrected at the source. `is_double` must never be true: the row is set
-- aside and an older reading of it counts. Of a dimension's row what was loaded before counts on purpose.
CREATE OR REPLACE VIEW quarantine AS
SELECT stream, event_id, rule, state, reason, decided_at, row, lo, hi, run_id, quarantined_at, is_double
FROM
(
    SELECT
        held.stream AS stream,
        held.event_id AS event_id,
        toString(held.rule) AS rule,
        multiIf(
            loaded.event_id IS NOT NULL AND loaded.loaded_version >= held._version, 'loaded',
            held.content = decided.content AND decided.decision = 'discard', 'discarded',
            held.content = decided.content AND decided.decision = 'release', 'released',
            'held') AS state,
        if(held.content = decided.content, decided.reason, NULL) AS reason,
        if(held.content = decided.content, decided.decided_at, NULL) AS decided_at,
        held.row AS row,
        held.lo AS lo,
        held.hi AS hi,
        held.run_id AS run_id,
        held.quarantined_at AS quarantined_at,
        loaded.event_id IS NOT NULL AND loaded.loaded_version < held._version AS is_double
    FROM
    (
        SELECT *, replaceRegexpOne(row, ', "inserted_at": ("[^"]*"|null)', '') AS content
        FROM quarantined_events FINAL
    ) AS held
    LEFT JOIN
    (
        SELECT if(event_type = 'impression', 'impressions', 'clicks') AS stream, event_id, _version AS loaded_version
        FROM ad_events FINAL
        WHERE event_id IN (SELECT event_id FROM quarantined_events)
    ) AS loaded ON loaded.stream = held.stream AND loaded.event_id = held.event_id
    LEFT JOIN
    (
        SELECT stream, event_id, toString(decision) AS decision, content, reason, decided_at
        FROM quarantine_decisions FINAL
    ) AS decided ON decided.stream = held.stream AND decided.event_id = held.event_id
    SETTINGS join_use_nulls = 1
)
UNION ALL
SELECT stream, event_id, rule, state, reason, decided_at, row, lo, hi, run_id, quarantined_at, is_double
FROM
(
    SELECT
        held.stream AS stream,
        held.row_id AS event_id,
        held.rule AS rule,
        multiIf(
            held.state = 'loaded', 'loaded',
            held.row = decided.content AND decided.decision = 'discard', 'discarded',
            'held') AS state,
        if(held.row = decided.content, decided.reason, NULL) AS reason,
        if(held.row = decided.content, decided.decided_at, NULL) AS decided_at,
        held.row AS row,
        toDateTime64('1970-01-01 00:00:00', 6, 'UTC') AS lo,
        held.quarantined_at AS hi,
        held.run_id AS run_id,
        held.quarantined_at AS quarantined_at,
        false AS is_double
    FROM
    (
        SELECT stream, row_id, rule, toString(state) AS state, row, run_id, quarantined_at
        FROM quarantined_dimension_rows FINAL
        WHERE state != 'gone'
    ) AS held
    LEFT JOIN
    (
        SELECT stream, event_id, toString(decision) AS decision, content, reason, decided_at
        FROM quarantine_decisions FINAL
    ) AS decided ON decided.stream = held.stream AND decided.event_id = held.row_id
    SETTINGS join_use_nulls = 1
)
