-- Statements on PostgreSQL. Only SELECT; every session is read-only.

-- name: identity
-- The timeline comes from the WAL position, not from pg_control_checkpoint(), which still names the old timeline
-- until the first checkpoint after a promotion.
SELECT
    (SELECT system_identifier FROM pg_control_system()) AS system_id,
    ('x' || lpad(left(pg_walfile_name(pg_current_wal_lsn()), 8), 8, '0'))::bit(32)::bigint AS timeline

-- name: privileges
SELECT
    pg_is_in_recovery() AS standby,
    pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') OR coalesce(sessions.shown, false) AS reads_all_stats,
    current_user::text AS role,
    current_database()::text AS database,
    current_setting('server_version_num')::int AS version,
    pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_statements,
    CASE WHEN sessions.shown THEN 'retailmedia.sessions()' ELSE 'pg_stat_activity' END AS activity
FROM (SELECT 1) AS always
LEFT JOIN LATERAL (
    -- The function of deploy/postgres/roles.sql; it shows nothing that its owner does not see.
    SELECT
        prosecdef AND pg_has_role(proowner, 'pg_read_all_stats', 'USAGE')
        AND has_function_privilege(pg_proc.oid, 'EXECUTE') AND has_schema_privilege(pronamespace, 'USAGE') AS shown
    FROM pg_proc
    JOIN pg_namespace ON pg_namespace.oid = pronamespace
    WHERE nspname = 'retailmedia' AND proname = 'sessions' AND pronargs = 0
) AS sessions ON true

-- name: tables
-- Any index that begins with inserted_at serves, and any row trigger before UPDATE, whatever their names.
SELECT
    wanted.name,
    relation IS NOT NULL,
    coalesce(has_table_privilege(relation, 'SELECT'), false),
    coalesce(format_type(stamp.atttypid, NULL), ''),
    coalesce(stamp.attnotnull, false),
    EXISTS (
        SELECT FROM pg_index
        WHERE indrelid = relation AND indkey[0] = stamp.attnum AND indisvalid AND indpred IS NULL
    ),
    EXISTS (
        SELECT FROM pg_trigger
        WHERE tgrelid = relation AND NOT tgisinternal AND tgenabled IN ('O', 'A') AND tgtype & 19 = 19
    )
FROM unnest(ARRAY['advertiser', 'campaign', 'impressions', 'clicks']) WITH ORDINALITY AS wanted (name, place)
CROSS JOIN LATERAL (SELECT to_regclass(wanted.name)::oid AS relation) AS found
LEFT JOIN pg_attribute AS stamp ON stamp.attrelid = relation AND stamp.attname = 'inserted_at' AND NOT stamp.attisdropped
ORDER BY wanted.place

-- name: totals
SELECT
    (SELECT count(*) FROM advertiser),
    (SELECT count(*) FROM campaign),
    shown.events,
    clicked.events,
    shown.bids,
    clicked.bids
FROM
    (
        SELECT count(*) AS events, coalesce(sum(nullif(bid, 'NaN')), 0) AS bids
        FROM impressions LEFT JOIN campaign ON campaign.id = campaign_id
    ) AS shown,
    (
        SELECT count(*) AS events, coalesce(sum(nullif(bid, 'NaN')), 0) AS bids
        FROM clicks LEFT JOIN campaign ON campaign.id = campaign_id
    ) AS clicked

-- name: now
SELECT clock_timestamp()

-- name: open_transactions
-- Everyone in this database who has a transaction open, writing or not: a transaction that has not written yet may
-- still write rows stamped with its start. Our own readers are left out: their sessions are read-only.
-- Of transactions that follow each other in one message each is stamped with the start of the message, also one that is
-- not begun yet. Of sessions without track_activities nothing is known: they have no start, and are for the caller.
SELECT
    pid,
    coalesce(usename, backend_type)::text,
    coalesce(application_name, ''),
    CASE WHEN state IS DISTINCT FROM 'disabled' THEN coalesce(xact_start, query_start) END AS since
FROM {activity}
WHERE (datid = (SELECT oid FROM pg_database WHERE datname = current_database()) OR datid IS NULL)
    AND pid <> pg_backend_pid()
    AND (xact_start IS NOT NULL OR state IN ('active', 'fastpath function call', 'disabled'))
    AND backend_type NOT IN ('autovacuum worker', 'autovacuum launcher', 'walsender')
    AND application_name <> 'retailmedia reader'
