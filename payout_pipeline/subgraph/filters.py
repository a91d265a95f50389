"""``where`` of ``conditions`` with graph-node's meaning: null never matches a comparison, and an empty ``_in`` and an
empty ``_not_in`` both match nothing."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any

from graphql import GraphQLError

from payout_pipeline.subgraph.decimals import normalise
from payout_pipeline.subgraph.fields import Field
from payout_pipeline.subgraph.store import ConditionRow, ConditionStore

Test = Callable[[ConditionRow, int], bool]


def select(
    store: ConditionStore, fields: Mapping[str, Field], where: Mapping[str, Any]
) -> tuple[Sequence[str], list[Test]]:
    """The only ids that can match, ascending, and what else a row must fulfil. Raises ``GraphQLError``."""
    by_id = {key: value for key, value in where.items() if key in _BY_ID and value is not None}
    tests = [_test(fields, key, value) for key, value in where.items() if key not in by_id]
    ids = store.ids
    if "id_in" in by_id:
        ids = sorted(store.rows.keys() & set(by_id["id_in"]))
    low = max((place(ids, by_id[key]) for key, place in _LOWER.items() if key in by_id), default=0)
    high = min((place(ids, by_id[key]) for key, place in _UPPER.items() if key in by_id), default=len(ids))
    return (ids if (low, high) == (0, len(ids)) else ids[low:high]), tests


_LOWER = {"id_gt": bisect_right, "id_gte": bisect_left}
_UPPER = {"id_lt": bisect_left, "id_lte": bisect_right}
_BY_ID = {"id_in", *_LOWER, *_UPPER}


def _test(fields: Mapping[str, Field], key: str, value: Any) -> Test:
    name, _, operator = key.partition("_")
    field = fields[name]
    if value is None:
        if operator in ("in", "not_in"):
            raise GraphQLError(f"Non-list value passed to `_{operator}` filter")
        if operator not in ("", "not"):
            raise GraphQLError(f"Store error: unsupported filter `{operator}` for value `null`")
        return lambda row, block: (field(row, block) is None) == (operator == "")
    compare, parse = _COMPARISONS[operator], str if name == "id" else _number
    wanted: Any = tuple(map(parse, value)) if isinstance(value, list) else parse(value)

    def test(row: ConditionRow, block: int) -> bool:
        stored = field(row, block)
        if stored is None:
            return False
        return compare(tuple(map(parse, stored)) if isinstance(stored, tuple) else parse(stored), wanted)

    return test


@lru_cache(maxsize=65_536)
def _number(value: str | int | float) -> Decimal:
    try:
        return normalise(str(value))
    except ValueError:
        raise GraphQLError("Failed to decode `BigDecimal` value: `invalid digit found in string`") from None


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "": lambda stored, wanted: bool(stored == wanted),
    "not": lambda stored, wanted: bool(stored != wanted),
    "gt": lambda stored, wanted: bool(stored > wanted),
    "lt": lambda stored, wanted: bool(stored < wanted),
    "gte": lambda stored, wanted: bool(stored >= wanted),
    "lte": lambda stored, wanted: bool(stored <= wanted),
    "in": lambda stored, wanted: stored in wanted,
    "not_in": lambda stored, wanted: bool(wanted) and stored not in wanted,
    "contains": lambda stored, wanted: set(wanted) <= set(stored),
    "not_contains": lambda stored, wanted: not set(wanted) & set(stored),
}
