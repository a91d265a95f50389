"""``where``, ``first``, ``skip`` and ``orderBy`` over a store, with graph-node's meaning and its error texts.

Null never matches a comparison; an empty ``_in`` and an empty ``_not_in`` both match nothing; ``or`` stands alone at
its level (graph-node ``graphql/src/store/query.rs``, ``store/postgres/src/relational_queries.rs``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from payout_pipeline.subgraph.columns import Column
from payout_pipeline.subgraph.decimals import normalise
from payout_pipeline.subgraph.schema import ENTITY, ApiSchema
from payout_pipeline.subgraph.store import ConditionStore, Mask, Rows
from payout_pipeline.subgraph.values import QueryError, Value

_FIRST_LOOK = 4096

Test = Callable[[Rows, int], Mask]


@dataclass(frozen=True, slots=True)
class Condition:
    """``test``: which rows match at a block. ``candidates``: the only rows that can match, or None for all of them."""

    test: Test
    candidates: Rows | range | None = None


class FilterBuilder:
    """Turns a coerced ``where`` object into a :class:`Condition`."""

    def __init__(self, store: ConditionStore, schema: ApiSchema, columns: Mapping[str, Column]) -> None:
        self._store = store
        self._schema = schema
        self._columns = columns

    def build(self, where: Mapping[str, Any] | None) -> Condition:
        """Raises :class:`~payout_pipeline.subgraph.values.QueryError`."""
        if not where:
            return Condition(_everything)
        keys = sorted(where)
        names = [key for key in keys if key not in ("and", "or")]
        fields = [key for key in names if key != "_change_block"]
        if "or" in where and fields:
            _refuse_mixed(fields)
        if names and ("and" in where or "or" in where):
            raise QueryError({"message": "Filter must by an object"})
        parts: list[Condition] = []
        for key in ("and", "or"):
            if key in where and (where[key] is None or None in where[key]):
                raise QueryError({"message": "Filter must by an object"})
        if "and" in where and "or" in where:
            # Both lists end up in one conjunction.
            parts = [self.build(item) for key in ("and", "or") for item in where[key]]
        elif "and" in where:
            parts = [self.build(item) for item in where["and"]]
        elif "or" in where:
            return _any([self.build(item) for item in where["or"]])
        else:
            parts = [self._single(key, where[key]) for key in keys]
        return _all(parts)

    def _single(self, key: str, value: Value) -> Condition:
        if key == "_change_block":
            if not isinstance(value, dict) or "number_gte" not in value:
                raise QueryError({"message": "Filter must by an object"})
            since = value["number_gte"]
            return Condition(lambda rows, block: self._store.version_start(rows, block) >= since)
        field, operator = self._schema.filters[key]
        if operator in ("_in", "_not_in") and value is None:
            raise QueryError({"message": f"Non-list value passed to `{operator}` filter"})
        if field == "id":
            return self._identity(operator, value)
        column = self._columns[field]
        matches = _comparison(self._schema.fields[field], operator, value)
        if not column.static:
            return Condition(lambda rows, block: _mask(map(matches, column.values(rows, block)), len(rows)))
        # Distinct values of a static column depend neither on rows nor on the block.
        distinct = column.distinct(np.empty(0, np.int64), 0)
        table = _mask(map(matches, distinct), len(distinct))
        return Condition(lambda rows, block: table[column.index(rows, block)])

    def _identity(self, operator: str, value: Value) -> Condition:
        store = self._store
        if operator == "_in" or (operator == "" and value is not None):
            found = store.find(value if operator == "_in" else [value])
            return Condition(lambda rows, _block: np.isin(rows, found), found)
        if operator == "_not_in" or (operator == "_not" and value is not None):
            if operator == "_not_in" and not value:
                return _NOTHING
            excluded = store.find(value if operator == "_not_in" else [value])
            return Condition(lambda rows, _block: ~np.isin(rows, excluded))
        if value is None:
            if operator in _SYMBOLS:
                raise QueryError(_unsupported(operator))
            return Condition(_everything) if operator == "_not" else _NOTHING
        low, high = 0, len(store)
        if operator in ("_gt", "_gte"):
            low = store.place(value, after=operator == "_gt")
        else:
            high = store.place(value, after=operator == "_lte")
        return Condition(lambda rows, _block: (rows >= low) & (rows < high), range(low, high))


def select(
    store: ConditionStore,
    condition: Condition,
    block: int,
    *,
    first: int,
    skip: int,
    order: tuple[Column | None, bool] = (None, False),
) -> Rows:
    """Row numbers of one page at a block: ``order`` is (column or None for id, descending)."""
    column, descending = order
    candidates = range(len(store)) if condition.candidates is None else condition.candidates
    if column is not None:
        return _ordered(store, condition, block, candidates, column, descending)[skip : skip + first]
    pages: list[Rows] = []
    found, start, look, total = 0, 0, _FIRST_LOOK, len(candidates)
    while start < total and found < skip + first:
        stop = min(start + look, total)
        piece = candidates[total - stop : total - start][::-1] if descending else candidates[start:stop]
        rows = np.asarray(piece, dtype=np.int64)
        rows = rows[store.visible(rows, block)]
        rows = rows[condition.test(rows, block)]
        pages.append(rows)
        found += len(rows)
        start, look = stop, look * 2
    every = np.concatenate(pages) if pages else np.empty(0, np.int64)
    return every[skip : skip + first]


def _ordered(
    store: ConditionStore, condition: Condition, block: int, candidates: Rows | range, column: Column, descending: bool
) -> Rows:
    rows = np.asarray(candidates, dtype=np.int64)
    rows = rows[store.visible(rows, block)]
    rows = rows[condition.test(rows, block)]
    values = column.values(rows, block)
    # PostgreSQL sorts null after everything when ascending and before everything when descending.
    keys = sorted(
        range(len(rows)),
        key=lambda place: (values[place] is None, 0 if values[place] is None else values[place], int(rows[place])),
        reverse=descending,
    )
    return rows[np.asarray(keys, dtype=np.int64)]


def _everything(rows: Rows, _block: int) -> Mask:
    return np.ones(len(rows), np.bool_)


_NOTHING = Condition(lambda rows, _block: np.zeros(len(rows), np.bool_), range(0))


def _all(parts: list[Condition]) -> Condition:
    if len(parts) == 1:
        return parts[0]

    def test(rows: Rows, block: int) -> Mask:
        mask = _everything(rows, block)
        for part in parts:
            mask &= part.test(rows, block)
        return mask

    known = [part.candidates for part in parts if part.candidates is not None]
    return Condition(test, min(known, key=len) if known else None)


def _any(parts: list[Condition]) -> Condition:
    def test(rows: Rows, block: int) -> Mask:
        mask = np.zeros(len(rows), np.bool_)
        for part in parts:
            mask |= part.test(rows, block)
        return mask

    return Condition(test)


_SYMBOLS = {"_gt": ">", "_lt": "<", "_gte": ">=", "_lte": "<="}


def _unsupported(operator: str) -> dict[str, Value]:
    """A comparison with null, in graph-node's words (it appends its own form of the query to the second of them)."""
    if operator in _SYMBOLS:
        return {"message": f"Store error: unsupported filter `{_SYMBOLS[operator]}` for value `null`"}
    return {"message": f"Failed to get entities from store: unsupported filter `{operator[1:]}` for value `null`"}


