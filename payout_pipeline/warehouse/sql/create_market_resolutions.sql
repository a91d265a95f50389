-- The user's table as it is in the live system, empty; made in embedded mode only.
CREATE TABLE IF NOT EXISTS ${table}
(
    condition_id_norm FixedString(64),
    payout_numerators Array(UInt8),
    payout_denominator UInt8,
    outcome_count UInt8,
    winning_outcome LowCardinality(String),
    winning_index UInt16 DEFAULT 0,
    resolved_at Nullable(DateTime),
    updated_at DateTime,
    source LowCardinality(String),
    version UInt8
)
ENGINE = ReplacingMergeTree(updated_at)
ORDER BY condition_id_norm
