-- The reporting days as instants, [begins_at, ends_at), by the calendar in force. To find the day of an instant, join it
-- to the day that begins last before it. A day that the zone left out is empty: it ends as it begins.
CREATE OR REPLACE VIEW reporting_calendar AS
SELECT
    toDate32('1900-01-02') + toIntervalDay(place - 1) AS date_id,
    fromUnixTimestamp64Micro(instants[place], 'UTC') AS begins_at,
    fromUnixTimestamp64Micro(instants[place + 1], 'UTC') AS ends_at
FROM
(
    SELECT instants, arrayJoin(range(1, length(instants))) AS place
    FROM
    (
        SELECT argMax(begins, (number, iana_version, fingerprint, state)) AS instants FROM reporting_calendars
    )
)
