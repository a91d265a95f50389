-- Rows of the view without a vector, and how many rows there are at all.
SELECT
    count() AS rows,
    countIf(payout_denominator = 0 OR empty(payout_numerators)) AS without_vector
FROM ${view}
