"""The guide's checkpoint and progress files: a view of the ledger for people and for the guide's ``jq`` and ``tail``.

    payout-backfill-worker{N}.checkpoint.json    where the worker stands, replaced as a whole
    payout-backfill-worker{N}.progress.jsonl     one line a batch, appended

Nothing is ever decided from these files: what is stored in the ledger is the truth, and they are written anew from it.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from payout_pipeline.conditions import MAX_WORKERS
from payout_pipeline.ledger import STATUSES
from payout_pipeline.storage import LogLine, Store

VERSION = 1
STATES = ("running", "failed", "done")
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


def guide_time(text: str) -> str:
    """A time in ISO 8601, in the guide's form; what is already in it stays as it is."""
    if _TIME.fullmatch(text):
        return text
    return iso_time(datetime.fromisoformat(text.replace("Z", "+00:00")))


@dataclass(frozen=True)
class Checkpoint:
    """Where a worker stands. Counts are of the whole run, also of what was done before an interruption."""

    worker: int
    partition: str
    batches_processed: int
    last_batch_index: int
    """The last batch of the unbroken row from the first on, as in the guide ("resumes from the next"); -1: none."""
    total_ids_processed: int
    total_payouts_found: int
    start_time: str
    """When the run began, before any interruption (ISO 8601)."""
    total_errors: int
    """Failed and invalid ids."""
    total_batches: int
    total_ids: int
    counts: dict[str, int]
    """Ids by status; together ``total_ids_processed``."""
    fingerprint: str
    block_number: int | None = None
    deployment: str | None = None
    state: str = "running"
    """One of STATES."""
    requests: int = 0
    rate_limited: int = 0
    """Answers of 429."""
    last_save_time: str = ""
    """Set when it is written."""
    run_id: str = ""

    def to_json(self) -> str:
        """The file's text."""
        document = {
            "workerNum": self.worker,
            "batchesProcessed": self.batches_processed,
            "lastBatchIndex": self.last_batch_index,
            "totalIdsProcessed": self.total_ids_processed,
            "totalPayoutsFound": self.total_payouts_found,
            "startTime": guide_time(self.start_time),
            "lastSaveTime": guide_time(self.last_save_time),
            "totalErrors": self.total_errors,
            "totalBatches": self.total_batches,
            "totalIds": self.total_ids,
            "statusCounts": {status: self.counts[status] for status in STATUSES},
            "partition": self.partition,
            "blockNumber": self.block_number,
            "deployment": self.deployment,
            "fingerprint": self.fingerprint,
            "state": self.state,
            "requests": self.requests,
            "rateLimited": self.rate_limited,
            "runId": self.run_id,
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
            partition=_text(document, "partition"),
            batches_processed=_whole(document, "batchesProcessed"),
            last_batch_index=_whole(document, "lastBatchIndex", -1),
            total_ids_processed=_whole(document, "totalIdsProcessed"),
            total_payouts_found=_whole(document, "totalPayoutsFound"),
            start_time=_time(document, "startTime"),
            last_save_time=_time(document, "lastSaveTime"),
            total_errors=_whole(document, "totalErrors"),
            total_batches=_whole(document, "totalBatches"),
            total_ids=_whole(document, "totalIds"),
            counts={status: _whole(counts, status) for status in STATUSES},
            block_number=None if document.get("blockNumber") is None else _whole(document, "blockNumber"),
            deployment=None if document.get("deployment") is None else _text(document, "deployment", least=0),
            fingerprint=_text(document, "fingerprint"),
            state=_text(document, "state"),
            requests=_whole(document, "requests"),
            rate_limited=_whole(document, "rateLimited"),
            run_id=_text(document, "runId", least=0),
        )
        checkpoint._check()
        return checkpoint

    def _check(self) -> None:
        limits = [
            ("lastBatchIndex + 1", self.last_batch_index + 1, "batchesProcessed", self.batches_processed),
            ("totalPayoutsFound", self.total_payouts_found, "totalIdsProcessed", self.total_ids_processed),
            ("totalErrors", self.total_errors, "totalIdsProcessed", self.total_ids_processed),
            ("batchesProcessed", self.batches_processed, "totalBatches", self.total_batches),
        ]
        if self.total_ids:  # a scan does not know it beforehand
            limits.append(("totalIdsProcessed", self.total_ids_processed, "totalIds", self.total_ids))
        for name, value, limit_name, limit in limits:
            if value > limit:
                raise ValueError(f"{name} ({value}) is beyond {limit_name} ({limit})")
        if sum(self.counts.values()) != self.total_ids_processed:
            raise ValueError("the status counts do not sum to totalIdsProcessed")
        if self.state not in STATES:
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


