-- The conditions with more than one row.
SELECT count() AS doubled, arraySort(groupArray(20)(id)) AS examples
FROM (SELECT ifNull(toString(condition_id), 'NULL') AS id FROM ${view} GROUP BY id HAVING count() > 1)
