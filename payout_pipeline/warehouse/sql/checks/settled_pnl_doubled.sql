-- Wallets that are in the P&L view more than once: each further row is paid again.
SELECT assumeNotNull(${wallet}) AS wallet, count() AS rows_of_wallet
FROM ${view} AS m
WHERE isNotNull(${wallet})
GROUP BY wallet
HAVING rows_of_wallet > 1
ORDER BY rows_of_wallet DESC, wallet
LIMIT 20
