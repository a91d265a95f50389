SELECT uniqExact(condition_id) AS conditions, count() AS rows FROM ${view}
