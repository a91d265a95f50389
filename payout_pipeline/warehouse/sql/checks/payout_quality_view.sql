-- Rows of the view whose numerators do not sum to the denominator, whichever source they come from. Added up as Int256: a sum
-- that wraps around is none, and neither is one of fractions or NULL.
SELECT
    count() AS rows,
    countIf(NOT sound) AS unsound,
    arraySort(groupArrayIf(20)(id, NOT sound)) AS examples
FROM
(
    SELECT
        ifNull(toString(condition_id), 'NULL') AS id,
        arrayMap(x -> toInt256OrNull(toString(x)), payout_numerators) AS numerators,
        NOT has(numerators, NULL)
            AND arraySum(arrayMap(x -> ifNull(x, toInt256(0)), numerators))
                = ifNull(toInt256OrNull(toString(payout_denominator)), toInt256(-1)) AS sound
    FROM ${view}
)
