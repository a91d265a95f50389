SELECT
    ${id} AS condition_id,
    ${numerators} AS payout_numerators,
    ${denominator} AS payout_denominator,
    ${winning_index} AS winning_index,
    ${resolved_at} AS resolved_at,
    ${source} AS source
FROM ${table} AS m ${final}
WHERE ${eligible}
ORDER BY ${order}
LIMIT 1 BY condition_id
