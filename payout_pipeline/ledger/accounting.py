"""Whether a ledger holds each id of its chunk once and no other: exact counts, in little memory."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from payout_pipeline.conditions import Chunk, IdSpool, hash_ids, unpack_ids
from payout_pipeline.ledger.rows import empty_counts, packed_column

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

SAMPLE = 20
"""Ids shown of each kind of difference."""
VERIFIED_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Accounting:
    """How the ledger's ids compare with the chunk's: exact counts, and the first 20 ids of each kind of difference."""

    expected: int
    rows: int
    missing: int
    extra: int
    duplicated: int
    """Rows beyond the first of an id."""
    counts: dict[str, int]
    missing_sample: list[str] = field(default_factory=list)
    extra_sample: list[str] = field(default_factory=list)
    duplicated_sample: list[str] = field(default_factory=list)

    @property
    def closes(self) -> bool:
        """Whether each id of the chunk is there once and no other."""
        return not (self.missing or self.extra or self.duplicated) and sum(self.counts.values()) == self.expected


def account(chunk: Chunk, batches: Iterable[pa.RecordBatch]) -> Accounting:
    """Compare the ids of a ledger's rows with those of the chunk, exactly.

    ``batches``: rows whose first two columns are ``condition_id`` and ``status``.
    """
    counts: Counter[str] = Counter(empty_counts())
    digest = hashlib.sha256()
    odd: list[str] = []
    spool = IdSpool()
    try:
        for batch in batches:
            counts.update({row["values"]: row["counts"] for row in batch.column(1).value_counts().to_pylist()})
            packed, strange = packed_column(batch.column(0))
            digest.update(packed)
            spool.extend(packed)
            odd.extend(strange)
        spool.flush()
        if not odd and len(spool) == chunk.count and digest.hexdigest() == chunk.sha256:
            # The same ids in the same order; distinct, since the chunk's are.
            return Accounting(chunk.count, chunk.count, 0, 0, 0, dict(counts))
        return compare_ids(chunk, spool, odd, dict(counts))
    finally:
        spool.close()


def compare_ids(chunk: Chunk, stored: IdSpool, odd: list[str], counts: dict[str, int]) -> Accounting:
    """Exact comparison of two sets of ids, a portion of the hash space at a time."""
    import numpy as np

    portions = max(1, -(-max(chunk.count, len(stored)) // VERIFIED_AT_ONCE))
    missing = duplicated = 0
    extra = len(odd)
    samples: dict[str, list[str]] = {"missing": [], "extra": [repr(text[:80]) for text in odd[:SAMPLE]], "twice": []}

    def part(blocks: Callable[[], Iterator[bytes]], portion: int) -> NDArray[np.bytes_]:
        chosen = [
            np.frombuffer(block, dtype="S32")[hash_ids(block) % np.uint64(portions) == portion] for block in blocks()
        ]
        return np.concatenate(chosen) if chosen else np.empty(0, dtype="S32")

    def note(kind: str, ids: NDArray[np.bytes_]) -> None:
        room = SAMPLE - len(samples[kind])
        if room > 0:
            samples[kind].extend(unpack_ids(np.ascontiguousarray(ids[:room]).tobytes()))

    for portion in range(portions):
        wanted = part(chunk.blocks, portion)
        have, times = np.unique(part(stored.blocks, portion), return_counts=True)
        lost = wanted[~np.isin(wanted, have)]
        more = have[~np.isin(have, wanted)]
        twice = have[times > 1]
        missing += len(lost)
        extra += len(more)
        duplicated += int((times - 1).sum())
        note("missing", lost)
        note("extra", more)
        note("twice", twice)
    return Accounting(
        chunk.count, len(stored) + len(odd), missing, extra, duplicated, counts,
        samples["missing"], samples["extra"], samples["twice"],
    )  # fmt: skip
