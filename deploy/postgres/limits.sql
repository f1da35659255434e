-- What every role of a database may do unless it is taken from PUBLIC: make temporary tables and large objects, and put
-- messages into the WAL. Run as a superuser in a database that nobody else uses; elsewhere grant back what others need.
SELECT format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database())
\gexec
SELECT format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', oid::regprocedure)
FROM pg_proc
WHERE pronamespace = 'pg_catalog'::regnamespace
    AND (proname LIKE 'lo\_%' OR proname IN ('lowrite', 'loread', 'pg_logical_emit_message', 'pg_notify'))
ORDER BY oid::regprocedure::text
\gexec
