"""One worker's load: the resolved rows of its ledger become the rows of the target table, and are read back."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from payout_pipeline.errors import IncompleteError
from payout_pipeline.ids.chunks import WorkerInput, partition_key, read_worklist
from payout_pipeline.ids.today import source_of_ids
from payout_pipeline.ledger import Ledger, SnapshotInfo
from payout_pipeline.logs import forwarded_to
from payout_pipeline.settings import Settings
from payout_pipeline.storage import TOTALS_FILE, open_store
from payout_pipeline.warehouse.client import Warehouse
from payout_pipeline.warehouse.identifiers import QualifiedName
from payout_pipeline.warehouse.load import LoadResult, load_rows

if TYPE_CHECKING:
    from logging import Logger


@dataclass(frozen=True)
class IngestSummary:
    """What a load did; ``table_rows`` of this pipeline's source are in the table now."""

    partition: str
    load: LoadResult
    table_rows: int
    seconds: float
    fingerprint: str


def prepare_target(settings: Settings, log: Logger) -> None:
    """Create the target table, or check the existing one and the user's own, before anything is asked of Goldsky.

    Raises WarehouseSchemaError with the DDL that is needed, ConfigurationError or WarehousePermanentError where the
    database cannot be used, WarehouseUnavailableError where it does not answer within its budget.
    """
    from payout_pipeline.warehouse.target import ensure_sources

    if _tables_of(settings) in _prepared:
        log.info(f"target table {settings.target_table}: looked at when the backfill began")
        return
    warehouse = Warehouse(settings, comment="payout-pipeline: prepare")
    with warehouse.session("prepare the target table") as session:
        target = ensure_sources(session, settings).target
        log.info(f"target table {target.name} on {session.address} (ClickHouse {session.version})")


#: What was looked at by another process, before this one was forked.
_prepared: set[tuple[str, ...]] = set()


def remember_prepared(settings: Settings) -> None:
    """`prepare_target` was done for this process and those that it forks."""
    _prepared.add(_tables_of(settings))


def _tables_of(settings: Settings) -> tuple[str, ...]:
    place = settings.runtime_dir if settings.embedded else f"{settings.clickhouse_host} {settings.clickhouse_port}"
    return (place, settings.target_table, settings.market_resolutions_table, settings.truth_view)


def finished_ledger(settings: Settings, worker: int) -> tuple[Ledger, SnapshotInfo]:
    """The worker's finished ledger of today's input; IncompleteError says what is missing and how to get it."""
    partition = partition_key(worker, settings.workers)
    ledger = Ledger(open_store(settings.runtime_dir), partition)
    info = ledger.finished()
    reason = why_not_todays(settings, info, read_worklist(settings).of(partition))
    if info is None or reason:
        raise IncompleteError(f"{partition} {reason}.\nTo repair it: materialize it: {ledger.repair}")
    return ledger, info


def why_not_todays(settings: Settings, info: SnapshotInfo | None, todays: WorkerInput) -> str:
    """Why a worker has no finished ledger (``info``) of today's input and settings; empty if it has."""
    if info is None:
        return "has no finished ledger"
    if info.mode != settings.goldsky_mode:
        return f"was made in GOLDSKY_MODE={info.mode}, and it is {settings.goldsky_mode} now"
    if info.ids_sha256 != todays.fingerprint:
        return f"was made for other ids than {source_of_ids(settings)} gives it now"
    return ""


def ingest_worker(
    settings: Settings, worker: int, *, log: Logger, run_id: str = "", allow_removals: bool = False
) -> IngestSummary:
    """Make the target table hold exactly the resolved rows of the worker's ledger, and prove it by reading back.

    Coverage and P&L are measured before the first row of a backfill is written. ``allow_removals``: see
    :func:`~payout_pipeline.warehouse.load.load_rows`.

    Raises IncompleteError where the ledger is missing or not of today's input, or the table does not hold what was
    written; WarehouseSchemaError where a vector does not fit the existing columns; and what a session raises.
    """
    from payout_pipeline.verification.baseline import remember_before
    from payout_pipeline.verification.numbers import stored_rows
    from payout_pipeline.warehouse.target import ensure_target
    from payout_pipeline.worker_lock import worker_lock

    started = time.monotonic()
    partition = partition_key(worker, settings.workers)
    with (
        forwarded_to(log, debug=settings.debug),
        worker_lock(settings, partition, purpose="resolutions_external_ingest", run_id=run_id, log=log),
    ):
        ledger, info = finished_ledger(settings, worker)
        comment = f"payout-pipeline: resolutions_external_ingest {partition} run {run_id}"
        with Warehouse(settings, comment=comment).session(f"load {partition}") as session:
            target = ensure_target(session, QualifiedName.parse(settings.target_table), settings.clickhouse_cluster)
            remember_before(session, settings)
            result = load_rows(session, target, ledger.read(), allow_removals=allow_removals, log=log.info)
            rows = stored_rows(session, settings)
        remember_totals(settings, rows)
    log.info(
        f"{partition}: {result.sent:,} resolved rows; {result.inserted_new:,} new, {result.inserted_changed:,} changed, "
        f"{result.unchanged:,} unchanged, {result.removed:,} no longer resolved and removed; {result.verified:,} verified"
    )
    return IngestSummary(partition, result, rows, time.monotonic() - started, info.fingerprint)


def remember_totals(settings: Settings, rows: int) -> None:
    """Note the rows of the target table for those who must not wait for the database."""
    measured = datetime.now(timezone.utc).isoformat(timespec="seconds")
    document = {"rows": rows, "measured_at": measured}
    open_store(settings.runtime_dir).write(TOTALS_FILE, json.dumps(document).encode())
