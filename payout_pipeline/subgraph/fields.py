"""The fields of ``Condition``: the value that each of them has in a row at a block."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache
from typing import Any

from payout_pipeline.subgraph.decimals import integer_vector
from payout_pipeline.subgraph.schema import FIELDS, SchemaName
from payout_pipeline.subgraph.store import ConditionRow, position_ids

Field = Callable[[ConditionRow, int], Any]


def fields_of(schema: SchemaName) -> dict[str, Field]:
    """Field name → function of a row and a block number; big numbers are strings, as in graph-node's JSON."""
    return {name: (_PNL if schema == "numerators" else {}).get(name, _ALL[name]) for name in FIELDS[schema]}


def is_resolved(row: ConditionRow, block: int) -> bool:
    """Whether the row has payouts at the block."""
    return row.payouts is not None and row.resolved_block <= block


def _resolved(value: Callable[[ConditionRow], Any], unset: Any = None) -> Field:
    return lambda row, block: value(row) if is_resolved(row, block) else unset


@lru_cache(maxsize=65_536)
def _integers(payouts: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    numerators, denominator = integer_vector([Decimal(text) for text in payouts])
    return tuple(map(str, numerators)), str(denominator)


def _numerators(row: ConditionRow) -> tuple[str, ...]:
    return _integers(row.payouts or ())[0]


def _denominator(row: ConditionRow) -> str:
    return _integers(row.payouts or ())[1]


def _resolution_hash(row: ConditionRow) -> str:
    return "0x" + hashlib.sha256(b"resolution " + row.id.encode()).hexdigest()


_ALL: dict[str, Field] = {
    "id": lambda row, _block: row.id,
    "payouts": _resolved(lambda row: row.payouts),
    "payoutNumerators": _resolved(_numerators),
    "payoutDenominator": _resolved(_denominator),
    "positionIds": lambda row, _block: tuple(map(str, position_ids(row.id))),
    "outcomeSlotCount": lambda row, _block: max(2, len(row.payouts or ())),
    "resolutionTimestamp": _resolved(lambda row: None if row.resolved_at is None else str(row.resolved_at)),
    "resolutionHash": _resolved(_resolution_hash),
}
# The mapping of pnl-subgraph writes an empty list and zero until the condition is resolved.
_PNL: dict[str, Field] = {
    "payoutNumerators": _resolved(_numerators, ()),
    "payoutDenominator": _resolved(_denominator, "0"),
}
