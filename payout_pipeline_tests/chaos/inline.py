"""The whole backfill without Dagster and without processes: fetch, load, view, one after the other in this process.

The same functions in the same order as the assets call them, so a fault can be looked at in a second; what depends on
processes, signals and Dagster is tested with real ones (``world``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from payout_pipeline.fetch import FetchSummary, fetch_worker
from payout_pipeline.ingest import ingest_worker
from payout_pipeline.settings import Settings, load_settings
from payout_pipeline.subgraph.generate import generate
from payout_pipeline.subgraph.server import SubgraphConfig, SubgraphServer
from payout_pipeline.truth import rebuild_truth
from payout_pipeline.warehouse.client import Warehouse
from payout_pipeline.warehouse.load import LoadResult
from payout_pipeline_tests.chaos.world import TOKEN, truth_of
from payout_pipeline_tests.oracle import Evidence, Truth, judge


class Remembering(logging.Handler):
    """Keeps what was logged, rendered."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@dataclass
class Inline:
    """One case: its data, its subgraph, its settings and what was logged."""

    root: Path
    env: dict[str, str]
    truth: Truth
    ids: list[str]
    server: SubgraphServer
    log: logging.Logger
    said: Remembering = field(default_factory=Remembering)

    @property
    def settings(self) -> Settings:
        """The settings of ``env``, read anew."""
        return load_settings(self.env)

    @property
    def runtime(self) -> Path:
        """The runtime directory."""
        return Path(self.env["PAYOUT_RUNTIME_DIR"])

    @property
    def ids_file(self) -> Path:
        """The input."""
        return Path(self.env["CONDITION_IDS_FILE"])

    @property
    def log_text(self) -> str:
        """Everything that was logged."""
        return "\n".join(self.said.lines)

    def fetch(self, worker: int = 1, **options: Any) -> FetchSummary:
        """One worker's fetch."""
        return fetch_worker(self.settings, worker, log=self.log, **options)

    def load(self, worker: int = 1) -> LoadResult:
        """One worker's load."""
        return ingest_worker(self.settings, worker, log=self.log).load

    def backfill(self) -> list[LoadResult]:
        """Everything: each worker, then the view."""
        loads = []
        for worker in range(1, self.settings.workers + 1):
            self.fetch(worker)
            loads.append(self.load(worker))
        rebuild_truth(self.settings, log=self.log)
        return loads

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """Rows of the database, past everything that the pipeline computes."""
        with Warehouse(self.settings).session("reading in a test") as session:
            return session.rows(sql, doing="reading in a test")

    def command(self, sql: str) -> None:
        """A statement as somebody else would run it."""
        with Warehouse(self.settings).session("a test") as session:
            session.command(sql, doing="preparing a test")

    def assert_right(self, **changes: Any) -> None:
        """The oracle finds nothing."""
        facts: dict[str, Any] = {
            "target": self.env.get("PAYOUT_TARGET_TABLE", "default.resolutions_external_ingest"),
            "runtime": self.runtime, "truth": self.truth, "workers": self.settings.workers, "rows": self.rows,
            "requests": self.server.log.entries,
            "view": self.env.get("PAYOUT_TRUTH_VIEW", "cascadian_clean.vw_resolutions_truth"), "secrets": (TOKEN,),
        }  # fmt: skip
        found = judge(Evidence(**{**facts, **changes}))
        assert not found, "\n".join(map(str, found)) + "\n" + self.log_text[-3000:]

    def statuses(self) -> dict[str, str]:
        """Status by id, of all finished ledgers."""
        from payout_pipeline_tests.oracle import ledger_rows

        return {
            str(row["condition_id"]): str(row["status"]) for row in ledger_rows(self.runtime, self.settings.workers)
        }


@contextmanager
def inline(
    root: Path, *, ids: int = 300, seed: int = 1, workers: int = 1, config: dict[str, Any] | None = None,
    keep_engine_open: bool = False, **env: str,
) -> Iterator[Inline]:  # fmt: skip
    """A case under ``root``; ``env`` adds variables, ``config`` changes the subgraph.

    ``keep_engine_open`` opens the embedded engine once for all that the case does in this process: faster, and no
    other process can open it meanwhile.
    """
    data = generate(ids, seed, root / "data")
    options: dict[str, Any] = {"conditions": data.conditions, "seed": seed, "token": TOKEN, "advancing": True}
    with ExitStack() as stack:
        server = stack.enter_context(SubgraphServer(SubgraphConfig(**{**options, **(config or {})})))
        logger = logging.Logger(f"case {root.name}")
        case = Inline(
            root=root, truth=truth_of(data.ids, data.conditions), ids=data.ids.read_text().split(), server=server, log=logger,
            env={
                "CONDITION_IDS_FILE": str(data.ids), "PAYOUT_RUNTIME_DIR": str(root / "runtime"),
                "PAYOUT_WORKERS": str(workers), "GOLDSKY_ENDPOINT": server.url, "GOLDSKY_API_TOKEN": TOKEN,
                "GOLDSKY_BATCH_SIZE": "100", "GOLDSKY_BATCHES_PER_REQUEST": "1",
                "GOLDSKY_RATE_LIMIT": "1000/1s", "GOLDSKY_TIMEOUT_SECONDS": "10",
                "GOLDSKY_OUTAGE_BUDGET_SECONDS": "5", "PAYOUT_PNL_VIEW": "", **env,
            },
        )  # fmt: skip
        logger.addHandler(case.said)
        client_logger = logging.getLogger("payout_pipeline")
        before = client_logger.level
        client_logger.setLevel(logging.INFO)
        client_logger.addHandler(case.said)
        stack.callback(client_logger.setLevel, before)
        stack.callback(client_logger.removeHandler, case.said)
        if keep_engine_open:
            stack.enter_context(Warehouse(case.settings).session("the case"))
        yield case
