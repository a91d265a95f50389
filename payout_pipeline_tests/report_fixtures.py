"""A small finished backfill for the tests of checks, report and commands: real ledgers, real ClickHouse, no network.

One runtime directory a module, since opening the embedded engine costs half a second; each test gets databases, ledgers
and an input file of its own in it.
"""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from payout_pipeline.checks import make_verdicts, records
from payout_pipeline.checks.basis import BasisReader
from payout_pipeline.checks.catalogue import FETCHED, STORED, VIEW
from payout_pipeline.ids.chunks import Worklist, chunk_of, partition_key, read_worklist
from payout_pipeline.ids.today import todays_ids
from payout_pipeline.ingest import ingest_worker
from payout_pipeline.ledger import DIRECTORY, Ledger, Pin, SnapshotInfo, start_run
from payout_pipeline.payouts import InvalidVector, Vector
from payout_pipeline.settings import Settings, load_settings
from payout_pipeline.truth import rebuild_truth
from payout_pipeline.verdict import Verdict
from payout_pipeline.warehouse.client import Warehouse
from payout_pipeline_tests.ledger_fixtures import make_rows

LOG = logging.getLogger("tests")
IDS = 24
WORKERS = 2
NOW = datetime(2025, 11, 9, 10, 30, tzinfo=timezone.utc)
FRESH = Pin(1_000, "QmDeployment", "number", 1_250, int(datetime.now(timezone.utc).timestamp()))
_FACTS = b"payout_pipeline"


def condition(number: int) -> str:
    """A condition id that is the same in every run."""
    return f"{(number + 1) * 0x9E3779B97F4A7C15 % 2**64:016x}{number:048x}"


def answer(number: int) -> Vector | str | None:
    """What Goldsky says of an id: mostly a winner, some splits, some unresolved, some absent."""
    vectors: dict[int, Vector | str | None] = {
        0: Vector((1, 0), 1),
        1: Vector((0, 1), 1),
        2: Vector((1, 1), 2),
        3: Vector((27, 23), 50),
        4: None,
        5: "absent",
    }
    return vectors[number % 6]


RESOLVED = [number for number in range(IDS) if isinstance(answer(number), Vector)]


