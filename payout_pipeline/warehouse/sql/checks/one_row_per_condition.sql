-- Rows and conditions of the view; equal where nobody is paid twice.
SELECT
    sum(rows_of_id) AS rows,
    count() AS conditions,
    countIf(rows_of_id > 1) AS doubled,
    arraySort(groupArrayIf(20)(condition_id, rows_of_id > 1)) AS examples
FROM
(
    SELECT condition_id, count() AS rows_of_id
    FROM ${view}
    GROUP BY condition_id
)
