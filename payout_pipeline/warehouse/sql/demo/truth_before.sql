-- The truth view as it is before the first backfill: the warehouse's own resolutions only.
CREATE VIEW IF NOT EXISTS ${view} AS
SELECT
    toString(condition_id_norm) AS condition_id,
    payout_numerators,
    payout_denominator,
    toInt32(winning_index) AS winning_index,
    resolved_at,
    'market_resolutions_final' AS source
FROM ${market} FINAL
WHERE payout_denominator > 0
