-- Three users of ClickHouse, each with what it needs and no more. Braces stand for SHA-256 sums of passwords.
-- A session begins in the database `default`, which it must be able to see.
CREATE DATABASE IF NOT EXISTS retailmedia;

-- Applies migrations.
CREATE USER IF NOT EXISTS retailmedia_owner IDENTIFIED WITH sha256_hash BY '{owner_sha256}';
GRANT SELECT, INSERT, ALTER, CREATE TABLE, CREATE VIEW, CREATE DATABASE, DROP TABLE, DROP VIEW, TRUNCATE, OPTIMIZE, SHOW
    ON retailmedia.* TO retailmedia_owner;
GRANT SHOW DATABASES ON default.* TO retailmedia_owner;

-- Loads events, dimensions and metrics: staging tables come and go, days are replaced, a refreshed table is exchanged.
CREATE USER IF NOT EXISTS retailmedia_sync IDENTIFIED WITH sha256_hash BY '{sync_sha256}';
GRANT SELECT, INSERT, ALTER DELETE, ALTER MODIFY COMMENT, CREATE TABLE, DROP TABLE, SHOW
    ON retailmedia.* TO retailmedia_sync;
GRANT CREATE TEMPORARY TABLE ON *.* TO retailmedia_sync;
GRANT SHOW DATABASES ON default.* TO retailmedia_sync;

-- Reads: analysts, dashboards. It can change settings of its own queries and nothing else.
CREATE USER IF NOT EXISTS retailmedia_reader IDENTIFIED WITH sha256_hash BY '{reader_sha256}' SETTINGS readonly = 2;
GRANT SELECT, SHOW ON retailmedia.* TO retailmedia_reader;
GRANT SHOW DATABASES ON default.* TO retailmedia_reader;
