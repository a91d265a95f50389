"""Whether a ledger holds each id of its chunk once and no other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from payout_pipeline.ids.chunks import Chunk, PrefixRange
from payout_pipeline.ledger.rows import STATUSES, counts_of, id_array

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLE = 20
"""Ids shown of each kind of difference."""


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


def account(ids: Chunk | PrefixRange, batches: Iterable[pa.RecordBatch], expected: int) -> Accounting:
    """Compare the ids of a ledger's rows with those of the chunk, exactly.

    Args:
        ids: the chunk; or a range of prefixes, within which each id is to be there at most once.
        batches: rows that have ``condition_id`` and ``status``.
        expected: number of ids that a range is to have.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    in_order, rest, counts = _split(ids, batches)
    if not rest and isinstance(ids, Chunk) and in_order == ids.count:
        return Accounting(ids.count, ids.count, missing=0, extra=0, duplicated=0, counts=counts)
    stored = pa.concat_arrays([pa.array([], pa.string()), *(batch.column("condition_id") for batch in rest)])
    if isinstance(ids, Chunk):
        stored = pa.concat_arrays([id_array(ids).slice(0, in_order), stored])
    tally = stored.value_counts()
    there, times = tally.field(0), tally.field(1)
    twice = there.filter(pc.greater(times, 1))
    if isinstance(ids, PrefixRange):
        known = pc.is_in(pc.utf8_slice_codeunits(there, 0, 2), value_set=pa.array(ids.prefixes, pa.string()))
        missing, lost = there.slice(0, 0), max(0, expected - len(stored))
    else:
        wanted = id_array(ids)
        known = pc.is_in(there, value_set=wanted)
        missing = wanted.filter(pc.invert(pc.is_in(wanted, value_set=there)))
        expected, lost = len(wanted), len(missing)
    extra = there.filter(pc.invert(known))
    return Accounting(
        expected=expected,
        rows=len(stored),
        missing=lost,
        extra=len(extra),
        duplicated=len(stored) - len(there),
        counts=counts,
        missing_sample=_shown(missing),
        extra_sample=_shown(extra),
        duplicated_sample=_shown(twice),
    )


def _split(
    ids: Chunk | PrefixRange, batches: Iterable[pa.RecordBatch]
) -> tuple[int, list[pa.RecordBatch], dict[str, int]]:
    """How many of the first ids of a chunk the rows have in its order, the batches behind them, and the rows by status.

    A ledger has its ids in order, so nothing of it is held in memory unless something is wrong.
    """
    in_order, rest = 0, list["pa.RecordBatch"]()
    counts: Counter[str] = Counter(dict.fromkeys(STATUSES, 0))
    for batch in batches:
        counts.update(counts_of(batch))
        of_chunk = ids.ids(in_order, in_order + batch.num_rows) if isinstance(ids, Chunk) and not rest else None
        if batch.column("condition_id").to_pylist() == of_chunk:
            in_order += batch.num_rows
        else:
            rest.append(batch.select(["condition_id"]))
    return in_order, rest, counts


def _shown(ids: Any) -> list[str]:
    return [str(i) if i and len(i) == 64 and i.isalnum() else ascii(i)[:80] for i in ids.slice(0, SAMPLE).to_pylist()]
