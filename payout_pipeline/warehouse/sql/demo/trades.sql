CREATE TABLE IF NOT EXISTS ${table}
(
    wallet String,
    condition_id String,
    outcome_index UInt8,
    shares_net Float64,
    cash_net Float64,
    trades UInt64
)
ENGINE = MergeTree
ORDER BY (wallet, condition_id, outcome_index)