@dataclass
class House:
    """One backfill: settings, ledgers and tables that belong together."""

    settings: Settings
    database: str
    instance: dg.DagsterInstance
    answers: dict[int, Vector | InvalidVector | str | None] = field(default_factory=dict)

    # -- making

    def write_input(self, count: int = IDS) -> None:
        path = self.settings.condition_ids_file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{condition(number)}\n" for number in range(count)))

    def write_ledger(self, worker: int, pin: Pin = FRESH, stats: Mapping[str, Any] | None = None) -> None:
        """Finish the ledger of a worker with the answers of this house."""
        settings = self.settings
        chunk = chunk_of(todays_ids(settings), worker, settings.workers)
        ledger = Ledger(settings.runtime_dir, partition_key(worker, settings.workers))
        plan = SnapshotInfo.planned(
            ledger.partition,
            chunk,
            endpoint=settings.goldsky_endpoint,
            batch_size=settings.goldsky_batch_size,
            schema_kind="payouts",
            pin=pin,
        )
        running = start_run(ledger, plan, chunk)
        for index in running.missing_batches:
            running.write_batch(index, self._rows(running.ids_to_ask(index)))
        running.finish(stats or {})

    def _rows(self, ids: list[str]) -> pa.Table:
        known = {condition(number): given for number, given in self.answers.items()}
        found = {i: known[i] for i in ids if not isinstance(known[i], str)}
        return make_rows(
            ids,
            found,  # type: ignore[arg-type]
            raw=dict.fromkeys(ids, '["raw"]'),
            block_number=1_000,
            fetched_at=NOW,
            failed={i: str(known[i]) for i in ids if isinstance(known[i], str) and known[i] != "absent"},
        )

    def load(self, worker: int) -> None:
        ingest_worker(self.settings, worker, log=LOG)

    def rebuild(self) -> None:
        rebuild_truth(self.settings, log=LOG, run_id="test")

    def complete(self) -> House:
        """Everything a finished backfill leaves: ledgers, rows, the view, materializations."""
        for worker in range(1, self.settings.workers + 1):
            self.write_ledger(worker)
            self.load(worker)
            self.materialized(FETCHED, worker)
            self.materialized(STORED, worker)
        self.rebuild()
        self.materialized(VIEW)
        return self

    def materialized(self, asset: str, worker: int | None = None) -> None:
        key = partition_key(worker, self.settings.workers) if worker is not None else None
        self.instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=key))

    def checked(self, verdict: Verdict, worker: int) -> None:
        """Record a verdict as the latest status of a worker's check."""
        from payout_pipeline.checks.catalogue import catalogue

        asset = next(info.asset for info in catalogue(self.settings) if info.name == verdict.check)
        key = self.worklist.workers[worker - 1].key
        basis = BasisReader(self.instance, self.settings, self.worklist).of(asset, key)
        records.save(self.settings, asset, key, [verdict], basis, "test")

    # -- breaking

    def tamper(self, worker: int, change: Callable[[pa.Table], pa.Table]) -> None:
        """Rewrite the ledger's file with other rows and facts that fit them, as no program of ours would."""
        key = partition_key(worker, self.settings.workers)
        path = Path(self.settings.runtime_dir) / DIRECTORY / key / "ledger.parquet"
        table = pq.read_table(path)
        facts = json.loads(pq.read_metadata(path).metadata[_FACTS])
        table = change(table)
        counts = dict.fromkeys(facts["counts"], 0)
        for status in table["status"].to_pylist():
            counts[status] += 1
        facts |= {"ids": table.num_rows, "counts": counts}
        pq.write_table(table.replace_schema_metadata({_FACTS: json.dumps(facts).encode()}), path)

    def run(self, *statements: str) -> None:
        """Statements with ``{db}`` for the test's database."""
        with Warehouse(self.settings).session("test") as session:
            for text in statements:
                session.command(text.replace("{db}", self.database), doing="preparing a test")

    def with_settings(self, **changes: Any) -> House:
        return House(self.settings.model_copy(update=changes), self.database, self.instance, self.answers)

    # -- judging

    @property
    def worklist(self) -> Worklist:
        return read_worklist(self.settings)

    def fetched(self, name: str, worker: int = 1) -> Verdict:
        return self._made(FETCHED, partition_key(worker, self.settings.workers), name)

    def stored(self, worker: int = 1) -> Verdict:
        return self._made(STORED, partition_key(worker, self.settings.workers), "stored_equals_fetched")

    def view(self, name: str) -> Verdict:
        return self._made(VIEW, None, name)

    def _made(self, asset: str, key: str | None, name: str) -> Verdict:
        (verdict,) = make_verdicts(self.settings, self.instance, self.worklist, asset, key, {name})
        return verdict


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runtime directory of a module's tests."""
    return tmp_path_factory.mktemp("runtime")


@pytest.fixture(scope="module", autouse=True)
def open_engine(runtime: Path) -> Iterator[None]:
    """One opening of the engine for all tests of a module that imports this, as long as no other process needs it."""
    with Warehouse(load_settings({}, runtime_dir=str(runtime))).session("tests"):
        yield


@pytest.fixture
def house(runtime: Path, tmp_path: Path) -> Iterator[House]:
    """Settings, an input file and empty databases; nothing fetched yet."""
    database = f"t_{uuid.uuid4().hex[:12]}"
    settings = load_settings(
        {},
        condition_ids_file=tmp_path / "ids.txt",
        workers=WORKERS,
        runtime_dir=str(runtime),
        goldsky_endpoint="http://127.0.0.1:9/subgraphs/name/positions",
        goldsky_batch_size=5,
        target_table=f"{database}.resolutions_external_ingest",
        truth_view=f"{database}_clean.vw_resolutions_truth",
        market_resolutions_table=f"{database}.market_resolutions_final",
        pnl_view=f"{database}_clean.vw_wallet_pnl_settled",
        min_unique_conditions=len(RESOLVED),
        clickhouse_wait_seconds=20,
    )
    with dg.DagsterInstance.ephemeral() as instance:
        made = House(settings, database, instance, {number: answer(number) for number in range(IDS)})
        made.write_input()
        try:
            yield made
        finally:
            made.run("DROP DATABASE IF EXISTS {db}_clean", "DROP DATABASE IF EXISTS {db}")
            for path in runtime.iterdir():
                if path.name != "clickhouse":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture
def finished(house: House) -> House:
    """A finished backfill in which every check passes."""
    return house.complete()


__all__ = ["IDS", "RESOLVED", "House", "asdict", "condition", "finished", "house", "open_engine", "runtime"]
