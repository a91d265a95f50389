-- Wallets with settled P&L and its total; rows without a wallet, numbers that are none, totals that do not add up.
SELECT
    count() AS rows,
    uniqExact(wallet) AS wallets,
    countIf(isNull(wallet)) AS without_wallet,
    countIf(not_a_number) AS not_numbers,
    sumIf(pnl, isFinite(pnl)) AS total,
    sumIf(redemption, isFinite(redemption)) AS redemptions,
    countIf(off) AS not_added_up
FROM
(
    SELECT
        ${wallet} AS wallet,
        toFloat64(ifNull(${pnl}, nan)) AS pnl,
        toFloat64(ifNull(${redemption}, nan)) AS redemption,
        ${not_a_number} AS not_a_number,
        ${off} AS off
    FROM ${view} AS m
)
