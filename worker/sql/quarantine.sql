-- Statements on rows that were set aside, and on what people decided about them.

-- name: releases
SELECT event_id, content FROM quarantine_decisions FINAL
WHERE stream = %(stream)s AND decision = 'release' AND event_id IN %(ids)s

-- name: rows
-- The condition is made of the clauses below.
SELECT stream, event_id, rule, state, reason, decided_at, row, lo, hi, run_id, quarantined_at
FROM quarantine
WHERE state IN %(states)s{condition}
ORDER BY quarantined_at DESC, stream, event_id
LIMIT %(limit)s

-- name: of_stream
AND stream = %(stream)s

-- name: of_rule
AND startsWith(rule, %(rule)s)

-- name: of_ids
AND event_id IN %(ids)s

-- name: counts
SELECT stream, state, count() FROM quarantine GROUP BY stream, state ORDER BY stream, state

-- name: not_loaded
-- By stream, rows that are in quarantine now.
SELECT stream, count() FROM quarantine WHERE state != 'loaded' GROUP BY stream

-- name: by_rule
SELECT stream, rule, state, count(), min(quarantined_at), max(quarantined_at)
FROM quarantine GROUP BY stream, rule, state ORDER BY count() DESC, stream, rule, state

-- name: decide
-- What is decided about is the row as it stands in quarantine when the decision is written.
INSERT INTO quarantine_decisions (stream, event_id, decision, content, reason)
SELECT stream, event_id, %(decision)s, replaceRegexpOne(row, ', "inserted_at": ("[^"]*"|null)', ''), %(reason)s
FROM quarantined_events FINAL
WHERE stream = %(stream)s AND event_id IN %(ids)s

-- name: decide_dimension
INSERT INTO quarantine_decisions (stream, event_id, decision, content, reason)
SELECT stream, row_id, %(decision)s, row, %(reason)s
FROM quarantined_dimension_rows FINAL
WHERE stream = %(stream)s AND row_id IN %(ids)s AND state = 'held'

-- name: pending
-- Released rows not loaded yet, with the windows they were read in. After a day a row that did not come is no longer
-- looked for: it is gone at the source, or was written again and comes by the usual way.
SELECT stream, lo, hi, groupArray(JSONExtractString(row, 'inserted_at'))
FROM quarantine
WHERE state = 'released' AND decided_at > now() - INTERVAL 1 DAY
GROUP BY stream, lo, hi
ORDER BY stream, lo, hi
LIMIT %(limit)s
