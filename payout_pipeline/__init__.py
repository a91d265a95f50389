"""Polymarket payout vectors from a Goldsky subgraph into ClickHouse, orchestrated with Dagster."""

import os

# Arrow reads this when it is loaded, and every process loads this package first. Its own allocator keeps what each of a
# worker's threads has freed (45 MB of a worker) and takes longer here than the system's, which can give it back.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
