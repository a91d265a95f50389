-- The rows that the target holds of the ids in `asked`, however the ids are written there, as text.
SELECT
    ${id} AS condition_id,
    toString(m.condition_id) AS written,
    toString(m.source) AS source,
    toString(m.payout_numerators) AS numerators,
    toString(m.payout_denominator) AS denominator,
    toInt64(m.winning_index) AS winning_index,
    ifNull(toInt64(toUnixTimestamp(m.resolved_at)), 0) AS resolved_at
FROM ${target} AS m FINAL
WHERE ${id} IN (SELECT condition_id FROM {asked:Identifier})
ORDER BY condition_id, written, source
${consistency}
