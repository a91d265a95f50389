"""Numbers → verdicts: what each asset check compares, and what its numbers mean. No Dagster here."""