@dataclass(frozen=True)
class ProgressLine:
    """One line of the progress file: a batch that is on disk."""

    worker: int
    batch_index: int
    ids_in_batch: int
    payouts_found: int
    duration_ms: int
    """From its first request to its last answer."""
    total_processed: int
    total_found: int
    attempts: int
    """Requests that it took."""
    timestamp: str = ""
    """Set when it is written."""

    def to_json(self) -> str:
        """The line's text, without the line end."""
        return json.dumps({"timestamp": self.timestamp, **{name: getattr(self, name) for name in _PROGRESS_NUMBERS}})


_PROGRESS_NUMBERS = tuple(name for name in ProgressLine.__dataclass_fields__ if name != "timestamp")


class CheckpointStore:
    """A worker's checkpoint and progress files, written by the one who holds the worker's lock.

    Args:
        store: the runtime directory.
        worker: number of the worker, from 1.
        log: told of damaged files.
        now: the clock.

    Every method raises StorageError where the place cannot be read or written.
    """

    def __init__(
        self,
        store: Store,
        worker: int,
        log: LogLine,
        now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self._store = store
        self._worker = worker
        self._log = log
        self._now = now
        self._run_id = ""
        self._progress = progress_name(worker)
        # An object store cannot append: lines are gathered until the next checkpoint.
        self._gather = store.local_path() is None
        self._waiting = b""
        self._torn: bool | None = None
        self._lock = threading.Lock()

    @property
    def places(self) -> list[str]:
        """Where the two files are, for people."""
        return [self._store.describe(checkpoint_name(self._worker)), self._store.describe(self._progress)]

    def begin(self, run_id: str) -> Checkpoint | None:
        """Go on with the files of run ``run_id``, or begin new ones: the progress file of another run is removed.

        Returns:
            The checkpoint of this run, if there is one. A damaged one is kept aside, loudly.
        """
        former = read_checkpoint(self._store, self._worker, self._log, repair=True)
        with self._lock:
            self._run_id, self._waiting, self._torn = run_id, b"", None
            if former is not None and former.run_id != run_id:
                self._store.delete(self._progress)
        return former if former is not None and former.run_id == run_id else None

    def append(self, line: ProgressLine) -> None:
        """Add one whole line to the progress file; its time is now unless it has one."""
        if not line.timestamp:
            line = replace(line, timestamp=iso_time(self._now()))
        with self._lock:
            self._waiting += line.to_json().encode() + b"\n"
            if not self._gather:
                self._flush()

    def save(self, checkpoint: Checkpoint) -> Checkpoint:
        """Replace the checkpoint as a whole; its last save is now, its run that of `begin` unless it names one."""
        written = replace(
            checkpoint, last_save_time=iso_time(self._now()), run_id=checkpoint.run_id or self._run_id
        )
        with self._lock:
            self._flush()
            self._store.write(checkpoint_name(self._worker), written.to_json().encode())
        return written

    def remove(self) -> None:
        """Remove both files."""
        with self._lock:
            self._waiting, self._torn = b"", None
            self._store.delete(checkpoint_name(self._worker))
            self._store.delete(self._progress)

    def _flush(self) -> None:
        if not self._waiting:
            return
        if self._torn is None:
            self._torn = self._ends_torn()
        # A line that a crash has torn is ended here, so that it spoils no other.
        self._store.append(self._progress, b"\n" + self._waiting if self._torn else self._waiting)
        self._waiting, self._torn = b"", False

    def _ends_torn(self) -> bool:
        try:
            with self._store.reading(self._progress) as file:
                if file.seek(0, 2) == 0:
                    return False
                file.seek(-1, 2)
                return file.read(1) != b"\n"
        except FileNotFoundError:
            return False


def read_progress(store: Store, worker: int, last: int = 1000) -> list[ProgressLine]:
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


def _progress_line(text: bytes) -> ProgressLine | None:
    try:
        document = _object(text)
        numbers = {name: _whole(document, name) for name in _PROGRESS_NUMBERS}
        return ProgressLine(timestamp=_time(document, "timestamp"), **numbers)
    except ValueError:
        return None
