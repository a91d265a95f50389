-- The guide's coverage analysis, with each condition counted once.
SELECT
    (SELECT count() FROM ${market} AS m ${market_final}) AS market_rows,
    (SELECT uniqExact(${market_id}) FROM ${market} AS m ${market_final} WHERE ${market_eligible}) AS market_conditions,
    (SELECT uniqExact(${target_id}) FROM ${target} AS m ${target_final} WHERE ${target_eligible}) AS external_conditions,
    (
        SELECT uniqExact(condition_id) FROM
        (
            SELECT ${market_id} AS condition_id FROM ${market} AS m ${market_final} WHERE ${market_eligible}
            UNION ALL
            SELECT ${target_id} AS condition_id FROM ${target} AS m ${target_final} WHERE ${target_eligible}
        )
    ) AS either_conditions,
    ${view_conditions} AS view_conditions,
    ${view_rows} AS view_rows
