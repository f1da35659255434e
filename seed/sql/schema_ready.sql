-- True if every table, the columns an original-project database lacks, and every trigger are in place.
SELECT
    (
        SELECT count(*) = 4
        FROM unnest(ARRAY['advertiser', 'campaign', 'impressions', 'clicks']) AS wanted (name)
        WHERE to_regclass(wanted.name) IS NOT NULL
    )
    AND (
        SELECT count(*) = 2
        FROM pg_attribute
        WHERE attrelid IN (to_regclass('impressions'), to_regclass('clicks'))
          AND attname = 'inserted_at'
          AND atttypid = 'timestamptz'::regtype
          AND attnotnull
          AND atthasdef
          AND NOT attisdropped
    )
    AND NOT EXISTS (
        SELECT
        FROM pg_attribute
        WHERE attrelid IN (
                to_regclass('advertiser'), to_regclass('campaign'), to_regclass('impressions'), to_regclass('clicks')
            )
          AND attname IN ('id', 'advertiser_id', 'campaign_id', 'updated_at', 'created_at')
          AND atttypid IN ('integer'::regtype, 'timestamp'::regtype)
          AND NOT attisdropped
    )
    AND (
        SELECT count(*) = 4
        FROM pg_trigger
        WHERE (tgrelid, tgname) IN (
            (to_regclass('impressions'), 'impressions_move_inserted_at'),
            (to_regclass('clicks'), 'clicks_move_inserted_at'),
            (to_regclass('advertiser'), 'advertiser_touch_updated_at'),
            (to_regclass('campaign'), 'campaign_touch_updated_at')
        )
    )
