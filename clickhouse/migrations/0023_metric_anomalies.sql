-- What the detector found; read with FINAL. Each run replaces what earlier runs said of the same subject; an anomaly
-- that a run over the same day no longer finds is withdrawn.
CREATE TABLE IF NOT EXISTS metric_anomalies
(
    date_id           Date32,
    campaign_id       Int64,
    kind              LowCardinality(String) COMMENT 'ctr up, ctr down, volume up, volume down, spend over pace, silence, bot-like hours',
    observed          Float64,
    expected          Float64,
    expected_low      Float64,
    expected_high     Float64,
    p_value           Float64 COMMENT 'how likely a value at least this far off is without any fault',
    q_value           Float64 COMMENT 'the same, corrected for everything the run looked at (Benjamini-Hochberg)',
    hours             Array(UInt8) COMMENT 'hours of the day that stand out',
    explanation       String,
    known_causes      Array(String) COMMENT 'what the pipeline knows that could explain it',
    detected_at       DateTime64(6, 'UTC'),
    is_withdrawn      Bool
)
ENGINE = ReplacingMergeTree(detected_at)
PARTITION BY toYYYYMM(date_id)
ORDER BY (date_id, campaign_id, kind)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1
