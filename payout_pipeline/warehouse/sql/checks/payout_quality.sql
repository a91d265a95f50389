-- The guide's distribution: rows of goldsky-api by denominator and sum. A row is sound where the two are the same; the sum is one
-- of Int256, as one of UInt64 wraps around.
WITH arraySum(arrayMap(x -> toInt256(x), m.payout_numerators)) AS total
SELECT
    count() AS count,
    toString(m.payout_denominator) AS payout_denominator,
    toString(total) AS sum_check,
    m.payout_denominator > 0 AND total = toInt256(m.payout_denominator) AS sound,
    arraySlice(arraySort(groupArraySample(3, 1)(toString(m.condition_id))), 1, 3) AS examples
FROM ${target} AS m ${final}
WHERE source = {source:String}
GROUP BY m.payout_denominator, total
ORDER BY sound, count DESC, m.payout_denominator, total
