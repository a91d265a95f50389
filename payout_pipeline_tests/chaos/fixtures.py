"""Fixtures of the reliability tests: one nursery of processes for all of them, and a place on the shared HTTP front."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from payout_pipeline_tests.chaos.inline import Inline, inline
from payout_pipeline_tests.chaos.processes import Nursery
from payout_pipeline_tests.chaos.world import PASSWORD, ask_front
from payout_pipeline_tests.clickhouse_front import Front


def variants(*values: Any) -> list[Any]:
    """Parameters that only the long suite tries, beside one that the short suite tries, too."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Starts real commands without paying their imports each time."""
    with Nursery() as made:
        yield made


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Inline]:
    """300 ids, one worker, batches of 100, embedded database."""
    with inline(tmp_path) as made:
        yield made


@dataclass
class Served:
    """A database of its own on the front. ``env``: the variables that lead a case there."""

    front: Front
    database: str

    @property
    def env(self) -> dict[str, str]:
        host, _, port = self.front.url.removeprefix("http://").partition(":")
        return {
            "CLICKHOUSE_HOST": host, "CLICKHOUSE_PORT": port, "CLICKHOUSE_USER": "writer", "CLICKHOUSE_PASSWORD": PASSWORD,
            "CLICKHOUSE_WAIT_SECONDS": "20", "PAYOUT_TARGET_TABLE": f"{self.database}.resolutions_external_ingest",
            "PAYOUT_TRUTH_VIEW": f"{self.database}.vw_resolutions_truth",
            "PAYOUT_MARKET_RESOLUTIONS_TABLE": f"{self.database}.market_resolutions_final",
        }  # fmt: skip

    def ask(self, sql: str) -> bytes:
        """Straight over HTTP; ``{db}`` is the database."""
        return ask_front(self.front, sql.replace("{db}", self.database))


@pytest.fixture
def served(clickhouse_front: Front) -> Iterator[Served]:
    """The shared front with the user's tables in a fresh database; no fault is left on it."""
    made = Served(clickhouse_front, f"reliability_{uuid.uuid4().hex[:10]}")
    ddl = (files("payout_pipeline.warehouse.sql") / "create_market_resolutions.sql").read_text()
    made.ask("CREATE DATABASE {db}")
    made.ask(ddl.replace("${table}", "{db}.market_resolutions_final"))
    clickhouse_front.faults()
    yield made
    if not clickhouse_front.alive:
        clickhouse_front.stop(kill=True)
        clickhouse_front.start()
    clickhouse_front.faults()
    made.ask("DROP DATABASE {db}")
