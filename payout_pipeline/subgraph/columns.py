"""The fields of ``Condition`` as columns of a store: their values for filters and order, their JSON for answers.

A column is asked for distinct values and an index into them, because most of the fields depend only on the payout
vector, of which there are few.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from payout_pipeline.subgraph.schema import SchemaName
from payout_pipeline.subgraph.store import ConditionStore, PayoutVector, Rows, position_ids
from payout_pipeline.subgraph.values import Value

Index = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Column:
    """``distinct``: possible values, None for null; ``index``: which of them each row has at a block.

    ``encoded``: the JSON of each distinct value. ``static``: distinct values do not depend on the rows asked for.
    """

    distinct: Callable[[Rows, int], list[Any]]
    index: Callable[[Rows, int], Index]
    encoded: Callable[[Rows, int], list[bytes]]
    static: bool

    def json(self, rows: Rows, block: int) -> list[bytes]:
        """JSON of the field in each row."""
        encoded = self.encoded(rows, block)
        return [encoded[place] for place in self.index(rows, block).tolist()]

    def values(self, rows: Rows, block: int) -> list[Any]:
        """Value of the field in each row."""
        distinct = self.distinct(rows, block)
        return [distinct[place] for place in self.index(rows, block).tolist()]


def columns_of(store: ConditionStore, schema: SchemaName) -> dict[str, Column]:
    """Every field of the schema but ``id``."""
    if schema == "bare":
        return {}
    if schema == "payouts":
        return {"payouts": _payouts(store)}
    unset: tuple[Any, Any] = ((), 0) if schema == "numerators" else (None, None)
    numerators = _of_vector(
        store, lambda vector: tuple(vector.numerators), lambda vector: vector.numerators_json, unset[0]
    )
    denominator = _of_vector(store, lambda vector: vector.denominator, lambda vector: vector.denominator_json, unset[1])
    if schema == "numerators":
        return {
            "positionIds": _of_row(store, lambda row, _block: tuple(position_ids(store.ids[row].decode()))),
            "payoutNumerators": numerators,
            "payoutDenominator": denominator,
        }
    return {
        "outcomeSlotCount": _slots(store),
        "resolutionTimestamp": _of_row(store, store.time_at),
        "resolutionHash": _of_row(
            store,
            lambda row, block: (
                None
                if store.resolved[row] > block
                else "0x" + hashlib.sha256(b"resolution " + bytes(store.ids[row])).hexdigest()
            ),
        ),
        "payouts": _payouts(store),
        "payoutNumerators": numerators,
        "payoutDenominator": denominator,
    }


def _payouts(store: ConditionStore) -> Column:
    return _of_vector(store, lambda vector: vector.payouts, lambda vector: vector.payouts_json, None)


def _of_vector(
    store: ConditionStore, value: Callable[[PayoutVector], Any], encode: Callable[[PayoutVector], bytes], unset: Value
) -> Column:
    values = [unset, *map(value, store.vectors)]
    encoded = [_encode(unset), *map(encode, store.vectors)]
    return Column(
        lambda _rows, _block: values,
        lambda rows, block: store.vector_at(rows, block).astype(np.int64) + 1,
        lambda _rows, _block: encoded,
        static=True,
    )


def _slots(store: ConditionStore) -> Column:
    values = [2, *(max(2, vector.slots) for vector in store.vectors)]
    encoded = [str(value).encode() for value in values]
    return Column(
        lambda _rows, _block: values,
        lambda rows, _block: store.vector[rows].astype(np.int64) + 1,
        lambda _rows, _block: encoded,
        static=True,
    )


def _of_row(store: ConditionStore, value: Callable[[int, int], Any]) -> Column:
    def distinct(rows: Rows, block: int) -> list[Any]:
        return [value(int(row), block) for row in rows]

    return Column(
        distinct,
        lambda rows, _block: np.arange(len(rows)),
        lambda rows, block: [_encode(item) for item in distinct(rows, block)],
        static=False,
    )


def _encode(value: Value) -> bytes:
    """BigInt and Bytes are JSON strings."""
    if value is None:
        return b"null"
    return orjson.dumps([str(item) for item in value] if isinstance(value, tuple) else str(value))
