"""ClickHouse for tests: the same tests run embedded and over HTTP, each in a database of its own.

With ``CLICKHOUSE_TEST_URL`` (``http://user:password@host:8123``) they run against that server, too; the databases
made there are dropped at the end of each test.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from payout_pipeline.settings import Settings, load_settings
from payout_pipeline.warehouse.client import Session, Warehouse
from payout_pipeline.warehouse.identifiers import QualifiedName
from payout_pipeline.warehouse.target import TargetTable, ensure_target
from payout_pipeline_tests.clickhouse_front import Front, running

LEDGER = pa.schema(
    [
        ("condition_id", pa.string()),
        ("status", pa.string()),
        ("payouts", pa.string()),
        ("payout_numerators", pa.list_(pa.uint64())),
        ("payout_denominator", pa.uint64()),
        ("winning_index", pa.int32()),
        ("resolved_at", pa.timestamp("s", "UTC")),
        ("block_number", pa.uint64()),
        ("fetched_at", pa.timestamp("ms", "UTC")),
        ("error", pa.string()),
    ]
)
FETCHED_MS = 1_760_000_000_000
WRITER = ("writer", "wr1ter-pass")


def condition(number: int) -> str:
    """A condition id that is the same in every run."""
    return f"{(number + 1) * 0x9E3779B97F4A7C15 % 2**64:016x}" + f"{number:048x}"


def resolved(number: int, *numerators: int, at: int | None = None, fetched_ms: int = FETCHED_MS) -> dict[str, Any]:
    """A ledger row of status resolved, in lowest terms, sum as denominator."""
    largest = max(numerators)
    return {
        "condition_id": condition(number),
        "status": "resolved",
        "payout_numerators": list(numerators),
        "payout_denominator": sum(numerators),
        "winning_index": numerators.index(largest) if numerators.count(largest) == 1 else -1,
        "resolved_at": at,
        "block_number": 7_000,
        "fetched_at": fetched_ms,
    }


def other(number: int, status: str) -> dict[str, Any]:
    """A ledger row without a vector."""
    return {"condition_id": condition(number), "status": status, "fetched_at": FETCHED_MS, "block_number": 7_000}


def ledger(*rows: dict[str, Any]) -> list[pa.RecordBatch]:
    """Ledger rows as the loader gets them."""
    full = [{name: row.get(name) for name in LEDGER.names} for row in rows]
    return [pa.RecordBatch.from_pylist(full, schema=LEDGER)]


@dataclass
class World:
    """One ClickHouse with a fresh database: settings that name tables in it, and a warehouse on it."""

    kind: str
    settings: Settings
    warehouse: Warehouse
    database: str
    front: Front | None

    @contextlib.contextmanager
    def session(self, purpose: str = "test") -> Iterator[Session]:
        with self.warehouse.session(purpose) as session:
            yield session

    def run(self, *statements: str) -> None:
        """Statements with ``{db}`` standing for the test's database."""
        with self.session() as session:
            for text in statements:
                session.command(text.replace("{db}", self.database), doing="preparing a test")

    def read(self, sql: str) -> Counter[tuple[Any, ...]]:
        """Rows with their number of occurrences, so that a duplicate shows."""
        with self.session() as session:
            rows = session.rows(sql.replace("{db}", self.database), doing="reading in a test")
        return Counter(tuple(_hashable(v) for v in row.values()) for row in rows)

    @property
    def target_name(self) -> QualifiedName:
        return QualifiedName.parse(self.settings.target_table)

    def target(self, session: Session) -> TargetTable:
        return ensure_target(session, self.target_name)

    def with_settings(self, **changes: Any) -> World:
        """The same ClickHouse, other settings."""
        settings = self.settings.model_copy(update=changes)
        return World(self.kind, settings, Warehouse(settings), self.database, self.front)


def _hashable(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_hashable(v) for v in value)
    if isinstance(value, dict):
        return tuple(_hashable(v) for v in value.values())
    return value


def kinds() -> list[str]:
    """The ClickHouses that tests run against."""
    return ["embedded", "http"] + (["server"] if os.environ.get("CLICKHOUSE_TEST_URL") else [])


@pytest.fixture(scope="session")
def embedded_runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One runtime directory for all embedded tests of a process: opening the engine costs half a second."""
    return tmp_path_factory.mktemp("embedded")


@pytest.fixture(scope="session")
def clickhouse_front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """One HTTP front for all tests of a process."""
    with running(tmp_path_factory.mktemp("front") / "clickhouse") as front:
        yield front


def _settings(kind: str, database: str, runtime: Path, front: Front | None, **more: Any) -> Settings:
    names = {
        "target_table": f"{database}.resolutions_external_ingest",
        "truth_view": f"{database}_clean.vw_resolutions_truth",
        "market_resolutions_table": f"{database}.market_resolutions_final",
        "pnl_view": f"{database}_clean.vw_wallet_pnl_settled",
        "clickhouse_wait_seconds": 20,
        "runtime_dir": str(runtime),
    }
    if kind == "http" and front is not None:
        names |= {"clickhouse_host": front.url, "clickhouse_user": WRITER[0], "clickhouse_password": WRITER[1]}
    if kind == "server":
        names |= {"clickhouse_host": os.environ["CLICKHOUSE_TEST_URL"]}
    return load_settings({}, **(names | more))


@pytest.fixture(params=kinds())
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """A fresh database on each ClickHouse that tests run against."""
    kind: str = request.param
    database = f"t_{uuid.uuid4().hex[:12]}"
    front: Front | None = request.getfixturevalue("clickhouse_front") if kind == "http" else None
    runtime = request.getfixturevalue("embedded_runtime") if kind == "embedded" else tmp_path
    settings = _settings(kind, database, runtime, front)
    made = World(kind, settings, Warehouse(settings, comment="test"), database, front)
    with contextlib.ExitStack() as stack:
        if kind == "embedded":  # one opening of the engine for all sessions of the test
            stack.enter_context(made.session())
        made.run("CREATE DATABASE {db}", "CREATE DATABASE {db}_clean")
        try:
            yield made
        finally:
            if front is not None:
                if not front.alive:
                    front.stop()
                    front.start()
                front.faults()
            with contextlib.suppress(Exception):
                made.run("DROP DATABASE IF EXISTS {db}_clean", "DROP DATABASE IF EXISTS {db}")


@pytest.fixture
def http_world(clickhouse_front: Front, tmp_path: Path) -> Iterator[World]:
    """A fresh database behind the HTTP front, for tests of what only a server can do."""
    database = f"t_{uuid.uuid4().hex[:12]}"
    settings = _settings("http", database, tmp_path, clickhouse_front)
    made = World("http", settings, Warehouse(settings, comment="run r1 asset a1"), database, clickhouse_front)
    made.run("CREATE DATABASE {db}", "CREATE DATABASE {db}_clean")
    try:
        yield made
    finally:
        if not clickhouse_front.alive:
            clickhouse_front.stop()
            clickhouse_front.start()
        clickhouse_front.faults()