def _mask(matches: Value, count: int) -> Mask:
    return np.fromiter(matches, dtype=np.bool_, count=count)


def _refuse_mixed(fields: list[str]) -> None:
    quoted = [f"'{name}'" for name in fields]
    listed = ", ".join(quoted)
    raise QueryError(
        {
            "message": "Cannot mix column filters with 'or' operator at the same level. "
            f"Found column filter(s) {listed} alongside 'or' operator.\n\n"
            f"Instead of:\nwhere: {{ {listed}, or: [...] }}\n\n"
            f"Use:\nwhere: {{ or: [{{ {listed}, ... }}, {{ {listed}, ... }}] }}"
        }
    )


def _comparison(field_type: str, operator: str, value: Value) -> Callable[[Any], bool]:
    """A test of one stored value against the value of a filter."""
    scalar = field_type.strip("[]!")
    wanted: Any = None if value is None else _parsed(scalar, value)
    if wanted is None and operator in ("", "_not"):
        return (lambda stored: stored is None) if operator == "" else (lambda stored: stored is not None)
    if wanted is None:
        raise QueryError(_unsupported(operator))
    listed = field_type.startswith("[")
    test = (_LIST_TESTS if listed else _SCALAR_TESTS)[operator]
    if listed or operator in ("_in", "_not_in"):
        wanted = tuple(wanted)
        if not wanted and not listed:
            return lambda _stored: False
    return lambda stored: stored is not None and test(stored, wanted)


