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

-- name: settings
SELECT name, setting FROM pg_settings WHERE name = ANY (%(names)s)

-- name: mark_reader
-- The mark of a session of ours, which ends with it: a lock whose second number comes of when the session began, so that
-- it marks no later session of the same process id. See open_transactions.
SELECT pg_advisory_lock_shared(1380797513, mod((extract(epoch FROM backend_start) * 1000000)::bigint, 2147483647)::int)
FROM pg_stat_activity
WHERE pid = pg_backend_pid()

-- name: seen
-- Some relations as this role sees them: with every row and column, or not.
SELECT
    wanted.name,
    coalesce(relation.relkind::text, ''),
    coalesce(has_table_privilege(relation.oid, 'SELECT'), false),
    coalesce(has_any_column_privilege(relation.oid, 'SELECT'), false),
    coalesce(row_security_active(relation.oid), false),
    coalesce((
        WITH RECURSIVE part AS (
            SELECT inhrelid FROM pg_inherits WHERE inhparent = relation.oid
            UNION
            SELECT deeper.inhrelid FROM pg_inherits AS deeper JOIN part ON deeper.inhparent = part.inhrelid
        )
        SELECT min(child.relname::text) FROM part JOIN pg_class AS child ON child.oid = part.inhrelid
        WHERE child.relkind = 'f'
    ), ''),
    current_user::text,
    coalesce((
        SELECT format_type(atttypid, atttypmod) FROM pg_attribute
        WHERE attrelid = relation.oid AND attname = 'inserted_at' AND NOT attisdropped
    ), '')
FROM unnest(%(names)s::text[]) AS wanted (name)
LEFT JOIN pg_class AS relation ON relation.oid = to_regclass(quote_ident(wanted.name))
ORDER BY wanted.name

-- name: lock_holders
-- Who holds, or waits for, the one lock that keeps a reader from these tables or their parts, longest first.
WITH RECURSIVE part AS (
    SELECT to_regclass(quote_ident(name))::oid AS oid FROM unnest(%(names)s::text[]) AS wanted (name)
    UNION
    SELECT inhrelid FROM pg_inherits JOIN part ON inhparent = part.oid
)
SELECT
    locked.relation::regclass::text,
    locked.granted,
    locked.pid,
    coalesce(activity.usename, 'unknown')::text,
    coalesce(activity.application_name, ''),
    clock_timestamp() - activity.xact_start,
    CASE WHEN locked.granted THEN '{}' ELSE pg_blocking_pids(locked.pid) END
FROM pg_locks AS locked
LEFT JOIN pg_stat_activity AS activity ON activity.pid = locked.pid
WHERE locked.locktype = 'relation' AND locked.mode = 'AccessExclusiveLock'
    AND locked.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND locked.relation IN (SELECT oid FROM part)
ORDER BY locked.granted DESC, activity.xact_start

-- name: tables
-- Any index that begins with inserted_at serves, and any row trigger before UPDATE, whatever their names.
SELECT
    wanted.name,
    relation IS NOT NULL,
    coalesce(has_table_privilege(relation, 'SELECT'), false),
    coalesce(format_type(stamp.atttypid, stamp.atttypmod), ''),
    coalesce(stamp.attnotnull, false),
    EXISTS (
        SELECT FROM pg_index
        WHERE indrelid = relation AND indkey[0] = stamp.attnum AND indisvalid AND indpred IS NULL
    ),
    EXISTS (
        SELECT FROM pg_trigger
        WHERE tgrelid = relation AND NOT tgisinternal AND tgenabled IN ('O', 'A') AND tgtype & 19 = 19
    ),
    coalesce((
        WITH RECURSIVE part AS (
            SELECT inhrelid FROM pg_inherits WHERE inhparent = relation
            UNION
            SELECT deeper.inhrelid FROM pg_inherits AS deeper JOIN part ON deeper.inhparent = part.inhrelid
        )
        SELECT min(child.relname::text)
        FROM part
        JOIN pg_class AS child ON child.oid = part.inhrelid AND child.relkind = 'r'
        JOIN pg_attribute AS own ON own.attrelid = child.oid AND own.attname = 'inserted_at'
        WHERE NOT own.attnotnull
            OR NOT EXISTS (
                SELECT FROM pg_index
                WHERE indrelid = child.oid AND indkey[0] = own.attnum AND indisvalid AND indpred IS NULL
            )
            OR NOT EXISTS (
                SELECT FROM pg_trigger
                WHERE tgrelid = child.oid AND NOT tgisinternal AND tgenabled IN ('O', 'A') AND tgtype & 19 = 19
            )
    ), '')
FROM unnest(ARRAY['advertiser', 'campaign', 'impressions', 'clicks']) WITH ORDINALITY AS wanted (name, place)
CROSS JOIN LATERAL (SELECT to_regclass(wanted.name)::oid AS relation) AS found
LEFT JOIN pg_attribute AS stamp ON stamp.attrelid = relation AND stamp.attname = 'inserted_at' AND NOT stamp.attisdropped
ORDER BY wanted.place

