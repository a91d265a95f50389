"""How the ids are divided among workers: contiguous chunks, their partition keys and fingerprints, and their batches.

A check result belongs to the input that it judged. Everything that asks "is this about today's input?" compares the
fingerprints of :class:`Worklist`, so that a changed file, another number of workers or another mode is noticed alike.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from payout_pipeline.errors import ConfigurationError
from payout_pipeline.ids.id_list import IdList
from payout_pipeline.ids.today import source_of_ids, todays_ids
from payout_pipeline.settings import Settings

MAX_WORKERS = 99
PARTITION_KEY = re.compile(r"worker_(\d{1,2})_of_(\d{1,2})")


def _check_worker(worker: int, of: int) -> None:
    if not 1 <= of <= MAX_WORKERS:
        raise ConfigurationError(f"PAYOUT_WORKERS is {of}; it has to be 1 to {MAX_WORKERS}")
    if not 1 <= worker <= of:
        raise ConfigurationError(f"there is no worker {worker} of {of}; workers are numbered 1 to {of}")


def partition_key(worker: int, of: int) -> str:
    """``worker_1_of_4``; zero-padded (``worker_01_of_16``) so that text order is number order."""
    _check_worker(worker, of)
    return f"worker_{worker:0{len(str(of))}d}_of_{of}"


def partition_keys(workers: int) -> list[str]:
    """The keys of all workers, in order."""
    return [partition_key(worker, workers) for worker in range(1, workers + 1)]


def worker_of_key(key: str) -> tuple[int, int]:
    """The inverse of :func:`partition_key`: (worker, of). Raises ConfigurationError for any other text."""
    match = PARTITION_KEY.fullmatch(key)
    if match is not None:
        worker, of = int(match[1]), int(match[2])
        if 1 <= of <= MAX_WORKERS and 1 <= worker <= of and partition_key(worker, of) == key:
            return worker, of
    raise ConfigurationError(f"{key[:80]!a} is no partition; they are named like worker_1_of_4 and worker_01_of_16")


def worker_numbers(keys: Iterable[str]) -> str:
    """The workers of these partitions as ``--workers`` takes them: ``1,3``."""
    return ",".join(str(worker_of_key(key)[0]) for key in keys)


def chunk_bounds(count: int, worker: int, of: int) -> tuple[int, int]:
    """Start (inclusive) and stop (exclusive) of a worker's chunk: the guide's table, ceil(count / of) each."""
    _check_worker(worker, of)
    size = -(-count // of)
    return min((worker - 1) * size, count), min(worker * size, count)


@dataclass(frozen=True)
class Chunk:
    """The ids of one worker: positions ``start`` (inclusive) to ``stop`` (exclusive) of the input."""

    id_list: IdList
    start: int
    stop: int

    @property
    def count(self) -> int:
        """Number of ids; 0 where there are more workers than the ids need."""
        return self.id_list.count

    @property
    def sha256(self) -> str:
        """Of the chunk's packed ids in order."""
        return self.id_list.sha256

    def ids(self, start: int = 0, stop: int | None = None) -> list[str]:
        """The ids at positions ``start`` to ``stop`` of this chunk, each 64 lower-case hex digits."""
        return self.id_list.ids(start, stop)


def chunk_of(ids: IdList, worker: int, of: int) -> Chunk:
    """The chunk of worker ``worker`` (from 1) of ``of``; later chunks may be empty."""
    start, stop = chunk_bounds(ids.count, worker, of)
    return Chunk(IdList(ids.packed.slice(start, stop - start)), start, stop)


@dataclass(frozen=True)
class PrefixRange:
    """A worker's share of all ids by their first two hex digits: ``first`` (inclusive) to ``stop`` (exclusive)."""

    first: int
    stop: int

    @property
    def prefixes(self) -> list[str]:
        """The two-digit prefixes in order."""
        return [f"{prefix:02x}" for prefix in range(self.first, self.stop)]

    def holds(self, condition_id: str) -> bool:
        """Whether the id (64 lower-case hex digits) belongs to the range."""
        return self.first <= int(condition_id[:2], 16) < self.stop


def prefix_range(worker: int, of: int) -> PrefixRange:
    """The share of worker ``worker`` of ``of`` in a scan of a whole subgraph: the 256 prefixes, cut evenly."""
    _check_worker(worker, of)
    return PrefixRange(256 * (worker - 1) // of, 256 * worker // of)


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
    """Today's input, without its ids. Raises InputError where the file, or the list of the query, cannot be used."""
    numbers = range(1, settings.workers + 1)
    if settings.goldsky_mode == "scan":
        ranges = [(number, prefix_range(number, settings.workers)) for number in numbers]
        return Worklist(
            _digest(f"scan of every condition, {settings.workers} workers"),
            None,
            0,
            "every resolved condition of the subgraph",
            tuple(
                WorkerInput(number, partition_key(number, settings.workers), None, _digest(f"{r.first}-{r.stop}"))
                for number, r in ranges
            ),
        )
    return worklist_of(settings, todays_ids(settings))


def worklist_of(settings: Settings, found: IdList) -> Worklist:
    """The input that these ids are for today's workers."""
    numbers = range(1, settings.workers + 1)
    chunks = [(number, chunk_of(found, number, settings.workers)) for number in numbers]
    return Worklist(
        _digest(f"{found.sha256} for {settings.workers} workers"),
        found.count,
        found.duplicates,
        source_of_ids(settings),
        tuple(
            WorkerInput(number, partition_key(number, settings.workers), chunk.count, chunk.sha256)
            for number, chunk in chunks
        ),
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
