"""What is known of each worker: its ledger, its materializations and the latest status of its checks."""

from __future__ import annotations

import dagster as dg

from payout_pipeline.checks.catalogue import FETCHED, STORED
from payout_pipeline.checks.history import CheckStatus, State, latest_statuses
from payout_pipeline.ledger import Ledger
from payout_pipeline.settings import Settings
from payout_pipeline.verdict import Severity
from payout_pipeline.verification import WorkerState
from payout_pipeline.worklist import Worklist


def worker_states(instance: dg.DagsterInstance, settings: Settings, worklist: Worklist) -> list[WorkerState]:
    """The state of each of today's workers, in their order."""
    fetched_at = _materialized(instance, FETCHED)
    loaded_at = _materialized(instance, STORED)
    by_worker: dict[str, list[CheckStatus]] = {}
    for status in latest_statuses(instance, settings, worklist, (FETCHED, STORED)):
        if status.partition is not None and status.info.severity is Severity.ERROR:
            by_worker.setdefault(status.partition, []).append(status)
    states: list[WorkerState] = []
    for worker in worklist.workers:
        snapshot = Ledger(settings.runtime_dir, worker.key).finished()
        statuses = by_worker.get(worker.key, [])
        states.append(
            WorkerState(
                partition=worker.key,
                ids=worker.ids,
                fetched=snapshot is not None,
                for_todays_input=snapshot is not None and snapshot.ids_sha256 == worker.fingerprint,
                loaded=worker.key in loaded_at and loaded_at[worker.key] > fetched_at.get(worker.key, 0),
                counts=snapshot.counts if snapshot else {},
                failed_checks=tuple(status.info.name for status in statuses if status.state is State.FAILED),
                checks_not_made=tuple(
                    status.info.name for status in statuses if status.state not in (State.FAILED, State.PASSED)
                ),
            )
        )
    return states


def _materialized(instance: dg.DagsterInstance, asset: str) -> dict[str, int]:
    """Partition → storage id of its latest materialization; later ones are greater."""
    return dict(
        instance.event_log_storage.get_latest_storage_id_by_partition(
            dg.AssetKey(asset), dg.DagsterEventType.ASSET_MATERIALIZATION
        )
    )
