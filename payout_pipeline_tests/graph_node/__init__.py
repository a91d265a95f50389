"""A real graph-node for tests: PostgreSQL, a fake chain, the subgraphs it indexes and the process itself."""
