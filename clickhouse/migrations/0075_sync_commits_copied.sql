-- Copies what the ledger keeps. A copy that was broken off goes on where it stopped. A commit written between this and
-- the exchange stays behind in the old table: its window is loaded once more, which costs work and never rows.
INSERT INTO sync_commits_by_month
    (stream, target_uuid, lo, hi, kind, run_id, version, extracted, rows, quarantined, content_hash, system_id, timeline,
    committed_at)
SELECT stream, target_uuid, lo, hi, kind, run_id, version, extracted, rows, quarantined, content_hash, system_id, timeline,
    committed_at
FROM sync_commits
WHERE committed_at >= now64(6, 'UTC') - INTERVAL 400 DAY
    AND cityHash64(stream, target_uuid, lo, hi, kind, run_id, version, committed_at) NOT IN
    (SELECT cityHash64(stream, target_uuid, lo, hi, kind, run_id, version, committed_at) FROM sync_commits_by_month)
SETTINGS max_partitions_per_insert_block = 0, max_execution_time = 0
