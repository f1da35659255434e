-- Adds every commit to the totals as it is written. A commit that is sent again under its token is added once.
CREATE MATERIALIZED VIEW IF NOT EXISTS sync_totals_adding TO sync_totals AS
SELECT
    stream,
    target_uuid,
    toUInt8(bitShiftRight(version, 56)) AS generation,
    countIf(kind = 'window') AS windows,
    sumIf(rows, kind = 'window') AS loaded,
    sumIf(quarantined, kind = 'window') AS set_aside,
    max(version) AS newest_version,
    max(committed_at) AS last_commit_at
FROM sync_commits
GROUP BY stream, target_uuid, generation
