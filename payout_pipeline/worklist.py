"""What each worker has to do today: the ids of its chunk as a number and a fingerprint.

A check result belongs to the input that it judged. Everything that asks "is this about today's input?" compares these
fingerprints, so that a changed file, another number of workers or another mode is noticed everywhere alike.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from payout_pipeline.conditions import partition_key, prefix_range, read_conditions
from payout_pipeline.settings import Settings


@dataclass(frozen=True, slots=True)
class WorkerInput:
    """The input of one worker. ``ids`` is None in scan mode, where the subgraph decides how many there are."""

    worker: int
    key: str
    ids: int | None
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Worklist:
    """The whole input. ``fingerprint`` covers it all; ``duplicates`` are lines left out as repeated."""

    fingerprint: str
    ids: int | None
    duplicates: int
    source: str
    workers: tuple[WorkerInput, ...]

    def of(self, key: str) -> WorkerInput:
        """The input of the partition ``key``; raises KeyError where PAYOUT_WORKERS has no such worker."""
        for worker in self.workers:
            if worker.key == key:
                return worker
        raise KeyError(key)


def read_worklist(settings: Settings) -> Worklist:
    """Read today's input. Raises InputError where the file cannot be used."""
    of = settings.workers
    numbers = range(1, of + 1)
    if settings.goldsky_mode == "scan":
        whole = _digest(f"scan of every condition, {of} workers")
        return Worklist(
            whole,
            None,
            0,
            "every resolved condition of the subgraph",
            tuple(WorkerInput(n, partition_key(n, of), None, _range_digest(n, of)) for n in numbers),
        )
    path = Path(settings.condition_ids_file)
    try:
        found = path.stat()
    except OSError:
        return _read(path, of)  # which says what is wrong with it
    return _read_once(path, of, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))


@lru_cache(maxsize=8)
def _read_once(path: Path, of: int, _identity: tuple[int, ...]) -> Worklist:
    """The same file is read once a process (and by the children that it forks): a run asks for its worklist five times.

    A file that was written to since has another identity.
    """
    return _read(path, of)


def _read(path: Path, of: int) -> Worklist:
    numbers = range(1, of + 1)
    with contextlib.closing(read_conditions(path)) as file:
        workers = []
        for number in numbers:
            chunk = file.chunk(number, of)
            workers.append(WorkerInput(number, partition_key(number, of), chunk.count, chunk.sha256))
        return Worklist(
            _digest(f"{file.sha256} for {of} workers"),
            file.count,
            file.duplicates,
            str(path),
            tuple(workers),
        )


def _range_digest(worker: int, of: int) -> str:
    prefixes = prefix_range(worker, of)
    return _digest(f"{prefixes.first}-{prefixes.stop}")  # as the ledger names a range (RunPlan.ids_sha256)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
