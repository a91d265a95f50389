"""The value that each field of ``Condition`` has in a row at a block."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from payout_pipeline.subgraph.decimals import integer_vector
from payout_pipeline.subgraph.schema import FIELDS, SchemaName
from payout_pipeline.subgraph.store import ConditionRow

Field = Callable[[ConditionRow, int], Any]


def fields_of(schema: SchemaName) -> dict[str, Field]:
    """Field name → function of a row and a block number; big numbers are strings, as in graph-node's JSON."""
    # The mapping of pnl-subgraph writes an empty list and zero until a condition is resolved.
    no_vector, no_sum = ((), "0") if schema == "numerators" else (None, None)
    known: dict[str, Field] = {
        "id": lambda row, _block: row.id,
        "payouts": lambda row, block: row.payouts if row.resolved_block <= block else None,
        "payoutNumerators": lambda row, block: _integers(row.payouts)[0] if _is_resolved(row, block) else no_vector,
        "payoutDenominator": lambda row, block: _integers(row.payouts)[1] if _is_resolved(row, block) else no_sum,
        "resolutionTimestamp": lambda row, block: str(row.resolved_at) if _has_time(row, block) else None,
    }
    return {name: known[name] for name in FIELDS[schema]}


def _is_resolved(row: ConditionRow, block: int) -> bool:
    return row.payouts is not None and row.resolved_block <= block


def _has_time(row: ConditionRow, block: int) -> bool:
    return row.resolved_at is not None and _is_resolved(row, block)


@lru_cache(maxsize=65_536)  # there are few distinct vectors
def _integers(payouts: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    numerators, denominator = integer_vector(payouts)
    return tuple(map(str, numerators)), str(denominator)
