-- Rows and conditions of the view; equal where nobody is paid twice.
SELECT count() AS rows, uniqExact(condition_id) AS conditions FROM ${view}
