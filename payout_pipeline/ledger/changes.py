"""What is another between two finished ledgers of a partition, id by id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

KINDS = ("newly_resolved", "vector_changed", "became_absent", "no_longer_resolved")
COMPARED_COLUMNS = ("condition_id", "status", "payout_numerators", "payout_denominator")
_COMPARED = ("condition_id", "status", "vector")
_CHANGED = ("condition_id", "change", "before", "after")
_ROWS_AT_ONCE = 1 << 15


def vector_texts(numerators: Any, denominators: Any) -> Any:
    """Vectors as text, ``[1, 0]/1``; empty where there is none. Arrays of pyarrow in, an array out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    inner = pc.binary_join(numerators.cast(pa.list_(pa.string())), ", ")
    return pc.fill_null(pc.binary_join_element_wise("[", inner, "]/", denominators.cast(pa.string()), ""), "")


def states(batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """``condition_id``, ``status`` and ``vector`` (as text) of a ledger, from batches of the `COMPARED_COLUMNS`."""
    import pyarrow as pa

    return pa.concat_tables([_table([], [], [], names=_COMPARED), *map(_texts, batches)])


def with_last_known(old: pa.Table, known: pa.Table) -> pa.Table:
    """The `states` of a ledger, with the ``condition_id`` and ``vector`` that are known of ids without a usable state in it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    unusable = pc.is_in(old["status"], pa.array(["failed", "invalid"]))
    kept = old.filter(
        pc.invert(pc.and_(unusable, pc.is_in(old["condition_id"], known["condition_id"].combine_chunks())))
    )
    more = known.filter(pc.invert(pc.is_in(known["condition_id"], kept["condition_id"].combine_chunks())))
    resolved = _table(more["condition_id"], ["resolved"] * len(more), more["vector"], names=_COMPARED)
    return pa.concat_tables([kept, resolved])


def compare(old: pa.Table, after: Iterable[pa.RecordBatch], *, whole: bool) -> pa.Table:
    """The ids that are another in the second ledger, with their vectors in both.

    ``newly_resolved``: resolved now, and not before, or not asked before; ``vector_changed``: resolved in both, with other
    vectors in lowest terms; ``became_absent``: the subgraph knew the id (``before`` is its vector, if it was resolved) and
    does not now; ``no_longer_resolved``: resolved before, unresolved now. An id that got no answer, or an invalid one, did
    not change.

    Args:
        old: the `states` of the first.
        after: batches of the `COMPARED_COLUMNS` of the second.
        whole: both ledgers are scans, which hold resolved ids only: one that is left out is no longer resolved.

    Returns:
        A table of ``condition_id``, ``change``, ``before``, ``after``.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    seen = np.zeros(len(old), dtype=bool)
    found = [_table([], [], [], [])]
    for part in _portions(map(_texts, after)):
        position = pc.index_in(old["condition_id"], value_set=part["condition_id"].combine_chunks())
        both = pc.is_valid(position)
        seen |= np.asarray(both)
        then, now = old.filter(both), part.take(position.filter(both))
        kinds = _kinds(then, now)
        changed = _table(now["condition_id"], kinds, then["vector"], now["vector"])
        found.append(changed.filter(pa.array(kinds != "")))
        new = np.ones(len(part), dtype=bool)
        new[np.asarray(position.filter(both))] = False
        fresh = part.filter(pa.array(new & _has(part, "resolved")))
        kind, nothing = ["newly_resolved"] * len(fresh), [""] * len(fresh)
        found.append(_table(fresh["condition_id"], kind, nothing, fresh["vector"]))
    if whole:
        gone = old.filter(pa.array(~seen))
        nothing = [""] * len(gone)
        found.append(_table(gone["condition_id"], ["no_longer_resolved"] * len(gone), gone["vector"], nothing))
    return pa.concat_tables(found).combine_chunks()


def _kinds(then: pa.Table, now: pa.Table) -> NDArray[np.str_]:
    """The kind of change of each row; empty where there is none."""
    import numpy as np
    import pyarrow.compute as pc

    was, is_ = _has(then, "resolved"), _has(now, "resolved")
    known = ~_has(then, "absent") & ~_has(then, "failed")
    other: NDArray[np.bool_] = np.asarray(pc.not_equal(then["vector"], now["vector"]))
    return np.select(
        [
            is_ & ~was,
            is_ & was & other,
            _has(now, "absent") & known,
            _has(now, "unresolved") & was,
        ],
        [np.array(kind) for kind in KINDS],
        "",
    )


def _portions(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows in portions: looking ids up takes memory by the number of those that are looked up in."""
    import pyarrow as pa

    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= _ROWS_AT_ONCE:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _has(table: pa.Table, status: str) -> NDArray[np.bool_]:
    import numpy as np
    import pyarrow.compute as pc

    return np.asarray(pc.equal(table["status"], status))


def _texts(batch: pa.RecordBatch) -> pa.Table:
    vectors = vector_texts(batch["payout_numerators"], batch["payout_denominator"])
    return _table(batch["condition_id"], batch["status"], vectors, names=_COMPARED)


def _table(*columns: Any, names: Sequence[str] = _CHANGED) -> pa.Table:
    import pyarrow as pa

    return pa.table(dict(zip(names, columns, strict=True)), schema=pa.schema({name: pa.string() for name in names}))