_SCALAR_TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "": lambda stored, wanted: bool(stored == wanted),
    "_not": lambda stored, wanted: bool(stored != wanted),
    "_gt": lambda stored, wanted: bool(stored > wanted),
    "_lt": lambda stored, wanted: bool(stored < wanted),
    "_gte": lambda stored, wanted: bool(stored >= wanted),
    "_lte": lambda stored, wanted: bool(stored <= wanted),
    "_in": lambda stored, wanted: stored in wanted,
    "_not_in": lambda stored, wanted: stored not in wanted,
    "_contains": lambda stored, wanted: wanted in stored,
    "_not_contains": lambda stored, wanted: wanted not in stored,
}
_LIST_TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "": lambda stored, wanted: bool(stored == wanted),
    "_not": lambda stored, wanted: bool(stored != wanted),
    "_contains": lambda stored, wanted: set(wanted) <= set(stored),
    "_not_contains": lambda stored, wanted: not set(wanted) & set(stored),
}


def _parsed(scalar: str, value: Value) -> Value:
    if isinstance(value, list):
        return [_parsed(scalar, item) for item in value]
    if scalar == "BigDecimal":
        number = normalise(value)
        if number is None:
            raise QueryError({"message": "Failed to decode `BigDecimal` value: `invalid digit found in string`"})
        return Decimal(number)
    if scalar == "BigInt":
        try:
            return int(value)
        except ValueError:
            text = "Failed to decode `BigInt` value: `invalid digit found in string`"
            raise QueryError({"message": text}) from None
    return value


def range_of(arguments: Mapping[str, Any], max_first: int, max_skip: int) -> tuple[int, int]:
    """(first, skip) of ``conditions``. Raises :class:`~payout_pipeline.subgraph.values.QueryError`."""
    first = arguments.get("first")
    skip = arguments.get("skip")
    first = 100 if first is None else first
    skip = 0 if skip is None else skip
    if not 1 <= first <= max_first:
        raise QueryError({"message": f"The `first` argument must be between 0 and {max_first}, but is {first}"})
    if not 0 <= skip <= max_skip:
        raise QueryError({"message": f"The `skip` argument must be between 0 and {max_skip}, but is {skip}"})
    return first, skip


def order_of(
    arguments: Mapping[str, Any], schema: ApiSchema, columns: Mapping[str, Column]
) -> tuple[Column | None, bool]:
    """(column or None for id, descending). Without ``orderBy`` the direction is ignored."""
    field = arguments.get("orderBy")
    if field is None:
        return None, False
    descending = arguments.get("orderDirection") == "desc"
    if field == "id":
        return None, descending
    if schema.fields[field].startswith("["):
        raise QueryError({"message": f"Ordering by `{field}` is not supported for type `{ENTITY}`"})
    return columns[field], descending
