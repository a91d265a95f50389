"""``where`` of ``conditions`` with graph-node's meaning.

Null never matches a comparison; an empty ``_in`` and an empty ``_not_in`` both match nothing; ``or`` stands alone at
its level (graph-node ``graphql/src/store/query.rs``).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any

from payout_pipeline.subgraph.decimals import normalise
from payout_pipeline.subgraph.fields import fields_of
from payout_pipeline.subgraph.schema import SchemaName, filters_of
from payout_pipeline.subgraph.store import ConditionRow, ConditionStore

Test = Callable[[ConditionRow, int], bool]


class FilterError(Exception):
    """A filter that graph-node refuses, in its words."""


def select(store: ConditionStore, schema: SchemaName, where: Mapping[str, Any]) -> tuple[Sequence[str], Test]:
    """The only ids that can match, ascending, and what else a row must fulfil. Raises :class:`FilterError`."""
    by_id = {key: value for key, value in where.items() if key in _BY_ID and value is not None}
    rest = {key: value for key, value in where.items() if key not in by_id}
    if by_id:
        _check_level(where)
    listed = by_id.pop("id_in", None)
    if "id" in by_id:
        listed = {by_id["id"]}.intersection([by_id["id"]] if listed is None else listed)
    ids = store.ids if listed is None else sorted(store.rows.keys() & set(listed))
    low = max((place(ids, by_id[key]) for key, place in _LOWER.items() if key in by_id), default=0)
    high = min((place(ids, by_id[key]) for key, place in _UPPER.items() if key in by_id), default=len(ids))
    return ids[low:high] if low or high < len(ids) else ids, compiled(schema, rest)


_LOWER = {"id_gt": bisect_right, "id_gte": bisect_left}
_UPPER = {"id_lt": bisect_left, "id_lte": bisect_right}
_BY_ID = {"id", "id_in", *_LOWER, *_UPPER}


def _check_level(where: Mapping[str, Any]) -> None:
    columns = sorted(where.keys() - {"and", "or"})
    if "or" in where and columns:
        named = ", ".join(f"'{key}'" for key in columns)
        raise FilterError(
            "Cannot mix column filters with 'or' operator at the same level. "
            f"Found column filter(s) {named} alongside 'or' operator."
        )
    parts = [where[key] for key in ("and", "or") if key in where]
    if (parts and columns) or any(part is None or None in part for part in parts):
        raise FilterError("Filter must by an object")


def compiled(schema: SchemaName, where: Mapping[str, Any] | None) -> Test:
    """Whether a row matches at a block. Raises :class:`FilterError`."""
    if not where:
        return lambda _row, _block: True
    _check_level(where)
    tests = [_single(schema, key, where[key]) for key in where if key not in ("and", "or")]
    alternatives = [compiled(schema, item) for item in where.get("or", ())]
    tests += [compiled(schema, item) for item in where.get("and", ())]
    if "or" in where and "and" not in where:
        return lambda row, block: any(test(row, block) for test in alternatives)
    tests += alternatives  # beside `and`, the parts of `or` end up in the same conjunction
    return lambda row, block: all(test(row, block) for test in tests)


def _single(schema: SchemaName, key: str, value: Any) -> Test:
    name, operator = filters_of(schema)[key]
    field = fields_of(schema)[name]
    if value is None:
        if operator in ("_in", "_not_in"):
            raise FilterError(f"Non-list value passed to `{operator}` filter")
        if operator not in ("", "_not"):
            raise FilterError(f"unsupported filter `{operator}` for value `null`")
        return lambda row, block: (field(row, block) is None) == (operator == "")
    compare, parse = _COMPARISONS[operator], _text if name in ("id", "resolutionHash") else _number
    operand: Any = tuple(map(parse, value)) if isinstance(value, list) else parse(value)
    if operator in ("_in", "_not_in"):
        operand = frozenset(operand)

    def test(row: ConditionRow, block: int) -> bool:
        stored = field(row, block)
        if stored is None:
            return False
        return compare(tuple(map(parse, stored)) if isinstance(stored, tuple) else parse(stored), operand)

    return test


def _text(value: Any) -> Any:
    return value


@lru_cache(maxsize=65_536)
def _number(value: Any) -> Decimal:
    number = normalise(str(value))
    if number is None:
        raise FilterError("Failed to decode `BigDecimal` value: `invalid digit found in string`")
    return number


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "": lambda stored, wanted: bool(stored == wanted),
    "_not": lambda stored, wanted: bool(stored != wanted),
    "_gt": lambda stored, wanted: bool(stored > wanted),
    "_lt": lambda stored, wanted: bool(stored < wanted),
    "_gte": lambda stored, wanted: bool(stored >= wanted),
    "_lte": lambda stored, wanted: bool(stored <= wanted),
    "_in": lambda stored, wanted: stored in wanted,
    "_not_in": lambda stored, wanted: bool(wanted) and stored not in wanted,
    "_contains": lambda stored, wanted: set(wanted) <= set(stored),
    "_not_contains": lambda stored, wanted: not set(wanted) & set(stored),
}
