-- Five rows of goldsky-api, each judged on its own.
SELECT
    toString(condition_id) AS condition_id,
    toString(payout_numerators) AS payout_numerators,
    toString(payout_denominator) AS payout_denominator,
    toInt64(winning_index) AS winning_index,
    multiIf(
        length(toString(m.condition_id)) != 64 OR match(toString(m.condition_id), '[^0-9a-f]'), 'the id is not 64 lower-case hex digits',
        length(m.payout_numerators) < 2, 'fewer than two outcomes',
        m.payout_denominator <= 0, 'the denominator is not positive',
        arraySum(arrayMap(x -> toInt256(x), m.payout_numerators)) != toInt256(m.payout_denominator), 'the numerators do not sum to the denominator',
        toInt64(m.winning_index) != if(
            countEqual(m.payout_numerators, arrayMax(m.payout_numerators)) = 1,
            toInt64(indexOf(m.payout_numerators, arrayMax(m.payout_numerators))) - 1,
            -1), 'the winning index does not point at the largest payout',
        '') AS defect
FROM ${target} AS m ${final}
WHERE source = {source:String}
LIMIT 5
