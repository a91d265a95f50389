"""What a finished run of a worker has to say: the numbers of its materialization."""

from __future__ import annotations

from dataclasses import dataclass

from payout_pipeline.chunks import partition_key
from payout_pipeline.ledger import Ledger, SnapshotInfo
from payout_pipeline.ledger.checkpoint import checkpoint_name, progress_name
from payout_pipeline.settings import Settings

_SHOWN = 20


@dataclass(frozen=True)
class FetchSummary:
    """What a finished run of a worker has to say. Counts are ids; times are seconds."""

    partition: str
    worker: int
    ids: int
    ids_of_all_partitions: int
    ids_asked: int
    counts: dict[str, int]
    batches: int
    batches_resumed: int
    requests: int
    batches_per_request: int
    shrunk_because: str
    retries: int
    rate_limited: int
    waits: int
    waited_seconds: float
    block_number: int
    snapshot: str
    deployment: str
    head_timestamp: int | None
    has_indexing_errors: bool
    seconds: float
    shapes: list[tuple[str, int]]
    failures: list[tuple[str, str]]
    odd_times: int
    """Resolution times that are none, and so not kept."""
    changes: dict[str, int] | None
    """Ids by kind of change against the former ledger; None where there was none."""
    changed: list[dict[str, str]]
    """The first changes: ``condition_id``, ``change``, ``before``, ``after``."""
    fingerprint: str
    input_sha256: str
    files: list[str]

    @property
    def ids_per_second(self) -> float:
        """Ids asked by this run per second of it."""
        return self.ids_asked / self.seconds if self.seconds > 0 else 0.0


def summarise(settings: Settings, worker: int, ledger: Ledger, info: SnapshotInfo) -> FetchSummary:
    """The summary of a finished ledger. Raises LedgerError where it is damaged."""
    partitions = [partition_key(number, settings.workers) for number in range(1, settings.workers + 1)]
    others = [Ledger(ledger.store, key).finished() for key in partitions if key != info.partition]
    changes = ledger.changes()
    counts = None if changes is None else dict.fromkeys(_KINDS, 0)
    if changes is not None and counts is not None:
        counts |= {row["values"]: row["counts"] for row in changes["change"].value_counts().to_pylist()}
    stats, pin = info.stats, info.pin
    return FetchSummary(
        partition=info.partition,
        worker=worker,
        ids=info.ids,
        ids_of_all_partitions=info.ids + sum(other.ids for other in others if other is not None),
        ids_asked=stats["ids_asked"],
        counts={str(status): count for status, count in info.counts.items()},
        batches=info.batches,
        batches_resumed=stats["batches_resumed"],
        requests=stats["requests"],
        batches_per_request=stats["batches_per_request"],
        shrunk_because=stats["shrunk_because"],
        retries=stats["retries"],
        rate_limited=stats["rate_limited"],
        waits=stats["waits"],
        waited_seconds=stats["waited_seconds"],
        block_number=pin.block_number,
        snapshot=f"{'at' if pin.kind == 'number' else 'at or after (history is not kept)'} block {pin.block_number}",
        deployment=pin.deployment,
        head_timestamp=pin.head_timestamp,
        has_indexing_errors=pin.has_indexing_errors,
        seconds=stats["seconds"],
        shapes=ledger.shapes(),
        failures=[(i, f"{status}: {error}") for i, status, error in ledger.failures(_SHOWN)],
        odd_times=stats["odd_times"],
        changes=counts,
        changed=[] if changes is None else changes.slice(0, _SHOWN).to_pylist(),
        fingerprint=info.fingerprint,
        input_sha256=stats["input_sha256"],
        files=[
            ledger.place,
            ledger.store.describe(checkpoint_name(worker)),
            ledger.store.describe(progress_name(worker)),
        ],
    )


_KINDS = ("newly_resolved", "vector_changed", "became_absent", "no_longer_resolved")
