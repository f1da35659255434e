-- Of all events, how many are impressions and how many clicks?
-- Grain: an event type.
-- Example: retailmedia query event_type_distribution --param first_day=2026-11-01
SET param_first_day = '1970-01-01'; -- first reporting day that counts
SET param_last_day = '2299-12-31'; -- last reporting day that counts
SELECT
    event_type,
    events,
    events / sum(events) OVER () AS share_of_events
FROM
(
    SELECT event_type, sum(events_count) AS events
    FROM event_type_distribution
    WHERE date_id BETWEEN {first_day:Date32} AND {last_day:Date32}
    GROUP BY event_type
)
ORDER BY event_type DESC
SETTINGS optimize_move_to_prewhere = 0
