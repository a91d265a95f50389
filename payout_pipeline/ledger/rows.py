"""What a row of a ledger is: its columns, how an answer becomes rows, and what cannot be one."""

from __future__ import annotations

import binascii
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from payout_pipeline.conditions import ID_DIGITS
from payout_pipeline.payouts import InvalidVector, Vector

if TYPE_CHECKING:
    import pyarrow as pa

Status = Literal["resolved", "unresolved", "absent", "invalid", "failed"]
STATUSES: tuple[Status, ...] = ("resolved", "unresolved", "absent", "invalid", "failed")
ERROR_STATUSES: tuple[Status, ...] = ("invalid", "failed")
_HEX_DIGITS = b"0123456789abcdef"


def ledger_schema() -> pa.Schema:
    """The columns of a ledger.

    ``condition_id`` 64 lower-case hex digits; ``status`` one of STATUSES; ``payouts`` JSON text as answered; the vector
    in lowest terms; ``resolved_at`` from the subgraph, never the time of the fetch; ``block_number`` the pinned block;
    ``error`` the reason of ``invalid`` and ``failed``. Null where not applicable.
    """
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("condition_id", pa.string(), nullable=False),
            pa.field("status", pa.string(), nullable=False),
            pa.field("payouts", pa.string()),
            pa.field("payout_numerators", pa.list_(pa.uint64())),
            pa.field("payout_denominator", pa.uint64()),
            pa.field("winning_index", pa.int32()),
            pa.field("resolved_at", pa.timestamp("s", "UTC")),
            pa.field("block_number", pa.uint64()),
            pa.field("fetched_at", pa.timestamp("ms", "UTC")),
            pa.field("error", pa.string()),
        ]
    )


