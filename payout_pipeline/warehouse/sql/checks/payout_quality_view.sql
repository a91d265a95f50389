-- Rows of the view whose numerators do not sum to the denominator, whichever source they come from.
SELECT
    count() AS rows,
    countIf(NOT sound) AS unsound,
    arraySort(groupArrayIf(20)(id, NOT sound)) AS examples
FROM
(
    SELECT
        toString(condition_id) AS id,
        abs(toFloat64(ifNull(arraySum(payout_numerators), 0)) - toFloat64(ifNull(payout_denominator, -1)))
            <= 1e-9 * toFloat64(ifNull(payout_denominator, -1)) AS sound
    FROM ${view}
)
