"""What is another between two finished ledgers of a partition, id by id."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

Change = Literal["newly_resolved", "vector_changed", "became_absent", "no_longer_resolved"]
COMPARED_COLUMNS = ("condition_id", "status", "payout_numerators", "payout_denominator")


def vector_texts(numerators: Any, denominators: Any) -> Any:
    """Vectors as text, ``[1, 0]/1``; empty where there is none. Arrays of pyarrow in, an array out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    inner = pc.binary_join(numerators.cast(pa.list_(pa.string())), ", ")
    return pc.fill_null(pc.binary_join_element_wise("[", inner, "]/", denominators.cast(pa.string()), ""), "")


def compare(before: Iterable[pa.RecordBatch], after: Iterable[pa.RecordBatch], *, whole: bool) -> pa.Table:
    """The ids that both ledgers have and that are another in the second, with their vectors in both.

    ``newly_resolved``: resolved now, and not before; ``vector_changed``: resolved in both, with other vectors in lowest
    terms; ``became_absent``: the subgraph knew the id (``before`` is its vector, if it was resolved) and does not now;
    ``no_longer_resolved``: resolved before, unresolved now. An id that got no answer, or an invalid one, did not change.

    Args:
        before, after: batches of the columns `COMPARED_COLUMNS`.
        whole: both ledgers are scans, which hold resolved ids only: one that is left out is no longer resolved.

    Returns:
        A table of ``condition_id``, ``change``, ``before``, ``after``.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    old, new = _texts(before), _texts(after)
    position = pc.index_in(new["condition_id"], value_set=old["condition_id"])
    both = pc.is_valid(position)
    then, now = old.take(position.filter(both)), new.filter(both)
    was, is_ = _has(then, "resolved"), _has(now, "resolved")
    known = ~_has(then, "absent") & ~_has(then, "failed")
    other: NDArray[np.bool_] = np.asarray(pc.not_equal(then["vector"], now["vector"]))
    kinds = np.select(
        [is_ & ~was, is_ & was & other, _has(now, "absent") & known, _has(now, "unresolved") & was],
        [np.array(kind) for kind in ("newly_resolved", "vector_changed", "became_absent", "no_longer_resolved")],
        "",
    )
    changed = _table(now["condition_id"], kinds, then["vector"], now["vector"])
    parts = [changed.filter(pc.not_equal(changed["change"], ""))]
    if whole:
        gone = old.filter(pc.invert(pc.is_in(old["condition_id"], value_set=new["condition_id"])))
        parts.append(_table(gone["condition_id"], ["no_longer_resolved"] * len(gone), gone["vector"], [""] * len(gone)))
    return pa.concat_tables(parts).combine_chunks()


def _has(table: pa.Table, status: str) -> NDArray[np.bool_]:
    import numpy as np
    import pyarrow.compute as pc

    return np.asarray(pc.equal(table["status"], status))


def _texts(batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """``condition_id``, ``status`` and ``vector`` of a ledger."""
    import pyarrow as pa

    names = ["condition_id", "status", "vector"]
    parts = [pa.table([pa.array([], pa.string())] * 3, names)]
    for batch in batches:
        vectors = vector_texts(batch["payout_numerators"], batch["payout_denominator"])
        parts.append(pa.table([batch["condition_id"], batch["status"], vectors], names))
    return pa.concat_tables(parts).combine_chunks()


def _table(ids: Any, change: Any, before: Any, after: Any) -> pa.Table:
    import pyarrow as pa

    columns = {"condition_id": ids, "change": change, "before": before, "after": after}
    return pa.table(columns, schema=pa.schema({name: pa.string() for name in columns}))
