-- What the ledger added up to before there was a view to do so, from the table it was in, which has everything. A commit
-- that begins at the origin proves that everything before its end was loaded; each checkpoint there was is one. In one
-- block, so that it is there whole or not at all. Commits written after the exchange and before the view is there are not
-- in the sums, which is a second at most; nothing but screens and the newest version reads them. A worker of this version
-- that runs already may have written checkpoints by now, which are no sums.
-- unless: SELECT (SELECT countIf(windows > 0) FROM sync_totals) + (SELECT count() = 0 FROM system.tables WHERE database = currentDatabase() AND name = 'sync_commits_by_month')
INSERT INTO sync_totals
    (stream, target_uuid, generation, checkpoint, windows, loaded, set_aside, newest_version, last_commit_at)
SELECT
    stream,
    target_uuid,
    toUInt8(bitShiftRight(version, 56)) AS of_generation,
    maxIf(hi, lo = toDateTime64('1970-01-01 00:00:00', 6, 'UTC')),
    countIf(kind = 'window'),
    sumIf(rows, kind = 'window'),
    sumIf(quarantined, kind = 'window'),
    max(version),
    max(committed_at)
FROM sync_commits_by_month
GROUP BY stream, target_uuid, of_generation
SETTINGS max_execution_time = 0, max_insert_threads = 1, min_insert_block_size_rows = 100000000, min_insert_block_size_bytes = 0
