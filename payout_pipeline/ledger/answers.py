"""What the subgraph answered as rows of the ledger."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from payout_pipeline.goldsky.answers import JSONNumber
from payout_pipeline.ledger.rows import ledger_schema
from payout_pipeline.payouts import InvalidVector, parse_numerators, parse_payouts
from payout_pipeline.scrub import excerpt

if TYPE_CHECKING:
    import pyarrow as pa

    from payout_pipeline.goldsky.answers import BatchAnswer, RawCondition, SubgraphInfo

_LONGEST_TEXT = 500
_MILLISECONDS_FROM = 10**11  # in seconds the year 5138, in milliseconds 1973


@dataclass
class OddTimes:
    """Resolution times that are none: how many, and the first of them."""

    count: int = 0
    example: str = ""

    def __str__(self) -> str:
        return (
            f"{self.count:,} resolutionTimestamps are negative, beyond 2106 or no number, so resolved_at is NULL there; "
            f"the first is {self.example}"
        )


def rows_of_answer(
    ids: Sequence[str], answer: BatchAnswer, info: SubgraphInfo, fetched_at: datetime, odd_times: OddTimes
) -> pa.Table:
    """The rows of `ledger_schema` of the ids, in their order; ids of which the answer says nothing are ``absent``.

    ``odd_times`` counts resolution times that are none.
    """
    import pyarrow as pa

    judged: dict[str, dict[str, Any]] = {}  # a thousand conditions have a handful of vectors
    rows: list[dict[str, Any]] = []
    for condition_id in ids:
        row: dict[str, Any] = {"status": "absent"}
        condition = answer.found.get(condition_id)
        if condition_id in answer.failed:
            row = {"status": "failed", "error": excerpt(answer.failed[condition_id], 500) or "no answer"}
        elif condition is not None:
            shape = repr(condition[:3])  # tells True, 1, 1.0 and "1" apart, which are equal as keys
            if shape not in judged:
                judged[shape] = judge(condition, info)
            row = judged[shape]
            seconds, sane = resolution_seconds(condition.resolution_timestamp)
            if not sane:
                odd_times.count += 1
                odd_times.example = odd_times.example or (
                    f"{excerpt(repr(condition.resolution_timestamp), 60)} of {condition_id}"
                )
            if row["status"] == "resolved":
                row = row | {"resolved_at": seconds}
        rows.append(row | {"condition_id": condition_id, "block_number": answer.block_number, "fetched_at": fetched_at})
    return pa.Table.from_pylist(rows, schema=ledger_schema())


def judge(condition: RawCondition, info: SubgraphInfo) -> dict[str, Any]:
    """The columns of a condition that follow from its vector; ``payouts`` is its text as answered."""
    if info.schema_kind == "numerators":
        answered: Any = [condition.payout_numerators, condition.payout_denominator]
        vector = parse_numerators(*answered)
    else:
        answered = condition.payouts
        vector = parse_payouts(answered)
    text = raw_text(answered)
    if vector is None or isinstance(vector, InvalidVector):
        if text is not None and len(text) > _LONGEST_TEXT:
            text = f"{text[:_LONGEST_TEXT]}… ({len(text):,} characters)"
        if vector is None:
            return {"status": "unresolved", "payouts": text}
        return {"status": "invalid", "payouts": text, "error": vector.reason}
    return {
        "status": "resolved",
        "payouts": text,
        "payout_numerators": vector.numerators,
        "payout_denominator": vector.denominator,
        "winning_index": vector.winning_index,
    }


def raw_text(value: object) -> str | None:
    """The payouts as answered, as JSON text; None where there are none. Numbers keep the digits that were sent."""
    if value is None:
        return None
    if isinstance(value, list):
        return "[" + ",".join(raw_text(item) or "null" for item in value) + "]"
    return str(value) if isinstance(value, JSONNumber) else json.dumps(value, ensure_ascii=False)


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
