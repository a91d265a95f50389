-- The guide's distribution: rows of goldsky-api by denominator and sum. A row is sound where the two are the same.
SELECT
    count() AS count,
    toString(m.payout_denominator) AS payout_denominator,
    toString(arraySum(m.payout_numerators)) AS sum_check,
    m.payout_denominator > 0 AND arraySum(m.payout_numerators) = m.payout_denominator AS sound,
    arraySlice(arraySort(groupArraySample(3, 1)(toString(m.condition_id))), 1, 3) AS examples
FROM ${target} AS m ${final}
WHERE source = {source:String}
GROUP BY m.payout_denominator, arraySum(m.payout_numerators)
ORDER BY sound, count DESC, m.payout_denominator, arraySum(m.payout_numerators)
