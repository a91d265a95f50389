SELECT uniqExact(condition_id) AS view_conditions, count() AS view_rows FROM ${view}