-- name: column_types
-- Of a domain the type it stands on: what it is made of is what can be lost.
SELECT
    wanted.name,
    attribute.attname::text,
    CASE WHEN kind.typtype = 'd'
        THEN format_type(kind.typbasetype, kind.typtypmod)
        ELSE format_type(attribute.atttypid, attribute.atttypmod)
    END
FROM unnest(ARRAY['advertiser', 'campaign', 'impressions', 'clicks']) AS wanted (name)
JOIN pg_attribute AS attribute ON attribute.attrelid = to_regclass(wanted.name)::oid
JOIN pg_type AS kind ON kind.oid = attribute.atttypid
WHERE attribute.attnum > 0 AND NOT attribute.attisdropped

-- name: misfits
-- Some campaigns that cannot be kept as they are: of id 0, or with an amount finer or larger than is kept. NaN is more
-- than every number; an amount by its text is exact also where it is a float.
SELECT id::bigint, bid::text, budget::text
FROM campaign
CROSS JOIN LATERAL (SELECT bid::text::numeric AS bid_now, budget::text::numeric AS budget_now) AS amounts
WHERE id = 0
    OR bid_now <> round(bid_now, %(decimals)s) OR abs(bid_now) >= %(limit)s
    OR budget_now <> round(budget_now, %(decimals)s) OR abs(budget_now) >= %(limit)s
ORDER BY id
LIMIT %(most)s

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
        FROM impressions LEFT JOIN campaign ON campaign.id = campaign_id AND campaign.id <> 0
    ) AS shown,
    (
        SELECT count(*) AS events, coalesce(sum(nullif(bid, 'NaN')), 0) AS bids
        FROM clicks LEFT JOIN campaign ON campaign.id = campaign_id AND campaign.id <> 0
    ) AS clicked

-- name: now
SELECT clock_timestamp()

-- name: open_transactions
-- Everyone in this database who has a transaction open, writing or not: a transaction that has not written yet may
-- still write rows stamped with its start. Our own readers are left out: their sessions are read-only, and each holds
-- the lock that mark_reader takes. A name is no mark: behind a pooler a writer can carry ours.
-- Of transactions that follow each other in one message each is stamped with the start of the message, also one that is
-- not begun yet. Of sessions without track_activities nothing is known: they have no start, and are for the caller.
SELECT
    pid,
    coalesce(usename, backend_type)::text,
    coalesce(application_name, ''),
    CASE WHEN state IS DISTINCT FROM 'disabled' THEN coalesce(xact_start, query_start) END AS since
FROM {activity} AS activity
WHERE (datid = (SELECT oid FROM pg_database WHERE datname = current_database()) OR datid IS NULL)
    AND pid <> pg_backend_pid()
    AND (xact_start IS NOT NULL OR state IN ('active', 'fastpath function call', 'disabled'))
    AND backend_type NOT IN ('autovacuum worker', 'autovacuum launcher', 'walsender')
    AND NOT EXISTS (
        SELECT FROM pg_locks AS mark
        WHERE mark.pid = activity.pid AND mark.locktype = 'advisory' AND mark.granted AND mark.mode = 'ShareLock'
            AND mark.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND mark.classid = 1380797513 AND mark.objsubid = 2
            AND mark.objid::bigint = mod((extract(epoch FROM backend_start) * 1000000)::bigint, 2147483647)
    )
ORDER BY since

-- name: pass_snapshots
-- Takes a transaction's number and writes nothing, which read-only sessions may: snapshots count the numbers taken.
SELECT pg_current_xact_id()

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

-- name: newest_ids
SELECT id FROM {table} ORDER BY inserted_at DESC LIMIT %(rows)s

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

-- name: columns
-- Of a domain the type behind it says how a value is read.
SELECT column_of.attname::text, format_type(column_of.atttypid, column_of.atttypmod), base.typname::text, base.typcategory::text
FROM pg_attribute AS column_of
JOIN pg_type AS own ON own.oid = column_of.atttypid
JOIN pg_type AS base ON base.oid = CASE WHEN own.typtype = 'd' THEN own.typbasetype ELSE own.oid END
WHERE column_of.attrelid = to_regclass(quote_ident(%(table)s)) AND column_of.attnum > 0 AND NOT column_of.attisdropped
ORDER BY column_of.attnum

-- name: exact_text
-- How values are written as text until the end of this transaction: in one way, and with nothing lost.
SELECT
    set_config('DateStyle', 'ISO, YMD', true),
    set_config('TimeZone', 'UTC', true),
    set_config('extra_float_digits', '1', true)

-- name: encoding
SELECT getdatabaseencoding()::text

-- name: read_dimension
-- Row by row, whatever is in them: no value is compared or calculated with here, so that none can stop the statement.
SELECT {columns} FROM {table}

-- name: as_text
{column}::text

-- name: as_number
-- Of money: what its text looks like is the server's locale's business.
{column}::numeric::text

-- name: as_bytes
-- As it lies in the database: text that no client encoding could carry would stop the statement.
convert_to({column}::text, {encoding})
