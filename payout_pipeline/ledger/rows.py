"""What a row of a ledger is: its columns, and what cannot be one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from payout_pipeline.ids.chunks import Chunk

if TYPE_CHECKING:
    import pyarrow as pa

Status = Literal["resolved", "unresolved", "absent", "invalid", "failed"]
STATUSES: tuple[Status, ...] = ("resolved", "unresolved", "absent", "invalid", "failed")
ERROR_STATUSES: tuple[Status, ...] = ("invalid", "failed")
_ID = re.compile(r"[0-9a-f]{64}")
_IDS_AT_ONCE = 1 << 14


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


def counts_of(table: pa.Table | pa.RecordBatch) -> dict[str, int]:
    """Rows by status, each status there."""
    counts: dict[str, int] = dict.fromkeys(STATUSES, 0)
    for row in table.column("status").value_counts().to_pylist():
        counts[row["values"]] = counts.get(row["values"], 0) + row["counts"]
    return counts


def id_array(chunk: Chunk) -> pa.StringArray:
    """The ids of a chunk in order."""
    import pyarrow as pa

    parts = [
        pa.array(chunk.ids(start, start + _IDS_AT_ONCE), pa.string()) for start in range(0, chunk.count, _IDS_AT_ONCE)
    ]
    return pa.concat_arrays([pa.array([], pa.string()), *parts])


def fault_in_rows(table: pa.Table) -> str | None:
    """Why a table cannot be rows of a ledger; None if it can."""
    import pyarrow.compute as pc

    if not table.schema.remove_metadata().equals(ledger_schema()):
        return f"its columns are {', '.join(f'{item.name} {item.type}' for item in table.schema)}"[:500]
    odd = [i for i in table["condition_id"].to_pylist() if i is None or not _ID.fullmatch(i)]
    if odd:
        return f"{len(odd)} ids are not 64 lower-case hex digits, the first is {str(odd[0])[:80]!a}"
    status = table["status"].combine_chunks()
    if not set(status.unique().to_pylist()) <= set(STATUSES):
        return f"a status is none of {', '.join(STATUSES)}"
    resolved = pc.equal(status, "resolved")
    failed = pc.is_in(status, value_set=_strings(ERROR_STATUSES))
    for name, expected, which in (
        ("payout_numerators", resolved, "resolved"),
        ("payout_denominator", resolved, "resolved"),
        ("winning_index", resolved, "resolved"),
        ("error", failed, "invalid and failed"),
    ):
        if not pc.is_valid(table[name].combine_chunks()).equals(expected):
            return f"{name} has to be there for {which} ids and for no others"
    for name in ("block_number", "fetched_at"):  # a damaged footer can take a whole column away
        if table[name].null_count:
            return f"{name} has to be there for every id"
    vectors = table.filter(resolved)
    for numerators, denominator in zip(
        vectors["payout_numerators"].to_pylist(), vectors["payout_denominator"].to_pylist(), strict=True
    ):
        if not numerators or None in numerators or not 0 < sum(numerators) == denominator:
            return f"a vector is {numerators}/{denominator}, whose numerators do not sum to its denominator"[:500]
    return None


def _strings(values: Sequence[str]) -> pa.StringArray:
    import pyarrow as pa

    return pa.array(list(values), pa.string())
