"""The guide's checkpoint and progress files: a view of the ledger for people and for the guide's ``jq`` and ``tail``.

    payout-backfill-worker{N}.checkpoint.json    where the worker stands, replaced as a whole
    payout-backfill-worker{N}.progress.jsonl     one line a batch, appended

Nothing is ever decided from these files: what is stored in the ledger is the truth, and they are written anew from it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Protocol

from payout_pipeline.conditions import MAX_WORKERS
from payout_pipeline.ledger import STATUSES, Pin
from payout_pipeline.storage import LogLine, Store

VERSION = 1
_LARGEST = 2**53 - 1  # what jq and every other reader of JSON keep exactly
_LONGEST_FILE = 1 << 20
_LONGEST_TEXT = 500
_NAME = re.compile(r"payout-backfill-worker(\d{1,2})\.(checkpoint\.json|progress\.jsonl)")
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z")


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


def iso_time(moment: datetime) -> str:
    """An aware datetime as the guide writes it: ``2025-11-09T10:30:00.000Z``."""
    if moment.tzinfo is None:
        raise ValueError("a time without a time zone")
    utc = moment.astimezone(timezone.utc)
    return f"{utc:%Y-%m-%dT%H:%M:%S}.{utc.microsecond // 1000:03d}Z"


@dataclass(frozen=True)
class Checkpoint:
    """Where a worker stands. The first seven fields are the guide's, with its meaning."""

    worker: int
    batches_processed: int
    last_batch_index: int
    """The last batch of the unbroken row from the first on, as in the guide ("resumes from the next"); -1: none."""
    ids_processed: int
    payouts_found: int
    start_time: str
    last_save_time: str
    errors: int
    """Failed and invalid ids."""
    batches: int
    ids: int | None
    """Ids of the chunk; None in a scan, which does not know them beforehand."""
    counts: dict[str, int]
    partition: str
    fingerprint: str
    block_number: int | None = None
    deployment: str | None = None
    state: str = "running"
    """``running`` or ``complete``."""

    def to_json(self) -> str:
        """The file's text."""
        document = {
            "workerNum": self.worker,
            "batchesProcessed": self.batches_processed,
            "lastBatchIndex": self.last_batch_index,
            "totalIdsProcessed": self.ids_processed,
            "totalPayoutsFound": self.payouts_found,
            "startTime": self.start_time,
            "lastSaveTime": self.last_save_time,
            "totalErrors": self.errors,
            "totalBatches": self.batches,
            "totalIds": self.ids,
            "statusCounts": self.counts,
            "partition": self.partition,
            "blockNumber": self.block_number,
            "deployment": self.deployment,
            "fingerprint": self.fingerprint,
            "state": self.state,
            "version": VERSION,
        }
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: bytes | str) -> Checkpoint:
        """Raises ValueError, saying why, for everything that is not a whole and sensible checkpoint."""
        document = _object(text)
        version = _whole(document, "version")
        if version != VERSION:
            raise ValueError(f"it is of version {version}; this program writes version {VERSION}")
        counts = document.get("statusCounts")
        if not isinstance(counts, dict) or sorted(counts) != sorted(STATUSES):
            raise ValueError("statusCounts are not the counts of the five statuses")
        checkpoint = cls(
            worker=_whole(document, "workerNum", 1, MAX_WORKERS),
            batches_processed=_whole(document, "batchesProcessed"),
            last_batch_index=_whole(document, "lastBatchIndex", -1),
            ids_processed=_whole(document, "totalIdsProcessed"),
            payouts_found=_whole(document, "totalPayoutsFound"),
            start_time=_time(document, "startTime"),
            last_save_time=_time(document, "lastSaveTime"),
            errors=_whole(document, "totalErrors"),
            batches=_whole(document, "totalBatches"),
            ids=None if document.get("totalIds") is None else _whole(document, "totalIds"),
            counts={status: _whole(counts, status) for status in STATUSES},
            partition=_text(document, "partition"),
            block_number=None if document.get("blockNumber") is None else _whole(document, "blockNumber"),
            deployment=None if document.get("deployment") is None else _text(document, "deployment", least=0),
            fingerprint=_text(document, "fingerprint"),
            state=_text(document, "state"),
        )
        checkpoint._check()
        return checkpoint

    def _check(self) -> None:
        limits: list[tuple[str, int, str, int]] = [
            ("batchesProcessed", self.batches_processed, "totalBatches", self.batches),
            ("lastBatchIndex", self.last_batch_index + 1, "batchesProcessed", self.batches_processed),
            ("totalPayoutsFound", self.payouts_found, "totalIdsProcessed", self.ids_processed),
            ("totalErrors", self.errors, "totalIdsProcessed", self.ids_processed),
        ]
        if self.ids is not None:
            limits.append(("totalIdsProcessed", self.ids_processed, "totalIds", self.ids))
        for name, value, limit_name, limit in limits:
            if value > limit:
                raise ValueError(f"{name} ({value}) is beyond {limit_name} ({limit})")
        if sum(self.counts.values()) != self.ids_processed:
            raise ValueError("the status counts do not sum to totalIdsProcessed")
        if self.state not in ("running", "complete"):
            raise ValueError(f"state is {self.state[:40]!a}")