ORDER BY since

-- name: prepared_transactions
SELECT gid, owner::text, prepared
FROM pg_prepared_xacts
WHERE database = current_database()
ORDER BY prepared

-- name: snapshot
SELECT
    pg_snapshot_xmax(snapshot)::text::bigint AS xmax,
    (SELECT count(*) FROM pg_snapshot_xip(snapshot)) AS in_progress,
    transaction_timestamp()
FROM (SELECT pg_current_snapshot() AS snapshot) AS taken

-- name: first_row
SELECT inserted_at FROM {table} WHERE inserted_at >= %(lo)s AND inserted_at < %(hi)s ORDER BY inserted_at LIMIT 1

-- name: boundary
-- The first instant after `lo` before which at least `rows` rows lie; an index-only walk over those rows.
SELECT inserted_at FROM {table}
WHERE inserted_at >= %(lo)s AND inserted_at < %(hi)s
ORDER BY inserted_at
OFFSET %(rows)s LIMIT 1

-- name: boundary_after
SELECT inserted_at FROM {table} WHERE inserted_at > %(lo)s AND inserted_at < %(hi)s ORDER BY inserted_at LIMIT 1

-- name: histogram
-- Of a table that has been analysed: instants between which lie equally many rows, and how many.
SELECT
    ARRAY(SELECT bound FROM unnest(bounds) AS bound WHERE bound BETWEEN '1970-01-01' AND '2299-12-30' ORDER BY bound),
    relation.reltuples / (cardinality(bounds) - 1)
FROM pg_class AS relation
JOIN pg_namespace AS space ON space.oid = relation.relnamespace
JOIN pg_stats AS statistics
    ON statistics.schemaname = space.nspname AND statistics.tablename = relation.relname
    AND statistics.attname = 'inserted_at' AND NOT statistics.inherited
CROSS JOIN LATERAL (SELECT statistics.histogram_bounds::text::timestamptz[] AS bounds) AS known
WHERE relation.oid = to_regclass(quote_ident(%(table)s)) AND relation.reltuples > 0 AND cardinality(bounds) > 2

-- name: count
SELECT count(*) FROM {table} WHERE inserted_at >= %(lo)s AND inserted_at < %(hi)s

-- name: read_events
-- Every field has eight bytes and none is NULL, so that the binary format has a fixed stride: campaign 0 and instant
-- -infinity stand for NULL. A stream's further columns follow as they are, each by its type's binary form.
COPY (
    SELECT
        id::bigint,
        coalesce(campaign_id, 0)::bigint,
        coalesce(created_at, '-infinity')::timestamptz,
        inserted_at{extra}
    FROM {table}
    WHERE inserted_at >= %(lo)s AND inserted_at < %(hi)s
    ORDER BY inserted_at, id
) TO STDOUT (FORMAT binary)

-- name: read_advertisers
-- What ClickHouse's types cannot hold is brought into range here: times outside 1900 to 2299 become NULL.
SELECT
    id::bigint,
    coalesce(name, ''),
    CASE WHEN created_at BETWEEN '1900-01-02' AND '2299-12-30' THEN created_at END,
    CASE WHEN updated_at BETWEEN '1900-01-02' AND '2299-12-30' THEN updated_at END
FROM advertiser

-- name: read_campaigns
-- As above; a flight that ends in 9999 or infinity ends in 2299, and NaN, which numeric allows, is no bid.
SELECT
    id::bigint,
    coalesce(name, ''),
    advertiser_id::bigint,
    coalesce(nullif(bid, 'NaN'), 0),
    coalesce(nullif(budget, 'NaN'), 0),
    CASE WHEN start_date IS NOT NULL THEN greatest(least(start_date, '2299-12-31'), '1900-01-01') END,
    CASE WHEN end_date IS NOT NULL THEN greatest(least(end_date, '2299-12-31'), '1900-01-01') END,
    CASE WHEN created_at BETWEEN '1900-01-02' AND '2299-12-30' THEN created_at END,
    CASE WHEN updated_at BETWEEN '1900-01-02' AND '2299-12-30' THEN updated_at END
FROM campaign
