-- The guide's coverage analysis, with each condition counted once.
SELECT market_rows, market_conditions, external_conditions, either_conditions, view_conditions, view_rows
FROM
(
    SELECT
        countIf(of_market) AS market_conditions,
        countIf(of_target) AS external_conditions,
        count() AS either_conditions
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
) AS tables
CROSS JOIN (SELECT count() AS market_rows FROM ${market} AS m ${market_final}) AS market
CROSS JOIN (${view_counts}) AS seen