def _object(text: bytes | str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    return document


def _whole(document: Mapping[str, Any], name: str, least: int = 0, most: int = _LARGEST) -> int:
    value = document.get(name)
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is no whole number from {least} to {most}")
    return value


def _text(document: Mapping[str, Any], name: str, least: int = 1) -> str:
    value = document.get(name)
    if not isinstance(value, str) or not value.isprintable() or not least <= len(value) <= _LONGEST_TEXT:
        raise ValueError(f"{name} is no short text")
    return value


def _time(document: Mapping[str, Any], name: str) -> str:
    value = _text(document, name)
    if not _TIME.fullmatch(value):
        raise ValueError(f"{name} is no time like 2025-11-09T10:30:00.000Z")
    datetime.strptime(value, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
    return value


def read_checkpoint(store: Store, worker: int, log: LogLine, *, repair: bool = False) -> Checkpoint | None:
    """The checkpoint of a worker; None where there is none, or nothing sensible is in it.

    A damaged file is said loudly and, with ``repair`` (for the one who holds the worker's lock), kept aside as
    ``.corrupt-…`` so that the next write does not bury it.

    Raises:
        StorageError: the place cannot be read.
    """
    key = checkpoint_name(worker)
    try:
        if store.size(key) > _LONGEST_FILE:
            raise ValueError(f"it is larger than {_LONGEST_FILE:,} bytes")
        checkpoint = Checkpoint.from_json(store.read(key))
        if checkpoint.worker != worker:
            raise ValueError(f"it is worker {checkpoint.worker}'s")
    except FileNotFoundError:
        return None
    except ValueError as error:
        reason = str(error)[:300]
        where = store.describe(key)
        if repair:
            kept = store.set_aside(key)
            log(f"CHECKPOINT DAMAGED: {where}: {reason!a}; kept as {store.describe(kept)}, rebuilt from the ledger")
        else:
            log(f"CHECKPOINT DAMAGED: {where}: {reason!a}; the next run of worker {worker} rebuilds it from the ledger")
        return None
    return checkpoint


def write_checkpoint(store: Store, checkpoint: Checkpoint) -> None:
    """Replace a worker's checkpoint as a whole.

    Raises:
        StorageError: the place cannot be written.
    """
    store.write(checkpoint_name(checkpoint.worker), checkpoint.to_json().encode())


@dataclass(frozen=True)
class BatchProgress:
    """One line of the progress file."""

    timestamp: str
    worker: int
    batch_index: int
    ids_in_batch: int
    payouts_found: int
    duration_ms: int
    total_processed: int
    total_found: int
    attempts: int


_PROGRESS_FIELDS = tuple(BatchProgress.__dataclass_fields__)


class ProgressFile:
    """Appends to a worker's progress file.

    A line that a crash has torn is ended before the first append, so that it spoils no other. At an object store,
    which cannot append, lines are gathered until `flush`.
    """

    def __init__(self, store: Store, worker: int) -> None:
        self._store = store
        self._key = progress_name(worker)
        self._begun = False
        self._gather = store.local_path() is None
        self._waiting = b""

    def append(self, line: BatchProgress) -> None:
        """Add one whole line.

        Raises:
            StorageError: the place cannot be written.
        """
        self._waiting += json.dumps({name: getattr(line, name) for name in _PROGRESS_FIELDS}).encode() + b"\n"
        if not self._gather:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered.

        Raises:
            StorageError: the place cannot be written.
        """
        if not self._waiting:
            return
        torn = not self._begun and self._is_torn()
        self._store.append(self._key, b"\n" + self._waiting if torn else self._waiting)
        self._waiting = b""
        self._begun = True

    def _is_torn(self) -> bool:
        try:
            with self._store.reading(self._key) as file:
                if file.seek(0, 2) == 0:
                    return False
                file.seek(-1, 2)
                return file.read(1) != b"\n"
        except FileNotFoundError:
            return False

    def clear(self) -> None:
        """Remove the file: a new snapshot begins."""
        self._store.delete(self._key)
        self._begun, self._waiting = False, b""


def read_progress(store: Store, worker: int, last: int = 1000) -> list[BatchProgress]:
    """The last lines of a worker's progress file, oldest first; lines that are torn or strange are left out.

    Raises:
        StorageError: the place cannot be read.
    """
    try:
        with store.reading(progress_name(worker)) as file:
            # A line is at most about 300 bytes; more than that many of the last bytes are not needed.
            file.seek(max(0, file.seek(0, 2) - 400 * last))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    found = [parsed for parsed in map(_progress_line, lines) if parsed is not None]
    return found[-last:]


def _progress_line(text: bytes) -> BatchProgress | None:
    try:
        document = _object(text)
        numbers = {name: _whole(document, name) for name in _PROGRESS_FIELDS if name != "timestamp"}
        return BatchProgress(timestamp=_time(document, "timestamp"), **numbers)
    except ValueError:
        return None


class RunTotals(Protocol):
    """How far a run is: `ledger.RunningLedger` is one."""

    @property
    def counts(self) -> dict[str, int]:
        """Ids by status."""
        ...

    @property
    def batches_done(self) -> int:
        """Number of batches on disk."""
        ...

    @property
    def last_batch_index(self) -> int:
        """The last batch of the unbroken row from the first on; -1: none."""
        ...


class CheckpointWriter:
    """Keeps a worker's checkpoint and progress files in step with its run.

    Args:
        store: the runtime directory.
        worker: number of the worker, from 1.
        partition: the partition's key.
        fingerprint: of the run.
        ids: ids of the chunk; None in a scan.
        batches: batches of the run.
        start_time: when the run began, before any interruption.
        interval: batches between two refreshes of the checkpoint.
        now: the clock.
    """

    def __init__(
        self,
        store: Store,
        *,
        worker: int,
        partition: str,
        fingerprint: str,
        ids: int | None,
        batches: int,
        start_time: str,
        interval: int = 10,
        pin: Pin | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self._store = store
        self._worker = worker
        self._partition = partition
        self._fingerprint = fingerprint
        self._ids = ids
        self._batches = batches
        self._start_time = start_time
        self._interval = max(1, interval)
        self._pin = pin
        self._now = now
        self._since = 0
        self._progress = ProgressFile(store, worker)

    def batch_done(
        self,
        index: int,
        *,
        ids: int,
        found: int,
        duration_seconds: float,
        attempts: int,
        totals: RunTotals,
    ) -> bool:
        """Note a batch that is on disk.

        Args:
            index: the batch.
            ids: its ids.
            found: its resolved ids.
            duration_seconds: from its first request to its last answer.
            attempts: requests that it took.
            totals: the run so far, this batch included (a `ledger.RunningLedger`).

        Returns:
            Whether the checkpoint was refreshed (the moment to log progress).
        """
        counts = totals.counts
        milliseconds = round(duration_seconds * 1000) if math.isfinite(duration_seconds) else 0
        self._progress.append(
            BatchProgress(
                iso_time(self._now()), self._worker, index, ids, found, max(0, milliseconds),
                sum(counts.values()), counts["resolved"], attempts,
            )
        )  # fmt: skip
        self._since += 1
        if self._since < self._interval:
            return False
        self.save(totals)
        return True

    def save(self, totals: RunTotals, *, complete: bool = False) -> Checkpoint:
        """Write the checkpoint as things are in the ledger now."""
        self._since = 0
        self._progress.flush()
        counts = totals.counts
        checkpoint = Checkpoint(
            worker=self._worker,
            batches_processed=totals.batches_done,
            last_batch_index=totals.last_batch_index,
            ids_processed=sum(counts.values()),
            payouts_found=counts["resolved"],
            start_time=self._start_time,
            last_save_time=iso_time(self._now()),
            errors=counts["failed"] + counts["invalid"],
            batches=self._batches,
            ids=self._ids,
            counts={status: counts[status] for status in STATUSES},
            partition=self._partition,
            fingerprint=self._fingerprint,
            block_number=None if self._pin is None else self._pin.block_number,
            deployment=None if self._pin is None else self._pin.deployment,
            state="complete" if complete else "running",
        )
        write_checkpoint(self._store, checkpoint)
        return checkpoint

    def start_progress_anew(self) -> None:
        """Remove the progress file of the former snapshot."""
        self._progress.clear()
