-- Puts the new ledger in place, in one metadata operation. Doing it twice would undo it.
-- unless: SELECT count() FROM system.tables WHERE database = currentDatabase() AND name = 'sync_commits' AND partition_key != ''
EXCHANGE TABLES sync_commits AND sync_commits_by_month
