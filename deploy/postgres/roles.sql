-- The role the product reads the source with: it can read four tables and see when others' transactions began, and
-- nothing else. Run once as the owner of the tables, with psql:
--   psql -v sync_password=… -f roles.sql
-- On an existing server the owner needs to be able to create roles and to grant pg_read_all_stats (a superuser is).
CREATE ROLE retailmedia_sync LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD :'sync_password';
ALTER ROLE retailmedia_sync SET default_transaction_read_only = on;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO retailmedia_sync;
GRANT SELECT ON advertiser, campaign, impressions, clicks TO retailmedia_sync;
-- Without it other roles' xact_start reads as NULL, and no safe horizon can be computed.
GRANT pg_read_all_stats TO retailmedia_sync;
