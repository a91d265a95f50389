"""What the local subgraph serves, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from payout_pipeline.errors import ConfigurationError
from payout_pipeline.subgraph.chain import Chain
from payout_pipeline.subgraph.engine import DEFAULT_DEPLOYMENT, Engine, Limits
from payout_pipeline.subgraph.schema import SchemaName
from payout_pipeline.subgraph.store import ConditionStore


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most ``requests`` in any window of ``seconds``."""

    requests: int
    seconds: float

    @classmethod
    def parse(cls, text: str) -> RateLimit:
        """``50/10s``. Raises :class:`~payout_pipeline.errors.ConfigurationError`."""
        count, _, window = text.strip().partition("/")
        try:
            limit = cls(int(count), float(window.strip().removesuffix("s")))
        except ValueError:
            limit = cls(0, 0.0)
        if limit.requests < 1 or not (0 < limit.seconds < math.inf):
            raise ConfigurationError(f"a rate limit is written like 50/10s, not {text!r}")
        return limit


@dataclass(frozen=True, slots=True)
class SubgraphConfig:
    """What to serve and how.

    ``conditions``/``unresolved``: files (see :meth:`ConditionStore.from_files`), or ``store`` made by hand.
    ``rate_limit``: ``50/10s`` or None; ``retry_after`` of a 429: ``seconds`` (until there is room), ``date`` (the same
    as an HTTP date), None (no header) or any text, sent as it is. ``latency``/``jitter``: seconds; the jitter is spread
    evenly around the latency. ``token``: bearer token that every request must have. ``chain``: head and block times,
    by default those of Polygon up to now, with ``advancing`` growing on. ``earliest_block``: what was before is pruned.
    ``limits``: of one query; ``max_body_bytes``: larger requests are answered 413. ``log_ids``: whether the log keeps
    the ids of every request, about 115 bytes each.
    """

    conditions: Path | None = None
    unresolved: Path | None = None
    store: ConditionStore | None = None
    schema: SchemaName = "payouts"
    host: str = "127.0.0.1"
    port: int = 0
    names: tuple[str, ...] = ("positions", "positions-subgraph", "pnl", "pnl-subgraph")
    versions: tuple[str, ...] = ("0.0.7", "0.0.14", "prod")
    rate_limit: str | None = None
    retry_after: str | None = "seconds"
    latency: float = 0.0
    jitter: float = 0.0
    token: str | None = None
    chain: Chain | None = None
    advancing: bool = False
    earliest_block: int = 0
    limits: Limits = field(default_factory=Limits)
    max_body_bytes: int = 64 * 1024 * 1024
    deployment: str = DEFAULT_DEPLOYMENT
    seed: int = 0
    log_ids: bool = True

    def engine(self) -> Engine:
        """Loads the data. Raises :class:`~payout_pipeline.errors.ConfigurationError` for what cannot be served."""
        chain = self.chain or Chain.until_now(advancing=self.advancing)
        store = self.store
        if store is None:
            if self.conditions is None:
                raise ConfigurationError("the local subgraph needs a CSV of condition_id,payouts,resolved_at")
            store = ConditionStore.from_files(self.conditions, self.unresolved, chain)
        return Engine(
            store,
            chain,
            self.schema,
            limits=self.limits,
            deployment=self.deployment,
            earliest_block=self.earliest_block,
        )
