-- The guide's distribution: rows of goldsky-api by denominator and sum. A row is sound where the two are the same.
SELECT
    count() AS count,
    payout_denominator,
    arraySum(payout_numerators) AS sum_check,
    payout_denominator > 0 AND sum_check = payout_denominator AS sound,
    arraySlice(arraySort(groupArraySample(3, 1)(toString(condition_id))), 1, 3) AS examples
FROM ${target} ${final}
WHERE source = {source:String}
GROUP BY payout_denominator, sum_check
ORDER BY sound, count DESC, payout_denominator, sum_check
