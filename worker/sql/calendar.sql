-- Statements on the calendar by which days are cut.

-- name: history
-- The calendars there were, the one in force first.
SELECT number, toString(state), reporting_timezone, iana_version, fingerprint, noted_at FROM reporting_calendars
ORDER BY number DESC, iana_version DESC, fingerprint DESC, state DESC

-- name: in_force
SELECT reporting_timezone, iana_version, fingerprint FROM reporting_calendars
ORDER BY number DESC, iana_version DESC, fingerprint DESC
LIMIT 1

-- name: calendar
SELECT starts, offsets FROM reporting_calendars WHERE fingerprint = %(fingerprint)s LIMIT 1

-- name: recorded
SELECT count() FROM system.tables WHERE database = %(database)s AND name = 'reporting_calendars'

-- name: adopted
-- Beside the row that announced it.
INSERT INTO reporting_calendars (number, state, reporting_timezone, iana_version, fingerprint, starts, offsets, begins)
SELECT number, 'adopted', reporting_timezone, iana_version, fingerprint, starts, offsets, begins
FROM reporting_calendars
WHERE number = %(number)s AND reporting_timezone = %(zone)s AND iana_version = %(version)s
    AND fingerprint = %(fingerprint)s AND state = 'adopting'
LIMIT 1

-- name: hours_held
-- The first and the last event of each UTC hour that has any.
SELECT min(at), max(at)
FROM (SELECT toUnixTimestamp64Micro(created_at) AS at FROM ad_events WHERE NOT _deleted)
GROUP BY intDiv(at + 2208988800000000, 3600000000)

-- name: days_said
SELECT DISTINCT date_id FROM daily_campaign_performance
