-- The view's rows, to be compared with the two tables' (source_rows.sql), which are put together outside of the database.
SELECT
    ifNull(toString(condition_id), 'NULL') AS id,
    toString(payout_numerators) AS vector,
    toString(payout_denominator) AS denominator,
    toString(winning_index) AS winning_index,
    toInt64(ifNull(toUnixTimestamp(resolved_at), 0)) AS resolved_at,
    toString(source) AS source
FROM ${view}
WHERE match(ifNull(toString(condition_id), ''), {slice:String})
