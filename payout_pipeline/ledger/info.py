"""The facts of a snapshot: what is asked, at which block, and, once it is finished, what came of it."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timezone
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from payout_pipeline.goldsky.pin import Pin
from payout_pipeline.ids.chunks import Chunk, PrefixRange
from payout_pipeline.ledger.rows import ERROR_STATUSES, STATUSES

VERSION = 1

Refetch = Literal["all", "unresolved"]
Mode = Literal["list", "scan"]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Text = Annotated[str, Field(min_length=1)]


class SnapshotInfo(BaseModel):
    """The facts of one partition's snapshot.

    While a run is going they are in its ``run.json`` and in the footer of each of its batches; the finished snapshot has
    them in the footer of ``ledger.parquet``, completed by what is known only at the end.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    snapshot_id: Text
    partition: Text
    fingerprint: Text
    """Of everything that decides what a batch asks: ids, endpoint, batch size, schema, mode, version."""
    ids_sha256: Text
    endpoint_sha256: Text
    """Represents the endpoint on disk, since its URL may carry a key."""
    schema_kind: Text
    mode: Mode
    batch_size: Count
    refetch: Refetch
    """``unresolved`` carries the resolved rows of the former snapshot over and asks the other ids only."""
    pin: Pin
    started_at: Text
    version: Literal[1] = 1

    finished_at: str = ""
    ids: Count = 0
    counts: dict[str, Count] = Field(default_factory=lambda: dict[str, int](dict.fromkeys(STATUSES, 0)))
    carried: Count = 0
    """Rows taken over from the former snapshot instead of asked."""
    batches: Count = 0
    stats: dict[str, Any] = Field(default_factory=dict)
    """What the fetch wants to be remembered: requests, retries, waits."""

    @classmethod
    def planned(
        cls,
        partition: str,
        ids: Chunk | PrefixRange,
        *,
        endpoint: str,
        batch_size: int,
        schema_kind: str,
        pin: Pin,
        refetch: Refetch = "all",
    ) -> SnapshotInfo:
        """A new snapshot of a chunk of ids, or in scan mode of a range of prefixes."""
        mode: Mode = "scan" if isinstance(ids, PrefixRange) else "list"
        digest = ids_digest(ids)
        asked = [digest, endpoint, batch_size, schema_kind, mode, VERSION]
        return cls(
            snapshot_id=uuid4().hex,
            partition=partition,
            fingerprint=hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
            ids_sha256=digest,
            endpoint_sha256=hashlib.sha256(endpoint.encode()).hexdigest(),
            schema_kind=schema_kind,
            mode=mode,
            batch_size=batch_size,
            refetch=refetch if mode == "list" else "all",
            pin=pin,
            started_at=now(),
        )

    @property
    def identity(self) -> str:
        """Another one for each finished ledger: it changes when the partition is finished anew."""
        return f"{self.snapshot_id} {self.finished_at}"

    def asked_of(self, endpoint: str) -> bool:
        """Whether the answers come from ``endpoint``."""
        return self.endpoint_sha256 == hashlib.sha256(endpoint.encode()).hexdigest()

    @property
    def payouts_found(self) -> int:
        """Number of resolved ids."""
        return self.counts["resolved"]

    @property
    def errors(self) -> int:
        """Number of failed and invalid ids."""
        return sum(self.counts[status] for status in ERROR_STATUSES)


def why_invalid(error: ValueError) -> str:
    """What is wrong with facts that were read, in one line."""
    if not isinstance(error, ValidationError):
        return str(error)[:300]
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"[:300]


def ids_digest(ids: Chunk | PrefixRange) -> str:
    """The fingerprint of the ids (list) or of the range of prefixes (scan)."""
    if isinstance(ids, PrefixRange):
        return hashlib.sha256(f"{ids.first}-{ids.stop}".encode()).hexdigest()
    return ids.sha256


def now() -> str:
    """ISO 8601, UTC."""
    # With an offset instead of a Z, which fromisoformat of Python 3.10 does not read.
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
