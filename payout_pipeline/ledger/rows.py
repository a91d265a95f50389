"""What a row of a ledger is: its columns, how an answer becomes rows, and what cannot be one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from payout_pipeline.chunks import Chunk
from payout_pipeline.payouts import InvalidVector, Vector

if TYPE_CHECKING:
    import pyarrow as pa

Status = Literal["resolved", "unresolved", "absent", "invalid", "failed"]
STATUSES: tuple[Status, ...] = ("resolved", "unresolved", "absent", "invalid", "failed")
ERROR_STATUSES: tuple[Status, ...] = ("invalid", "failed")
_ID = re.compile(r"[0-9a-f]{64}")
_IDS_AT_ONCE = 1 << 14
_LONGEST_TEXT = 500
_MILLISECONDS_FROM = 10**11  # in seconds the year 5138, in milliseconds 1973


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

    times, faults = resolved_at or {}, failed or {}
    rows: list[dict[str, Any]] = []
    for condition_id in asked:
        row: dict[str, Any] = {"condition_id": condition_id, "status": "absent"}
        if condition_id in faults:
            row |= {"status": "failed", "error": faults[condition_id] or "no answer"}
        elif condition_id in answered:
            vector = answered[condition_id]
            row |= {"status": "unresolved", "payouts": raw.get(condition_id)}
            if isinstance(vector, InvalidVector):
                row |= {"status": "invalid", "error": vector.reason}
            elif vector is not None:
                row |= {
                    "status": "resolved",
                    "payout_numerators": vector.numerators,
                    "payout_denominator": vector.denominator,
                    "winning_index": vector.winning_index,
                    "resolved_at": times.get(condition_id),
                }
        rows.append(row | {"block_number": block_number, "fetched_at": fetched_at})
    return pa.Table.from_pylist(rows, schema=ledger_schema())


def counts_of(table: pa.Table) -> dict[str, int]:
    """Rows by status, each status there."""
    counts: dict[str, int] = dict.fromkeys(STATUSES, 0)
    for row in table["status"].combine_chunks().value_counts().to_pylist():
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


def raw_text(value: object) -> str | None:
    """The payouts as answered, as JSON text; None where there are none. Numbers keep the digits that were sent."""
    from payout_pipeline.goldsky.answers import JSONNumber

    if value is None:
        return None
    if isinstance(value, list):
        return "[" + ",".join(raw_text(item) or "null" for item in value) + "]"
    return str(value) if isinstance(value, JSONNumber) else json.dumps(value, ensure_ascii=False)


def cut(text: str | None, longest: int = _LONGEST_TEXT) -> str | None:
    """A text of an answer that is no vector, at most so many characters of it."""
    if text is None or len(text) <= longest:
        return text
    return f"{text[:longest]}… ({len(text):,} characters)"


def resolution_seconds(value: object) -> tuple[int | None, bool]:
    """A ``resolutionTimestamp`` in seconds since 1970, and whether it can be one.

    Milliseconds are recognised by their size. Null and 0 are how subgraphs write an unknown time. What is negative, beyond
    2106-02-07 (the end of ClickHouse's DateTime) or no number is none.
    """
    if value is None:
        return None, True
    try:
        seconds = int(str(value))
    except ValueError:
        return None, False
    if seconds >= _MILLISECONDS_FROM:
        seconds //= 1000
    return (seconds or None, True) if 0 <= seconds < 2**32 else (None, False)
