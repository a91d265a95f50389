"""How a run begins: an interrupted one is continued where it asks the same, otherwise a new one is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from payout_pipeline.errors import LedgerError
from payout_pipeline.ids.chunks import Chunk, PrefixRange
from payout_pipeline.ledger import files
from payout_pipeline.ledger.info import SnapshotInfo, why_invalid
from payout_pipeline.ledger.ledger import Ledger
from payout_pipeline.ledger.rows import ledger_schema
from payout_pipeline.ledger.running import RunningLedger

if TYPE_CHECKING:
    import pyarrow as pa


def start_run(ledger: Ledger, plan: SnapshotInfo, ids: Chunk | PrefixRange) -> RunningLedger:
    """Continue the interrupted run, if it asks what the plan asks; otherwise begin a new one.

    Args:
        ledger: the partition's ledger, of which the caller is the only writer.
        plan: what to ask (`SnapshotInfo.planned`); a run that is continued keeps its own block.
        ids: the ids of the plan.

    Raises StorageError where the place cannot be written.
    """
    for directory in ("", files.RUNNING, files.CHANGES):
        ledger.store.clean(ledger.key(directory))
    finished = _finished_or_aside(ledger)
    former = _former_run(ledger)
    if former is not None and finished is not None and former.snapshot_id == finished.snapshot_id:
        # It was killed between putting the snapshot into place and removing its batches.
        ledger.store.delete(ledger.key(files.RUNNING))
        former = None
    reason = None if former is None else _why_not_continued(former, plan)
    if reason is not None:
        ledger.set_aside(files.RUNNING, f"the interrupted run {reason}", "superseded")
        former = None
    if former is not None:
        ledger.log(f"{ledger.partition}: resuming run {former.snapshot_id} of {former.started_at}")
        return RunningLedger(ledger, former, ids)
    if plan.refetch == "unresolved" and isinstance(ids, Chunk) and _can_carry(ledger, plan, ids, finished):
        rows = (_as_table(batch) for batch in ledger.read(statuses=["resolved"]))
        files.write_rows(ledger.store, ledger.key(files.CARRIED), ledger_schema(), rows, plan.model_dump_json())
    ledger.store.write(ledger.key(files.RUN_FACTS), plan.model_dump_json().encode())
    return RunningLedger(ledger, plan, ids)


def _can_carry(ledger: Ledger, plan: SnapshotInfo, ids: Chunk, finished: SnapshotInfo | None) -> bool:
    """Whether resolved rows of the finished snapshot can be part of the next one."""
    if finished is None:
        ledger.log(f"{ledger.partition}: there is no finished snapshot to refresh; asking all ids")
        return False
    compared = ("ids_sha256", "endpoint_sha256", "schema_kind", "mode")
    if any(getattr(finished, name) != getattr(plan, name) for name in compared):
        ledger.log(f"{ledger.partition}: the finished snapshot has other ids, endpoint or schema; asking all ids")
        return False
    if finished.pin.deployment != plan.pin.deployment:
        # Rows of two deployments are never mixed into one snapshot.
        ledger.log(f"{ledger.partition}: the deployment changed since the finished snapshot; asking all ids")
        return False
    return ledger.is_whole(ids)


def _former_run(ledger: Ledger) -> SnapshotInfo | None:
    """The facts of an interrupted run; without them its batches are set aside."""
    try:
        return SnapshotInfo.model_validate_json(ledger.store.read(ledger.key(files.RUN_FACTS)))
    except FileNotFoundError:
        reason = "it has no run.json"
    except ValueError as error:
        reason = f"its run.json is damaged: {why_invalid(error)!a}"
    if ledger.store.names(ledger.key(files.RUNNING)):
        ledger.set_aside(files.RUNNING, reason)
    return None


def _finished_or_aside(ledger: Ledger) -> SnapshotInfo | None:
    try:
        return ledger.snapshot()
    except LedgerError as error:
        ledger.set_aside(files.SNAPSHOT, str(error))
        return None


def _why_not_continued(former: SnapshotInfo, plan: SnapshotInfo) -> str | None:
    """Why the interrupted run cannot be continued; None if it can."""
    if former.fingerprint != plan.fingerprint or former.partition != plan.partition:
        return "had other ids, another endpoint, batch size, schema or mode"
    if former.refetch != plan.refetch:
        return f"was to ask {former.refetch} ids, this one {plan.refetch}"
    if former.pin.deployment != plan.pin.deployment:
        return f"asked deployment {former.pin.deployment}, and the endpoint answers with {plan.pin.deployment} now"
    head = plan.pin.head_number
    if head is not None and former.pin.block_number > head:
        return f"asked block {former.pin.block_number:,}, and the subgraph's head went back to {head:,}"
    return None


def _as_table(batch: pa.RecordBatch) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_batches([batch])
