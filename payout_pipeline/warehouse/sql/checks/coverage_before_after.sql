-- The guide's coverage analysis, with each condition counted once.
SELECT
    countIf(of_market) AS market,
    countIf(of_target) AS external,
    count() AS either
FROM
(
    SELECT condition_id, max(from_market) AS of_market, max(NOT from_market) AS of_target
    FROM
    (
        SELECT ${market_id} AS condition_id, true AS from_market
        FROM ${market} AS m ${market_final} WHERE ${market_eligible}
        UNION ALL
        SELECT ${target_id} AS condition_id, false AS from_market
        FROM ${target} AS m ${target_final} WHERE ${target_eligible}
    )
    GROUP BY condition_id
)
