-- The conditions with more than one row.
SELECT count() AS doubled, arraySort(groupArray(20)(condition_id)) AS examples
FROM (SELECT condition_id FROM ${view} GROUP BY condition_id HAVING count() > 1)
