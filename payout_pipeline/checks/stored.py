"""The check of ``resolutions_external_ingest``: the target table against the ledger of one worker."""

from __future__ import annotations

from collections.abc import Collection
from importlib.resources import files

from payout_pipeline import verification as judge
from payout_pipeline.ledger import Ledger
from payout_pipeline.settings import Settings
from payout_pipeline.verdict import Verdict
from payout_pipeline.warehouse.client import Warehouse
from payout_pipeline.warehouse.identifiers import QualifiedName
from payout_pipeline.warehouse.load import compare_rows
from payout_pipeline.warehouse.target import ensure_target
from payout_pipeline.worklist import WorkerInput


def verdicts(settings: Settings, worker: WorkerInput, names: Collection[str]) -> list[Verdict]:
    """The verdicts of the named checks for one worker, read in one session.

    Raises LedgerError where there is no ledger, and what a session of the warehouse raises.
    """
    if "stored_equals_fetched" not in names:
        return []
    warehouse = Warehouse.from_settings(settings, f"check of {worker.key}")
    with warehouse.session(f"checking {worker.key}") as session:
        target = ensure_target(session, QualifiedName.parse(settings.target_table), settings.clickhouse_cluster)
        comparison = compare_rows(session, target, Ledger(settings.runtime_dir, worker.key).read())
    sql = files("payout_pipeline.warehouse").joinpath("sql/checks/stored_equals_fetched.sql").read_text("utf-8")
    return [judge.stored_equals_fetched(comparison, worker.key, sql)]
