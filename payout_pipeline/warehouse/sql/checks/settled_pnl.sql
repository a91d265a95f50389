-- Wallets with settled P&L and its total, and whether a wallet stands in the view more than once.
SELECT
    count() AS rows,
    uniqExact(wallet) AS wallets,
    uniqExactIf(wallet, pnl != 0) AS wallets_with_pnl,
    sum(pnl) AS total,
    ${redemption_total} AS redemption_total,
    ${positions} AS positions,
    ${not_added_up} AS not_added_up
FROM
(
    SELECT toString(${wallet}) AS wallet, toFloat64(ifNull(${pnl}, 0)) AS pnl, ${others}
    FROM ${view} AS m
)
