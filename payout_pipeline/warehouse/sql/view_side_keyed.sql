SELECT
    ${id} AS condition_id,
    ${numerators} AS payout_numerators,
    ${denominator} AS payout_denominator,
    ${winning_index} AS winning_index,
    ${resolved_at} AS resolved_at,
    ${source} AS source
FROM ${table} AS m ${final}
WHERE ${raw} = ${id} AND ${eligible}
UNION ALL
SELECT condition_id, payout_numerators, payout_denominator, winning_index, resolved_at, source
FROM
(
    SELECT
        ${id} AS condition_id,
        ${numerators} AS payout_numerators,
        ${denominator} AS payout_denominator,
        ${winning_index} AS winning_index,
        ${resolved_at} AS resolved_at,
        ${source} AS source
    FROM ${table} AS m ${final}
    WHERE ${raw} IN (SELECT ${raw} FROM ${table} AS m WHERE ${raw} != ${id})
        AND ${eligible}
        AND ${id} NOT IN
        (
            SELECT ${raw} FROM ${table} AS m ${final}
            WHERE ${raw} IN (SELECT ${id} FROM ${table} AS m WHERE ${raw} != ${id}) AND ${eligible}
        )
    ORDER BY ${order}
    LIMIT 1 BY condition_id
)
