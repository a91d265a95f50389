-- Of the ids in `resolved`: those that the view does not have, or has without a vector.
SELECT r.condition_id AS condition_id
FROM {resolved:Identifier} AS r
WHERE r.condition_id NOT IN
(
    SELECT condition_id FROM ${view}
    WHERE payout_denominator > 0 AND notEmpty(payout_numerators)
)
ORDER BY condition_id
