-- Conditions with a usable external row: where does the view take them from?
SELECT
    countIf(is_external) AS eligible,
    countIf(is_external AND seen_from_market) AS from_market,
    countIf(is_external AND seen AND NOT seen_from_market) AS from_external,
    countIf(is_external AND NOT seen) AS missing,
    arraySort(groupArrayIf(20)(condition_id, is_external AND NOT seen)) AS examples
FROM
(
    SELECT
        condition_id,
        max(kind = 0) AS is_external,
        max(kind > 0) AS seen,
        max(kind = 2) AS seen_from_market
    FROM
    (
        SELECT ${target_id} AS condition_id, 0 AS kind
        FROM ${target} AS m ${target_final}
        WHERE ${target_eligible}
        UNION ALL
        SELECT ifNull(toString(condition_id), '') AS condition_id, if(source = '${market_name}', 2, 1) AS kind
        FROM ${view}
    )
    GROUP BY condition_id
)
