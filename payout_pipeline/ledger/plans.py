"""What a run of a ledger asks, and what is remembered of a run: its plan, its pinned block, its totals."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal

from payout_pipeline.conditions import Chunk, PrefixRange
from payout_pipeline.ledger.rows import ERROR_STATUSES

VERSION = 1

Refetch = Literal["all", "unresolved"]
Mode = Literal["list", "scan"]


@dataclass(frozen=True)
class Pin:
    """The block that every batch of a run asks, and the deployment that answers."""

    block_number: int
    deployment: str
    kind: Literal["number", "number_gte"] = "number"
    head_number: int | None = None
    head_timestamp: int | None = None
    has_indexing_errors: bool = False


@dataclass(frozen=True)
class RunPlan:
    """What a run is to ask. Two runs with equal fingerprints ask the same batches."""

    endpoint: str
    batch_size: int
    schema_kind: str
    chunk: Chunk | None = None
    """The ids, in ``list`` mode."""
    prefixes: PrefixRange | None = None
    """The range of ids, in ``scan`` mode."""
    mode: Mode = "list"
    refetch: Refetch = "all"
    """``unresolved`` carries the resolved rows of the finished snapshot over and asks the other ids only."""

    def __post_init__(self) -> None:
        if (self.mode == "list") != (self.chunk is not None) or (self.mode == "scan") != (self.prefixes is not None):
            raise ValueError("a list has a chunk, a scan has a range of prefixes")

    @property
    def ids(self) -> int:
        """Number of ids of the list; 0 in a scan, which has yet to find them."""
        return 0 if self.chunk is None else self.chunk.count

    def batches(self, asked: int) -> int | None:
        """Number of batches that ask for so many ids; None in a scan, which takes as many as it needs."""
        return None if self.chunk is None else -(-asked // self.batch_size)

    @property
    def ids_sha256(self) -> str:
        """Of the ids asked (list), or of the range (scan)."""
        if self.chunk is not None:
            return self.chunk.sha256
        assert self.prefixes is not None  # noqa: S101
        return hashlib.sha256(f"{self.prefixes.first}-{self.prefixes.stop}".encode()).hexdigest()

    @property
    def endpoint_sha256(self) -> str:
        """Stands for the endpoint on disk, since its URL may carry a key."""
        return hashlib.sha256(self.endpoint.encode()).hexdigest()

    @property
    def fingerprint(self) -> str:
        """Of everything that decides what a batch asks: ids, endpoint, batch size, schema, mode, version."""
        parts = [self.ids_sha256, self.endpoint, self.batch_size, self.schema_kind, self.mode, VERSION]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class SnapshotInfo:
    """The facts of a finished snapshot, kept in the footer of its file."""

    snapshot_id: str
    partition: str
    fingerprint: str
    ids_sha256: str
    endpoint_sha256: str
    schema_kind: str
    mode: str
    batch_size: int
    refetch: str
    pin: Pin
    started_at: str
    finished_at: str
    ids: int
    counts: dict[str, int]
    carried: int
    """Rows taken over from the former snapshot instead of asked."""
    batches: int
    stats: dict[str, Any] = field(default_factory=dict)
    """What the fetch wants to be remembered: requests, retries, waits."""
    version: int = VERSION

    @property
    def payouts_found(self) -> int:
        """Number of resolved ids."""
        return self.counts["resolved"]

    @property
    def errors(self) -> int:
        """Number of failed and invalid ids."""
        return sum(self.counts[status] for status in ERROR_STATUSES)


@dataclass(frozen=True)
class RunningInfo:
    """The facts of a run that is going or has died, without reading its batches."""

    run_id: str
    fingerprint: str
    refetch: str
    started_at: str
    ids: int
    carried: int
    batches: int | None
    batches_written: int
    pin: Pin | None


@dataclass
class Facts:
    """run.json; also inside each batch, so that it can be made again from any of them."""

    run_id: str
    fingerprint: str
    refetch: str
    started_at: str
    ids: int
    carried_snapshot: str | None
    carried: int
    batches: int | None
    pin: Pin | None
    version: int = VERSION

    def to_json(self) -> str:
        """For run.json and the footers of batches."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: bytes | str) -> Facts:
        """Raises ValueError where the text is anything but what `to_json` writes."""
        try:
            fields = json.loads(text)
            pin = fields.pop("pin")
            facts = cls(pin=None if pin is None else pin_from(pin), **fields)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"not the facts of a run: {error}") from error
        texts = (facts.run_id, facts.fingerprint, facts.refetch, facts.started_at)
        numbers = (facts.ids, facts.carried, 0 if facts.batches is None else facts.batches)
        if (
            facts.version != VERSION
            or not all(isinstance(value, str) and value for value in texts)
            or not all(type(value) is int and 0 <= value < 2**53 for value in numbers)
            or not (facts.carried_snapshot is None or isinstance(facts.carried_snapshot, str))
        ):
            raise ValueError("not the facts of a run of this version")
        return facts


def pin_from(fields: Any) -> Pin:
    """The pin that was written; raises ValueError, TypeError or KeyError where it is none."""
    pin = Pin(**fields)
    if type(pin.block_number) is not int or pin.block_number < 0 or not isinstance(pin.deployment, str):
        raise ValueError("not a pin")
    return pin


def now() -> str:
    """ISO 8601, UTC."""
    # With an offset instead of a Z, which fromisoformat of Python 3.10 does not read.
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
