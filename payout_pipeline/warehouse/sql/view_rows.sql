SELECT count() AS view_rows FROM ${view}
