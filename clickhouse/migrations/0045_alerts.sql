-- Incidents, as far as somebody was to be told; read with FINAL. One row an incident, from when it began to when it was over.
CREATE TABLE IF NOT EXISTS alerts
(
    incident     String COMMENT 'what is wrong with what, such as freshness/clicks',
    began_at     DateTime64(6, 'UTC'),
    ended_at     Nullable(DateTime64(6, 'UTC')),
    severity     Enum8('error' = 1, 'warn' = 2),
    message      String,
    told_as      Enum8('' = 0, 'error' = 1, 'warn' = 2) COMMENT 'how bad the last message about it said it was',
    told_at      Nullable(DateTime64(6, 'UTC')) COMMENT 'when that message went out',
    told_over_at Nullable(DateTime64(6, 'UTC')) COMMENT 'when the message that it is over went out',
    updated_at   DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = ReplacingMergeTree(updated_at)
ORDER BY (incident, began_at)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
