"""Reading the file of condition ids in the forms that people have: text, CSV, JSON, Parquet, each a module."""
