-- The reporting time zone, and the day it is there now.
CREATE OR REPLACE VIEW reporting_day AS
SELECT '{reporting_timezone}' AS reporting_timezone, toDate32(now(), '{reporting_timezone}') AS today
