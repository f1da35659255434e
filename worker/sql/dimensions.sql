-- Statements that bring a snapshot of a dimension from its staging table into place. Only what differs from the
-- version before it is written, so an unchanged dimension costs a comparison. Of a row that is held there is nothing but
-- its id: it cannot be loaded, so its last version stays, and it is not gone.

-- name: create_staging_advertisers
CREATE TABLE {staging}
(
    advertiser_id   Int64,
    advertiser_name String,
    created_at      Nullable(DateTime64(6, 'UTC')),
    updated_at      Nullable(DateTime64(6, 'UTC')),
    held            Bool
)
ENGINE = MergeTree ORDER BY advertiser_id

-- name: create_staging_campaigns
CREATE TABLE {staging}
(
    campaign_id   Int64,
    campaign_name String,
    advertiser_id Nullable(Int64),
    bid_amount    Decimal(18, 6),
    budget_amount Decimal(18, 6),
    start_date    Nullable(Date32),
    end_date      Nullable(Date32),
    created_at    Nullable(DateTime64(6, 'UTC')),
    updated_at    Nullable(DateTime64(6, 'UTC')),
    held          Bool
)
ENGINE = MergeTree ORDER BY campaign_id

-- name: merge_advertisers
INSERT INTO advertiser_dimension (advertiser_id, advertiser_name, is_deleted, created_at, updated_at, _version)
WITH
    known AS
    (
        SELECT advertiser_id, advertiser_name, is_deleted, created_at, updated_at
        FROM advertiser_dimension
        WHERE _version <= %(version)s
        ORDER BY advertiser_id, _version DESC
        LIMIT 1 BY advertiser_id
    )
SELECT advertiser_id, advertiser_name, false, created_at, updated_at, %(version)s
FROM {staging}
WHERE NOT held AND (advertiser_id, advertiser_name, toString(created_at), toString(updated_at)) NOT IN
    (SELECT advertiser_id, advertiser_name, toString(created_at), toString(updated_at) FROM known WHERE NOT is_deleted)
UNION ALL
SELECT advertiser_id, advertiser_name, true, created_at, updated_at, %(version)s
FROM known
WHERE NOT is_deleted AND advertiser_id NOT IN (SELECT advertiser_id FROM {staging})
SETTINGS transform_null_in = 1

-- name: merge_campaigns
-- A version is valid from the source row's updated_at if that is later than the version before it and not later than
-- the snapshot; else from the snapshot. What differs only by the decimals that an older schema cut is the version known,
-- read again: it takes its place, and its days are priced anew.
INSERT INTO campaign_history
    (campaign_id, valid_from, campaign_name, advertiser_id, bid_amount, budget_amount, start_date, end_date, is_deleted,
    created_at, updated_at, _version)
WITH
    known AS
    (
        SELECT * FROM campaign_history
        WHERE _version <= %(version)s
        ORDER BY campaign_id, _version DESC, valid_from DESC
        LIMIT 1 BY campaign_id
    )
SELECT
    fresh.campaign_id,
    multiIf(
        known._version > 0 AND NOT known.is_deleted
            AND known.loaded_at < (SELECT max(applied_at) FROM schema_migrations WHERE name = '0062_campaign_history_money.sql')
            AND (trunc(fresh.bid_amount, 2), trunc(fresh.budget_amount, 2)) = (known.bid_amount, known.budget_amount)
            AND (fresh.bid_amount, fresh.budget_amount) != (known.bid_amount, known.budget_amount)
            AND ifNull(fresh.updated_at = known.updated_at, isNull(fresh.updated_at) AND isNull(known.updated_at)),
        known.valid_from,
        fresh.updated_at > known.valid_from AND fresh.updated_at <= %(taken_at)s, assumeNotNull(fresh.updated_at),
        %(taken_at)s),
    fresh.campaign_name, fresh.advertiser_id, fresh.bid_amount, fresh.budget_amount, fresh.start_date, fresh.end_date,
    false, fresh.created_at, fresh.updated_at, %(version)s
FROM {staging} AS fresh
LEFT JOIN known ON known.campaign_id = fresh.campaign_id
WHERE NOT fresh.held AND (known._version = 0 OR known.is_deleted
    OR (fresh.campaign_name, fresh.bid_amount, fresh.budget_amount) != (known.campaign_name, known.bid_amount, known.budget_amount)
    OR ifNull(fresh.advertiser_id != known.advertiser_id, isNull(fresh.advertiser_id) != isNull(known.advertiser_id))
    OR ifNull(fresh.start_date != known.start_date, isNull(fresh.start_date) != isNull(known.start_date))
    OR ifNull(fresh.end_date != known.end_date, isNull(fresh.end_date) != isNull(known.end_date))
    OR ifNull(fresh.created_at != known.created_at, isNull(fresh.created_at) != isNull(known.created_at))
    OR ifNull(fresh.updated_at != known.updated_at, isNull(fresh.updated_at) != isNull(known.updated_at)))
UNION ALL
SELECT
    campaign_id, %(taken_at)s, campaign_name, advertiser_id, bid_amount, budget_amount, start_date, end_date,
    true, created_at, updated_at, %(version)s
FROM known
WHERE NOT is_deleted AND campaign_id NOT IN (SELECT campaign_id FROM {staging})
SETTINGS join_use_nulls = 0

-- name: staged_count
SELECT countIf(NOT held) FROM {staging}

-- name: alive_advertisers
-- How many rows are known and not deleted.
SELECT countIf(NOT is_deleted)
FROM
(
    SELECT is_deleted FROM advertiser_dimension
    WHERE _version <= %(version)s
    ORDER BY advertiser_id, _version DESC
    LIMIT 1 BY advertiser_id
)

-- name: alive_campaigns
SELECT countIf(NOT is_deleted)
FROM
(
    SELECT is_deleted FROM campaign_history
    WHERE _version <= %(version)s
    ORDER BY campaign_id, _version DESC, valid_from DESC
    LIMIT 1 BY campaign_id
)

-- name: set_aside
-- Rows that the last readings could not load.
SELECT key, row_id, rule, row, run_id, quarantined_at
FROM quarantined_dimension_rows FINAL
WHERE stream = %(stream)s AND state = 'held'
