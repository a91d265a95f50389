-- Rows of the view without a vector (NULL, empty, all zero, NaN, or such a denominator), and how many rows there are at all.
SELECT
    count() AS rows,
    countIf(NOT paid) AS without_vector,
    arraySort(groupArrayIf(20)(id, NOT paid)) AS examples
FROM
(
    SELECT
        ifNull(toString(condition_id), 'NULL') AS id,
        notEmpty(payout_numerators)
            AND arrayAll(x -> isFinite(toFloat64(ifNull(x, nan))) AND toFloat64(ifNull(x, nan)) >= 0, payout_numerators)
            AND arrayExists(x -> toFloat64(ifNull(x, 0)) > 0, payout_numerators)
            AND isFinite(toFloat64(ifNull(payout_denominator, nan)))
            AND toFloat64(ifNull(payout_denominator, nan)) > 0 AS paid
    FROM ${view}
)
