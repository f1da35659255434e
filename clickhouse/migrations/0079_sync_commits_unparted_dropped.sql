-- Drops the ledger as it was.
DROP TABLE IF EXISTS sync_commits_by_month SYNC
