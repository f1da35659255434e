-- Three users of ClickHouse, each with what it needs and no more. Braces stand for SHA-256 sums of passwords. It may be
-- run again at any time: passwords that were changed since stay, rights become what they are here.
-- A session begins in the database `default`, which it must be able to see.
-- `merge_tree_disk CONST`: a table's own settings could name a disk of any kind, `disk(type = web, …)` or s3, and the
-- server would fetch from, or write to, whatever host the statement names. No grant stands for that; this does.
-- TABLE ENGINE counts where the server's table_engines_require_grant is on (limits.xml): without it Executable,
-- EmbeddedRocksDB, Buffer and Log tables could be made.
CREATE DATABASE IF NOT EXISTS retailmedia;

-- Applies migrations.
CREATE USER IF NOT EXISTS retailmedia_owner IDENTIFIED WITH sha256_hash BY '{owner_sha256}';
ALTER USER retailmedia_owner SETTINGS merge_tree_disk CONST, merge_tree_storage_policy CONST;
GRANT SELECT, INSERT, ALTER, CREATE TABLE, CREATE VIEW, CREATE DATABASE, DROP TABLE, DROP VIEW, TRUNCATE, OPTIMIZE, SHOW
    ON retailmedia.* TO retailmedia_owner;
GRANT SHOW DATABASES ON default.* TO retailmedia_owner;
GRANT TABLE ENGINE ON MergeTree, TABLE ENGINE ON ReplacingMergeTree, TABLE ENGINE ON AggregatingMergeTree,
    TABLE ENGINE ON ReplicatedMergeTree, TABLE ENGINE ON ReplicatedReplacingMergeTree,
    TABLE ENGINE ON ReplicatedAggregatingMergeTree TO retailmedia_owner;

-- Loads events, dimensions and metrics: staging tables come and go, days are replaced, a refreshed table is exchanged.
-- An exchange asks for the right to drop and make `ad_events`; the tables that say what is true it can neither drop
-- nor make.
CREATE USER IF NOT EXISTS retailmedia_sync IDENTIFIED WITH sha256_hash BY '{sync_sha256}';
ALTER USER retailmedia_sync SETTINGS merge_tree_disk CONST, merge_tree_storage_policy CONST;
GRANT SELECT, INSERT, ALTER DELETE, ALTER MODIFY COMMENT, CREATE TABLE, DROP TABLE, SHOW
    ON retailmedia.* TO retailmedia_sync;
REVOKE CREATE TABLE, DROP TABLE ON retailmedia.advertiser_dimension FROM retailmedia_sync;
REVOKE CREATE TABLE, DROP TABLE ON retailmedia.alerts FROM retailmedia_sync;
REVOKE CREATE TABLE, DROP TABLE ON retailmedia.campaign_history FROM retailmedia_sync;
REVOKE CREATE TABLE, DROP TABLE ON retailmedia.daily_campaign_history FROM retailmedia_sync;
REVOKE CREATE TABLE, DROP TABLE ON retailmedia.daily_campaign_performance FROM retailmedia_sync;
REVOKE CREATE TABLE, DROP TABLE ON retailmedia.day_attempts FROM retailmedia_sync;
REVOKE CREATE TABLE, DROP TABLE ON retailmedia.day_marks FROM retailmedia_sync;
REVOKE CREATE TABLE, DROP TABLE ON retailmedia.day_seals FROM retailmedia_sync;
REVOKE CREATE TABLE, DROP TABLE ON retailmedia.empty_days FROM retailmedia_sync;
REVOKE CREATE TABLE, DROP TABLE ON retailmedia.finality FROM retailmedia_sync;
REVOKE CREATE TABLE, DROP TABLE ON retailmedia.flagged_events FROM retailmedia_sync;
REVOKE CREATE TABLE, DROP TABLE ON retailmedia.metric_anomalies FROM retailmedia_sync;
REVOKE CREATE TABLE, DROP TABLE ON retailmedia.quality_results FROM retailmedia_sync;
REVOKE CREATE TABLE, DROP TABLE ON retailmedia.quarantine_decisions FROM retailmedia_sync;
REVOKE CREATE TABLE, DROP TABLE ON retailmedia.quarantined_dimension_rows FROM retailmedia_sync;
REVOKE CREATE TABLE, DROP TABLE ON retailmedia.quarantined_events FROM retailmedia_sync;
REVOKE CREATE TABLE, DROP TABLE ON retailmedia.reconciliations FROM retailmedia_sync;
REVOKE CREATE TABLE, DROP TABLE ON retailmedia.replays FROM retailmedia_sync;
REVOKE CREATE TABLE, DROP TABLE ON retailmedia.reporting_calendars FROM retailmedia_sync;
REVOKE CREATE TABLE, DROP TABLE ON retailmedia.schema_migrations FROM retailmedia_sync;
REVOKE CREATE TABLE, DROP TABLE ON retailmedia.source_generations FROM retailmedia_sync;
REVOKE CREATE TABLE, DROP TABLE ON retailmedia.source_setbacks FROM retailmedia_sync;
REVOKE CREATE TABLE, DROP TABLE ON retailmedia.sync_attempts FROM retailmedia_sync;
REVOKE CREATE TABLE, DROP TABLE ON retailmedia.sync_commits FROM retailmedia_sync;
REVOKE CREATE TABLE, DROP TABLE ON retailmedia.sync_runs FROM retailmedia_sync;
REVOKE CREATE TABLE, DROP TABLE ON retailmedia.sync_totals FROM retailmedia_sync;
GRANT CREATE TEMPORARY TABLE ON *.* TO retailmedia_sync;
GRANT SHOW DATABASES ON default.* TO retailmedia_sync;
GRANT TABLE ENGINE ON MergeTree, TABLE ENGINE ON ReplacingMergeTree, TABLE ENGINE ON ReplicatedMergeTree,
    TABLE ENGINE ON ReplicatedReplacingMergeTree, TABLE ENGINE ON Memory TO retailmedia_sync;

-- Reads: analysts, dashboards. It can change settings of its own queries and nothing else.
CREATE USER IF NOT EXISTS retailmedia_reader IDENTIFIED WITH sha256_hash BY '{reader_sha256}' SETTINGS readonly = 2;
GRANT SELECT, SHOW ON retailmedia.* TO retailmedia_reader;
GRANT SHOW DATABASES ON default.* TO retailmedia_reader;
