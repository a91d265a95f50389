SELECT
    ${id} AS condition_id,
    concat(toString(m.payout_numerators), '/', toString(m.payout_denominator)) AS vector,
    toInt64(m.winning_index) AS winning_index,
    toString(m.source) AS source
FROM ${table} AS m ${final}
WHERE ${id} IN {ids:Array(String)}
ORDER BY condition_id, source
