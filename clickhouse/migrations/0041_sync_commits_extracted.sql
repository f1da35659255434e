-- Rows a reading of a window brought, counted where they are read; those of commits before this are what became of them.
ALTER TABLE sync_commits ADD COLUMN IF NOT EXISTS extracted UInt64 DEFAULT rows + quarantined COMMENT 'read from the source' AFTER version
