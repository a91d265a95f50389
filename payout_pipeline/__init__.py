"""Polymarket payout vectors from a Goldsky subgraph into ClickHouse, orchestrated with Dagster."""
