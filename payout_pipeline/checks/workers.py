"""What is known of each worker: its ledger, its materializations and the latest status of its checks."""

from __future__ import annotations

import dagster as dg

from payout_pipeline.checks.catalogue import FETCHED, STORED
from payout_pipeline.checks.history import CheckStatus, State, latest_statuses
from payout_pipeline.ids.chunks import Worklist
from payout_pipeline.ledger import Ledger
from payout_pipeline.settings import Settings
from payout_pipeline.verdict import Severity
from payout_pipeline.verification.workers import WorkerState

_TROUBLE = (State.FAILED, State.OUTDATED)


def worker_states(instance: dg.DagsterInstance, settings: Settings, worklist: Worklist) -> list[WorkerState]:
    """The state of each of today's workers, in their order."""
    by_worker: dict[str, list[CheckStatus]] = {}
    for status in latest_statuses(instance, settings, worklist, (FETCHED, STORED)):
        if status.partition is not None and status.info.severity is Severity.ERROR and status.state in _TROUBLE:
            by_worker.setdefault(status.partition, []).append(status)
    states: list[WorkerState] = []
    for worker in worklist.workers:
        info = Ledger(settings.runtime_dir, worker.key).finished()
        fetched, loaded = (_materialized(instance, asset, worker.key) for asset in (FETCHED, STORED))
        trouble = by_worker.get(worker.key, [])
        states.append(
            WorkerState(
                partition=worker.key,
                ids=worker.ids,
                fetched=info is not None,
                for_todays_input=info is not None and info.ids_sha256 == worker.fingerprint,
                loaded=loaded > fetched,
                counts=info.counts if info else {},
                trouble=tuple(
                    f"{status.state.value} {status.info.name}"
                    + (f" ({status.reason.rstrip('.')})" if status.reason else "")
                    for status in trouble
                ),
            )
        )
    return states


def _materialized(instance: dg.DagsterInstance, asset: str, partition: str) -> int:
    """The storage id of the latest materialization; later ones are greater, 0 is none."""
    where = dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[partition])
    records = instance.fetch_materializations(where, limit=1).records
    return records[0].storage_id if records else 0
