"""What Dagster materializes, one file an asset; each is a thin layer over plain functions."""