def rows_from_answer(
    asked: Sequence[str],
    answered: Mapping[str, Vector | InvalidVector | None],
    *,
    raw: Mapping[str, str | None],
    block_number: int,
    fetched_at: datetime,
    resolved_at: Mapping[str, int | None] | None = None,
    failed: Mapping[str, str] | None = None,
) -> pa.Table:
    """The ledger rows of one batch, in the order asked.

    Args:
        asked: the ids of the batch.
        answered: what the subgraph said of each id that it knows; ids missing here and in ``failed`` are ``absent``.
        raw: the payouts as answered, as JSON text.
        block_number: the pinned block.
        fetched_at: when the answer came; an aware datetime.
        resolved_at: seconds since 1970 by id, where the subgraph has a resolution time.
        failed: the last error by id, of ids that got no answer.

    Returns:
        A table of `ledger_schema` with one row an id.
    """
    import pyarrow as pa

    times = resolved_at or {}
    faults = failed or {}
    statuses: list[str] = []
    payouts: list[str | None] = []
    numerators: list[tuple[int, ...] | None] = []
    denominators: list[int | None] = []
    winners: list[int | None] = []
    seconds: list[int | None] = []
    errors: list[str | None] = []
    for condition_id in asked:
        vector: Vector | InvalidVector | None = None
        error: str | None = None
        if condition_id in faults:
            status, error = "failed", faults[condition_id] or "no answer"
        elif condition_id not in answered:
            status = "absent"
        else:
            vector = answered[condition_id]
            status = "unresolved"
        if type(vector) is Vector:
            statuses.append("resolved")
            numerators.append(vector.numerators)
            denominators.append(vector.denominator)
            winners.append(vector.winning_index)
            seconds.append(times.get(condition_id))
        else:
            if isinstance(vector, InvalidVector):
                status, error = "invalid", vector.reason
            statuses.append(status)
            numerators.append(None)
            denominators.append(None)
            winners.append(None)
            seconds.append(None)
        payouts.append(raw.get(condition_id) if error is None or status == "invalid" else None)
        errors.append(error)
    schema = ledger_schema()
    count = len(statuses)
    columns: list[Any] = [
        list(asked), statuses, payouts, numerators, denominators, winners, seconds,
        pa.repeat(pa.scalar(block_number, pa.uint64()), count),
        pa.repeat(pa.scalar(fetched_at, pa.timestamp("ms", "UTC")), count),
        errors,
    ]  # fmt: skip
    arrays = [
        pa.array(values, type=kind.type) if isinstance(values, list) else values
        for values, kind in zip(columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def counts_of(table: pa.Table) -> dict[str, int]:
    """Rows by status, each status there."""
    counts = empty_counts()
    for row in table["status"].combine_chunks().value_counts().to_pylist():
        counts[row["values"]] += row["counts"]
    return counts


def packed_column(column: Any) -> tuple[bytes, list[str]]:
    """The ids of a string column, packed, and those that are no normalised ids (left out of the first)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    plain = _packed_if_plain(column)
    if plain is not None:
        return plain, []
    good = pc.fill_null(pc.match_substring_regex(column, r"\A[0-9a-f]{64}\z"), False)
    odd = [str(value) for value in column.filter(pc.invert(good)).to_pylist()]
    return _packed_if_plain(column.filter(good)) or b"", odd


def _packed_if_plain(column: Any) -> bytes | None:
    """The ids of a string array, packed; None where one of them is no normalised id."""
    import numpy as np

    if column.null_count:
        return None
    if not len(column):
        return b""
    _, places, digits = column.buffers()
    ends = np.frombuffer(places, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    if not bool((np.diff(ends) == ID_DIGITS).all()):
        return None
    # All lengths are 64, so the digits lie one after the other from the first value's place on.
    text = digits.slice(int(ends[0]), ID_DIGITS * len(column)).to_pybytes()
    return None if text.translate(None, _HEX_DIGITS) else binascii.unhexlify(text)


def packed_rows(table: pa.Table) -> tuple[bytes, str | None]:
    """The ids of a table, packed, and why its rows cannot be rows of a ledger (None: they can)."""
    if not table.schema.remove_metadata().equals(ledger_schema()):
        return b"", f"its columns are {', '.join(f'{item.name} {item.type}' for item in table.schema)}"[:500]
    packed, odd = packed_column(table["condition_id"])
    if odd:
        return packed, f"{len(odd)} ids are not 64 lower-case hex digits, the first is {odd[0][:80]!a}"
    return packed, _fault_in_rows(table)


def _fault_in_rows(table: pa.Table) -> str | None:
    """What in the columns beside the id cannot be in a ledger; None if all of it can."""
    import numpy as np
    import pyarrow.compute as pc

    status = table["status"].combine_chunks()
    if status.null_count or not set(status.unique().to_pylist()) <= set(STATUSES):
        return f"a status is none of {', '.join(STATUSES)}"
    for name in ("block_number", "fetched_at"):  # a damaged footer can take a whole column away
        if table[name].null_count:
            return f"{name} has to be there for every id"
    resolved = pc.equal(status, "resolved")

    def is_there(name: str) -> Any:
        return pc.is_valid(table[name].combine_chunks())

    for name in ("payout_numerators", "payout_denominator", "winning_index"):
        if not is_there(name).equals(resolved):
            return f"{name} has to be there for resolved ids and for no others"
    if not is_there("error").equals(pc.or_(*(pc.equal(status, name) for name in ERROR_STATUSES))):
        return "error has to be there for invalid and failed ids and for no others"
    vectors = table["payout_numerators"].combine_chunks().filter(resolved)
    if not len(vectors):
        return None
    lengths = pc.list_value_length(vectors).to_numpy(zero_copy_only=False)
    if int(lengths.min()) < 1:
        return "a vector is empty"
    flat = vectors.flatten()
    if flat.null_count:
        return "a numerator is null"
    values = flat.to_numpy(zero_copy_only=False)
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    # In two halves, since a sum of UInt64 wraps without a word.
    low = np.add.reduceat(values & np.uint64(0xFFFFFFFF), starts)
    high = np.add.reduceat(values >> np.uint64(32), starts) + (low >> np.uint64(32))
    if int(high.max()) >= 2**32:
        return "a vector's numerators sum to more than 2^64-1"
    sums = (high << np.uint64(32)) + (low & np.uint64(0xFFFFFFFF))
    denominators = table["payout_denominator"].combine_chunks().filter(resolved).to_numpy(zero_copy_only=False)
    if not bool((sums == denominators).all()) or int(denominators.min()) < 1:
        return "a vector's numerators do not sum to its denominator"
    return None


def empty_counts() -> dict[str, int]:
    """No row of any status."""
    return dict.fromkeys(STATUSES, 0)
