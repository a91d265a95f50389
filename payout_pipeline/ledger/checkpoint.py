"""The guide's checkpoint and progress files: a view of the ledger for users and for the guide's ``jq`` and ``tail``.

    payout-backfill-worker{N}.checkpoint.json    how far the worker is, replaced as a whole
    payout-backfill-worker{N}.progress.jsonl     one line a batch, appended

Nothing is ever decided from these files: what is stored in the ledger is the truth, and they are written anew from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer, model_validator

from payout_pipeline.ids.chunks import MAX_WORKERS
from payout_pipeline.ledger.info import SnapshotInfo, why_invalid
from payout_pipeline.ledger.rows import STATUSES
from payout_pipeline.ledger.running import RunningLedger
from payout_pipeline.scrub import excerpt
from payout_pipeline.storage import LogLine, Store

_LONGEST_FILE = 1 << 20
_NAME = re.compile(r"payout-backfill-worker(\d{1,2})\.(checkpoint\.json|progress\.jsonl)")


def iso_time(moment: datetime) -> str:
    """An aware datetime as the guide writes it: ``2025-11-09T10:30:00.000Z``."""
    if moment.tzinfo is None:
        raise ValueError("a time without a time zone")
    utc = moment.astimezone(timezone.utc)
    return f"{utc:%Y-%m-%dT%H:%M:%S}.{utc.microsecond // 1000:03d}Z"


_Count = Annotated[int, Field(ge=0, le=2**53 - 1)]  # what jq and every other reader of JSON keep exactly
_Time = Annotated[AwareDatetime, PlainSerializer(iso_time)]
_Worker = Annotated[int, Field(ge=1, le=MAX_WORKERS)]


def checkpoint_name(worker: int) -> str:
    """The key of a worker's checkpoint file under the runtime directory."""
    return f"payout-backfill-worker{worker}.checkpoint.json"


def progress_name(worker: int) -> str:
    """The key of a worker's progress file under the runtime directory."""
    return f"payout-backfill-worker{worker}.progress.jsonl"


