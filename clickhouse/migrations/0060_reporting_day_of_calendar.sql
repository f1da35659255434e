-- The reporting time zone, and the day it is there now: the furthest that clocks of the calendar in force have reached.
CREATE OR REPLACE VIEW reporting_day AS
SELECT
    '{reporting_timezone}' AS reporting_timezone,
    toDate32('1970-01-01') + toIntervalDay(intDiv(
        arrayMax((begin, following, shift) -> if(begin <= at, least(at, following - 1) + shift * 1000000, 0), changes, arrayPushBack(arrayPopFront(changes), at + 1), shifts),
        86400000000)) AS today
FROM
(
    SELECT
        toUnixTimestamp64Micro(now64(6, 'UTC')) AS at,
        argMax(starts, (number, iana_version, fingerprint, state)) AS changes,
        argMax(offsets, (number, iana_version, fingerprint, state)) AS shifts
    FROM reporting_calendars
)
WHERE notEmpty(changes)
