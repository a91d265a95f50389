"""What the subgraph answered as rows of the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from payout_pipeline.ledger.rows import cut, raw_text, resolution_seconds, rows_from_answer
from payout_pipeline.payouts import Payouts, Vector, parse_numerators, parse_payouts
from payout_pipeline.scrub import excerpt

if TYPE_CHECKING:
    import pyarrow as pa

    from payout_pipeline.goldsky.answers import RawCondition, SubgraphInfo
    from payout_pipeline.goldsky.client import BatchAnswer


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
    """The ledger rows of the ids in their order; ``odd_times`` counts resolution times that are none."""
    vectors: dict[str, Payouts] = {}
    raw: dict[str, str | None] = {}
    times: dict[str, int | None] = {}
    judged: dict[str, tuple[Payouts, str | None]] = {}  # a thousand conditions have a handful of vectors
    for condition_id in ids:
        condition = answer.found.get(condition_id)
        if condition is None:
            continue
        shape = repr(condition[:3])  # tells True, 1, 1.0 and "1" apart, which are equal as keys
        if shape not in judged:
            judged[shape] = _judge(condition, info.schema_kind == "numerators")
        vectors[condition_id], raw[condition_id] = judged[shape]
        if info.has_resolution_timestamp:
            times[condition_id], sane = resolution_seconds(condition.resolution_timestamp)
            if not sane:
                odd_times.count += 1
                odd_times.example = odd_times.example or (
                    f"{excerpt(repr(condition.resolution_timestamp), 60)} of {condition_id}"
                )
    return rows_from_answer(
        ids,
        vectors,
        raw=raw,
        block_number=answer.block_number,
        fetched_at=fetched_at,
        resolved_at=times,
        failed={i: excerpt(error, 500) for i, error in answer.failed.items()},
    )


def _judge(condition: RawCondition, numerators: bool) -> tuple[Payouts, str | None]:
    """The vector of a condition, and its text as answered."""
    if numerators:
        parts = [condition.payout_numerators, condition.payout_denominator]
        vector = parse_numerators(*parts)
    else:
        parts = condition.payouts
        vector = parse_payouts(parts)
    text = raw_text(parts)
    return vector, text if isinstance(vector, Vector) else cut(text)