def worker_of_name(name: str) -> int | None:
    """The worker that a checkpoint or progress file belongs to; None for other names."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


class Checkpoint(BaseModel):
    """How far a worker is. The first seven fields are the guide's, with its meaning; the aliases are the file's."""

    model_config = ConfigDict(frozen=True, strict=True, populate_by_name=True)

    worker: _Worker = Field(alias="workerNum")
    batches_processed: _Count = Field(alias="batchesProcessed")
    #: The last batch of the unbroken row from the first on, as in the guide ("resumes from the next"); -1: none.
    last_batch_index: Annotated[int, Field(ge=-1, le=2**53 - 1)] = Field(alias="lastBatchIndex")
    ids_processed: _Count = Field(alias="totalIdsProcessed")
    payouts_found: _Count = Field(alias="totalPayoutsFound")
    start_time: _Time = Field(alias="startTime")
    last_save_time: _Time = Field(alias="lastSaveTime")
    #: Failed and invalid ids.
    errors: _Count = Field(alias="totalErrors")
    batches: _Count = Field(alias="totalBatches")
    #: Ids of the chunk; None in a scan, which does not know them beforehand.
    ids: _Count | None = Field(alias="totalIds")
    counts: dict[str, _Count] = Field(alias="statusCounts")
    partition: Annotated[str, Field(pattern=r"^worker_\d+_of_\d+\z")]
    block_number: _Count | None = Field(None, alias="blockNumber")
    deployment: str | None = None
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}\z")]
    state: Literal["running", "complete"] = "running"
    version: Annotated[int, Field(ge=1, le=1)] = 1

    @model_validator(mode="after")
    def _consistent(self) -> Checkpoint:
        if not self.last_batch_index < self.batches_processed <= self.batches:
            raise ValueError("lastBatchIndex, batchesProcessed and totalBatches do not fit together")
        if max(self.payouts_found, self.errors) > self.ids_processed:
            raise ValueError("totalPayoutsFound or totalErrors is beyond totalIdsProcessed")
        if self.ids is not None and self.ids_processed > self.ids:
            raise ValueError("totalIdsProcessed is beyond totalIds")
        if sorted(self.counts) != sorted(STATUSES) or sum(self.counts.values()) != self.ids_processed:
            raise ValueError("the five status counts do not sum to totalIdsProcessed")
        return self


class BatchProgress(BaseModel):
    """One line of the progress file."""

    model_config = ConfigDict(frozen=True, strict=True)

    timestamp: _Time
    worker: _Worker
    batch_index: _Count
    ids_in_batch: _Count
    payouts_found: _Count
    duration_ms: _Count
    total_processed: _Count
    total_found: _Count
    attempts: _Count


def read_checkpoint(store: Store, worker: int, log: LogLine, *, repair: bool = False) -> Checkpoint | None:
    """The checkpoint of a worker; None where there is none, or nothing sensible is in it.

    A damaged file is reported to ``log`` and, with ``repair`` (for the holder of the worker's lock), kept aside as
    ``.corrupt-…`` so that the next write does not bury it. Raises StorageError where the place cannot be read.
    """
    key = checkpoint_name(worker)
    try:
        if store.size(key) > _LONGEST_FILE:
            raise ValueError(f"it is larger than {_LONGEST_FILE:,} bytes")
        checkpoint = Checkpoint.model_validate_json(store.read(key))
        if checkpoint.worker != worker:
            raise ValueError(f"it is worker {checkpoint.worker}'s")
    except FileNotFoundError:
        return None
    except ValueError as error:
        reason = f"CHECKPOINT DAMAGED: {store.describe(key)}: {why_invalid(error)!a}"
        if repair:
            log(f"{reason}; kept as {store.describe(store.set_aside(key))}, rebuilt from the ledger")
        else:
            log(f"{reason}; the next run of worker {worker} rebuilds it from the ledger")
        return None
    return checkpoint


def write_checkpoint(store: Store, checkpoint: Checkpoint) -> None:
    """Replace a worker's checkpoint as a whole. Raises StorageError where the place cannot be written."""
    text = checkpoint.model_dump_json(by_alias=True, indent=2) + "\n"
    store.write(checkpoint_name(checkpoint.worker), text.encode())


def read_progress(store: Store, worker: int, last: int = 1000) -> list[BatchProgress]:
    """The last lines of a worker's progress file, oldest first; incomplete or invalid lines are left out.

    Raises StorageError where the place cannot be read.
    """
    try:
        with store.reading(progress_name(worker)) as file:
            # A line is at most about 300 bytes; more than that many of the last bytes are not needed.
            file.seek(max(0, file.seek(0, 2) - 400 * last))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    found: list[BatchProgress] = []
    for line in lines:
        try:
            found.append(BatchProgress.model_validate_json(line))
        except ValueError:
            continue
    return found[-last:]


class CheckpointWriter:
    """Keeps a worker's checkpoint and progress files in step with its run.

    Args:
        store: the runtime directory.
        worker: number of the worker, from 1.
        running: the run; in a scan its number of ids is not known.
        interval: batches between two refreshes of the checkpoint.
        clock: returns the present time.
    """

    def __init__(
        self,
        store: Store,
        worker: int,
        running: RunningLedger,
        *,
        interval: int = 10,
        clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self._store, self._worker, self._running, self._clock = store, worker, running, clock
        self._interval, self._since = max(1, interval), 0
        # At an object store, which cannot append, lines are gathered until the checkpoint is written.
        self._lines = b""

    def begin(self) -> None:
        """Note where the run starts from. A new snapshot begins a new progress file."""
        if not self._running.batches_done:
            self._store.delete(progress_name(self._worker))
        elif self._store.is_local:
            self._lines = b"\n"  # the last line may have been cut off by a crash
        self.save()

    def batch_done(self, index: int, *, ids: int, found: int, seconds: float, attempts: int) -> bool:
        """Note a batch that is on disk; returns whether the checkpoint was refreshed (the moment to log progress).

        Args:
            index: the batch.
            ids: its ids.
            found: its resolved ids.
            seconds: from its first request to its last answer.
            attempts: requests that it took.
        """
        counts = self._running.counts
        line = BatchProgress(
            timestamp=self._clock(),
            worker=self._worker,
            batch_index=index,
            ids_in_batch=ids,
            payouts_found=found,
            duration_ms=max(0, round(seconds * 1000)),
            total_processed=sum(counts.values()),
            total_found=counts["resolved"],
            attempts=attempts,
        )
        self._lines += line.model_dump_json().encode() + b"\n"
        if self._store.is_local:
            self._flush()
        self._since += 1
        if self._since < self._interval:
            return False
        self.save()
        return True

    def _flush(self) -> None:
        if self._lines:
            self._store.append(progress_name(self._worker), self._lines)
            self._lines = b""

    def save(self) -> None:
        """Write the checkpoint as things are in the ledger now."""
        self._since = 0
        self._flush()
        running = self._running
        info = running.info.model_copy(update={"counts": running.counts, "ids": running.ids_total})
        done = (running.batches_done, running.last_batch_index, running.batch_count)
        write_checkpoint(self._store, _checkpoint(self._worker, info, done, "running", self._clock()))


def write_complete(store: Store, worker: int, info: SnapshotInfo) -> None:
    """Write the checkpoint of a finished snapshot. Raises StorageError where the place cannot be written."""
    done = (info.batches, info.batches - 1, info.batches)
    write_checkpoint(store, _checkpoint(worker, info, done, "complete", datetime.now(timezone.utc)))


def _checkpoint(
    worker: int,
    info: SnapshotInfo,
    batches: tuple[int, int, int],
    state: Literal["running", "complete"],
    saved: datetime,
) -> Checkpoint:
    """``batches``: how many are done, the last of the unbroken row, and how many there are."""
    return Checkpoint(
        worker=worker,
        batches_processed=batches[0],
        last_batch_index=batches[1],
        ids_processed=sum(info.counts.values()),
        payouts_found=info.payouts_found,
        start_time=datetime.fromisoformat(info.started_at),
        last_save_time=saved,
        errors=info.errors,
        batches=batches[2],
        ids=None if info.mode == "scan" else info.ids,
        counts=info.counts,
        partition=info.partition,
        block_number=info.pin.block_number,
        deployment=excerpt(info.pin.deployment, 200),
        fingerprint=info.fingerprint,
        state=state,
    )
