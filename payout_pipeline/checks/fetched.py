"""The checks of ``goldsky_payouts``: the ledger of one worker against its chunk of the input."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from datetime import datetime, timezone

from payout_pipeline import verification as judge
from payout_pipeline.conditions import prefix_range, read_conditions
from payout_pipeline.ledger import STATUSES, Accounting, Ledger, SnapshotInfo
from payout_pipeline.settings import Settings
from payout_pipeline.verdict import Verdict
from payout_pipeline.worklist import WorkerInput


def verdicts(settings: Settings, worker: WorkerInput, names: Collection[str]) -> list[Verdict]:
    """The verdicts of the named checks for one worker.

    Raises LedgerError where the ledger is damaged, InputError where the input cannot be read.
    """
    ledger = Ledger(settings.runtime_dir, worker.key)
    snapshot = ledger.finished()
    found: list[Verdict] = []
    if "every_id_accounted_for" in names:
        accounting = None if snapshot is None else account(settings, worker, ledger, snapshot)
        expected = worker.ids if worker.ids is not None else snapshot.ids if snapshot else 0
        found.append(judge.every_id_accounted_for(accounting, worker.key, expected))
    if "error_rate" in names:
        counts: dict[str, int] = snapshot.counts if snapshot else {}
        failures = ledger.failures(judge.SHOWN_ROWS) if snapshot and snapshot.errors else []
        found.append(judge.error_rate(counts, failures, settings.max_error_rate, worker.key))
    if "source_is_fresh" in names:
        found.append(_freshness(snapshot, worker.key))
    return found


def account(settings: Settings, worker: WorkerInput, ledger: Ledger, snapshot: SnapshotInfo) -> Accounting:
    """The ids of the finished ledger against those of today's chunk (list) or range of ids (scan)."""
    if settings.goldsky_mode == "list":
        with contextlib.closing(read_conditions(settings.condition_ids_file)) as file:
            return ledger.verify(file.chunk(worker.worker, settings.workers))
    return _account_for_scan(ledger, snapshot, worker.worker, settings.workers)


def _account_for_scan(ledger: Ledger, snapshot: SnapshotInfo, worker: int, of: int) -> Accounting:
    """A scan has no list to compare with: each id is to be there once, and inside the worker's range."""
    import numpy as np

    from payout_pipeline.conditions import hash_ids, pack_ids

    prefixes = prefix_range(worker, of)
    counts: dict[str, int] = dict.fromkeys(STATUSES, 0)
    outside: list[str] = []
    beyond = 0
    hashes = []
    for batch in ledger.read(["condition_id", "status"]):
        ids = batch.column(0).to_pylist()
        for row in batch.column(1).value_counts().to_pylist():
            counts[row["values"]] += row["counts"]
        foreign = [condition_id for condition_id in ids if not prefixes.holds(condition_id)]
        beyond += len(foreign)
        outside += foreign[: judge.SHOWN_ROWS - len(outside)]
        hashes.append(hash_ids(pack_ids(ids)))
    distinct = len(np.unique(np.concatenate(hashes))) if hashes else 0
    rows = sum(counts.values())
    return Accounting(snapshot.ids, rows, max(0, snapshot.ids - rows), beyond, rows - distinct, counts, [], outside, [])


def _freshness(snapshot: SnapshotInfo | None, partition: str) -> Verdict:
    if snapshot is None or snapshot.ids == 0:
        return judge.nothing_was_asked(partition, fetched=snapshot is not None)
    head = snapshot.pin.head_timestamp
    return judge.source_is_fresh(
        snapshot.pin.head_number,
        datetime.fromtimestamp(head, timezone.utc) if head else None,
        datetime.fromisoformat(snapshot.started_at.replace("Z", "+00:00")),
        snapshot.pin.has_indexing_errors,
        partition,
    )
