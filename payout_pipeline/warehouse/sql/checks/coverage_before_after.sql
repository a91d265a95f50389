-- The guide's coverage analysis, with each condition counted once.
SELECT market_rows, market_conditions, external_conditions, either_conditions, view_conditions, view_rows
FROM
(
    SELECT
        uniqExactIf(condition_id, of_market) AS market_conditions,
        uniqExactIf(condition_id, NOT of_market) AS external_conditions,
        uniqExact(condition_id) AS either_conditions
    FROM
    (
        SELECT ${market_id} AS condition_id, true AS of_market
        FROM ${market} AS m ${market_final} WHERE ${market_eligible}
        UNION ALL
        SELECT ${target_id} AS condition_id, false AS of_market
        FROM ${target} AS m ${target_final} WHERE ${target_eligible}
    )
) AS tables
CROSS JOIN (SELECT count() AS market_rows FROM ${market} AS m ${market_final}) AS market
CROSS JOIN (${view_counts}) AS seen
