-- Rows and conditions of the view; equal where nobody is paid twice.
SELECT count() AS rows, uniqExact(ifNull(toString(condition_id), 'NULL')) AS conditions FROM ${view}
