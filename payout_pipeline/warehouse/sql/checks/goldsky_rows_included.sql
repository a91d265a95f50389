-- Conditions with a usable external row: where does the view take them from?
WITH
    external AS
    (
        SELECT DISTINCT ${target_id} AS condition_id
        FROM ${target} AS m ${target_final}
        WHERE ${target_eligible}
    ),
    seen AS
    (
        SELECT condition_id, anyLast(source) AS source
        FROM ${view}
        GROUP BY condition_id
    )
SELECT
    count() AS eligible,
    countIf(s.source = '${market_name}') AS from_market,
    countIf(s.source NOT IN ('', '${market_name}')) AS from_external,
    countIf(s.source = '') AS missing,
    arraySort(groupArrayIf(20)(e.condition_id, s.source = '')) AS examples
FROM external AS e
LEFT JOIN seen AS s ON s.condition_id = e.condition_id
