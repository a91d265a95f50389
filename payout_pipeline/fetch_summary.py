"""What a finished run of a worker has to say: the numbers of its materialization."""

from __future__ import annotations

from dataclasses import dataclass, fields

from payout_pipeline.ids.chunks import partition_keys
from payout_pipeline.ledger import Ledger, SnapshotInfo
from payout_pipeline.ledger.checkpoint import checkpoint_name, progress_name
from payout_pipeline.settings import Settings
from payout_pipeline.what_changed import WhatChanged, what_changed

_SHOWN = 20


@dataclass(frozen=True)
class FetchStats:
    """How a ledger was fetched; kept with it. Times are seconds."""

    run_id: str = ""
    backfill_id: str = ""
    input_sha256: str = ""
    ids_asked: int = 0
    batches_resumed: int = 0
    requests: int = 0
    batches_per_request: int = 0
    shrunk_because: str = ""
    retries: int = 0
    rate_limited: int = 0
    """Answers of 429."""
    waits: int = 0
    waited_seconds: float = 0.0
    odd_times: int = 0
    """Resolution times that are none, and so not kept."""
    seconds: float = 0.0

    @classmethod
    def of(cls, info: SnapshotInfo) -> FetchStats:
        """What was kept with a finished ledger."""
        return cls(**{item.name: info.stats[item.name] for item in fields(cls) if item.name in info.stats})

    @property
    def ids_per_second(self) -> float:
        """Ids asked per second of the run."""
        return self.ids_asked / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class FetchSummary:
    """A finished ledger in numbers."""

    info: SnapshotInfo
    stats: FetchStats
    ids_of_all_partitions: int
    shapes: list[tuple[str, int]]
    """How often each vector occurs, like ``[1, 0]/1``; at most 50."""
    failures: list[tuple[str, str]]
    """The first failed and invalid ids, with status and error."""
    changes: WhatChanged | None
    """Against the former ledger; None where there was none."""
    files: list[str]


def summarise(settings: Settings, worker: int, ledger: Ledger, info: SnapshotInfo) -> FetchSummary:
    """The summary of a finished ledger. Raises LedgerError where it is damaged."""
    others = [Ledger(ledger.store, key).finished() for key in partition_keys(settings.workers) if key != info.partition]
    return FetchSummary(
        info=info,
        stats=FetchStats.of(info),
        ids_of_all_partitions=info.ids + sum(other.ids for other in others if other is not None),
        shapes=ledger.shapes(),
        failures=[(i, f"{status}: {error}") for i, status, error in ledger.failures(_SHOWN)],
        changes=what_changed(ledger.store, [info.partition]),
        files=[
            ledger.place,
            ledger.store.describe(checkpoint_name(worker)),
            ledger.store.describe(progress_name(worker)),
        ],
    )
