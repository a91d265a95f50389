-- The rows of one of the two tables as they are, with what decides between several rows of one condition.
SELECT
    toString(m.${id}) AS written,
    toString(m.payout_numerators) AS stored_vector,
    toString(m.payout_denominator) AS stored_denominator,
    ${winning_index} AS winning_index,
    ${resolved_at} AS resolved_at,
    ${source} AS stored_source,
    ${recent} AS recent,
    concat(${rest}) AS stored_rest
FROM ${table} AS m ${final}
WHERE match(${normal_id}, {slice:String})
