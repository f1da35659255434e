-- The role the product reads the source with: it can read four tables and see when others' transactions began, and
-- nothing else. Run as the owner of the tables, with psql, and again after an upgrade:
--   psql -v sync_password=… -f roles.sql
-- On an existing server the owner needs to be able to create roles and to have pg_read_all_stats (a superuser has).
SELECT format(
    'CREATE ROLE retailmedia_sync LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD %L', :'sync_password'
) WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'retailmedia_sync')
\gexec
ALTER ROLE retailmedia_sync SET default_transaction_read_only = on;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO retailmedia_sync;
GRANT SELECT ON advertiser, campaign, impressions, clicks TO retailmedia_sync;

-- When others' transactions began, without which no safe horizon can be computed. pg_read_all_stats would show their
-- statements as well, with every value in them; this shows who, since when, and whether at work.
CREATE SCHEMA IF NOT EXISTS retailmedia;
CREATE OR REPLACE FUNCTION retailmedia.sessions()
RETURNS TABLE (
    datid oid, pid integer, usename name, application_name text, backend_type text, state text,
    backend_start timestamptz, xact_start timestamptz, query_start timestamptz
)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT datid, pid, usename, application_name, backend_type, state, backend_start, xact_start, query_start
    FROM pg_catalog.pg_stat_activity
$$;
REVOKE ALL ON FUNCTION retailmedia.sessions() FROM PUBLIC;
GRANT USAGE ON SCHEMA retailmedia TO retailmedia_sync;
GRANT EXECUTE ON FUNCTION retailmedia.sessions() TO retailmedia_sync;
SELECT 'REVOKE pg_read_all_stats FROM retailmedia_sync'
FROM pg_auth_members
WHERE roleid = 'pg_read_all_stats'::regrole AND member = 'retailmedia_sync'::regrole
\gexec
