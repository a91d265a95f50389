-- The guide's totals, by source: rows and distinct conditions, each condition counted once however its id is written.
SELECT
    toString(m.source) AS source,
    count() AS total_payouts,
    uniqExact(${id}) AS unique_conditions
FROM ${target} AS m ${final}
GROUP BY source
ORDER BY total_payouts DESC, source
