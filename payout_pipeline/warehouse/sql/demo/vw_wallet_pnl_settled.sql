-- The user's view as it is in the live system: every row of the truth view pays once.
CREATE VIEW IF NOT EXISTS ${view} AS
SELECT
    wallet,
    sum(cash) AS trading_pnl,
    sum(redeemed) AS redemption_pnl,
    trading_pnl + redemption_pnl AS total_pnl,
    sum(abs(cash)) AS total_volume,
    sum(trades) AS trade_count,
    count() AS positions_settled,
    sum(redeemed) AS settled_value
FROM
(
    SELECT
        t.wallet AS wallet,
        t.cash_net AS cash,
        t.shares_net * arrayElement(r.payout_numerators, t.outcome_index + 1) / r.payout_denominator AS redeemed,
        t.trades AS trades
    FROM ${trades} AS t
    INNER JOIN ${truth} AS r
        ON r.condition_id = lower(replaceRegexpOne(t.condition_id, '^0[xX]', ''))
)
GROUP BY wallet
