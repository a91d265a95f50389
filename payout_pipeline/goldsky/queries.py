"""What the subgraph is asked: lists of ids and pages of a range, several of them in one request by GraphQL aliases.

A query knows its part of the document, what to believe of its rows, how to ask for less at once, and what to ask next.
Values travel as variables only. ``first`` is written out, because graph-node takes a variable one for 100 when it
estimates the weight of a query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from payout_pipeline.errors import GoldskyUnavailableError
from payout_pipeline.goldsky.answers import (
    BatchAnswer,
    Fields,
    RawCondition,
    check_ids,
    check_meta,
    check_page,
    refuse,
)
from payout_pipeline.goldsky.pin import Pin

MAX_FIRST = 1000  # graph-node's default limit of `first` (GRAPH_GRAPHQL_MAX_FIRST)

# `__type`, `__schema` and `_meta` without aliases: only under these keys are they still answered by a deployment that
# has failed. `_meta` without a block is the head.
PROBE = """
query Probe {
  __schema { queryType { fields { name } } }
  __type(name: "Condition") { kind fields { name } }
  _meta { block { number hash timestamp } deployment hasIndexingErrors }
}
"""
# The cheapest question there is: whether the subgraph answers at all.
HEAD = "query Head { _meta { block { number } deployment hasIndexingErrors } }"


@dataclass(frozen=True)
class IdsQuery:
    """The conditions of a list of ids, as one alias of a request; what comes of it goes into ``answer``."""

    ids: Sequence[str]
    answer: BatchAnswer

    @property
    def size(self) -> int:
        """Its ``first``: the most rows that it may have."""
        return len(self.ids)

    def arguments(self, fields: Fields, suffix: str) -> str:
        """The arguments of ``conditions`` but for the block; variables end in ``suffix``."""
        name = f"b{suffix}" if suffix else "ids"
        return f"first: {self.size}, where: {{id_in: ${name}}}"

    def variables(self, suffix: str) -> dict[str, tuple[str, Any]]:
        """Type and value of each variable."""
        return {f"b{suffix}" if suffix else "ids": ("[ID!]!", ["0x" + i for i in self.ids])}

    def check(self, rows: list[Any], fields: Fields) -> dict[str, RawCondition]:
        """The conditions by id (no ``0x``). Raises AnswerFault where the rows are not to be believed."""
        return check_ids(rows, self.ids, fields)

    def parts(self, size: int) -> list[Query]:
        """The same in queries of at most ``size`` rows."""
        if self.size <= size:
            return [self]
        return [replace(self, ids=part) for part in chunks(self.ids, size)]

    def take(self, found: dict[str, RawCondition], block: int) -> list[Query]:
        """Keep what was found; returns what has to be asked next."""
        self.answer.found |= found
        self.answer.block_number = min(self.answer.block_number or block, block)
        self.answer.absent += [i for i in self.ids if i not in found]
        return []

    def fail(self, message: str, *, unavailable: bool = False) -> None:
        """Give the query up."""
        self.answer.failed |= dict.fromkeys(self.ids, message)
        self.answer.unavailable |= unavailable


@dataclass(frozen=True)
class PageQuery:
    """The next resolved conditions with ``after`` < id < ``upper`` (hex without 0x; ``""``: all, None: no end).

    Methods as those of :class:`IdsQuery`.
    """

    after: str
    upper: str | None
    answer: BatchAnswer
    size: int = MAX_FIRST

    def arguments(self, fields: Fields, suffix: str) -> str:
        resolved = "payouts_not: null" if fields.kind == "payouts" else 'payoutDenominator_gt: "0"'
        upper = f", id_lt: $upper{suffix}" if self.upper is not None else ""
        where = f"{{id_gt: $after{suffix}{upper}, {resolved}}}"
        return f"first: {self.size}, orderBy: id, orderDirection: asc, where: {where}"

    def variables(self, suffix: str) -> dict[str, tuple[str, Any]]:
        bounds = {"after": self.after} | ({"upper": self.upper} if self.upper is not None else {})
        return {name + suffix: ("ID!", "0x" + value) for name, value in bounds.items()}

    def check(self, rows: list[Any], fields: Fields) -> dict[str, RawCondition]:
        return check_page(rows, self.after, self.upper, self.size, fields)

    def parts(self, size: int) -> list[Query]:
        """A smaller page; the next one follows from what it has."""
        return [replace(self, size=min(self.size, size))]

    def take(self, found: dict[str, RawCondition], block: int) -> list[Query]:
        """Only an empty page is the end: a short one may be due to a limit of the server."""
        self.answer.block_number = min(self.answer.block_number or block, block)
        if not found:
            return []
        self.answer.found |= found
        return [replace(self, after=next(reversed(found)), size=MAX_FIRST)]

    def fail(self, message: str, *, unavailable: bool = False) -> None:
        """A range with a hole in it is of no use."""
        raise GoldskyUnavailableError(message)


Query = IdsQuery | PageQuery


def chunks(items: Sequence[Any], size: int) -> list[Any]:
    """``items`` in slices of ``size``."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def document(queries: Sequence[Query], fields: Fields, pin: Pin) -> tuple[str, dict[str, Any]]:
    """The GraphQL of a request and its variables. A query alone has no alias."""
    vector = "payouts" if fields.kind == "payouts" else "payoutNumerators payoutDenominator"
    selection = f"id {vector}{' resolutionTimestamp' if fields.resolution_timestamp else ''}"
    values: dict[str, Any] = {}
    declared, lists = [], []
    for key, suffix, query in _numbered(queries):
        for name, (kind, value) in query.variables(suffix).items():
            declared.append(f"${name}: {kind}")
            values[name] = value
        alias = f"{key}: " if suffix else ""
        lists.append(f"{alias}conditions({query.arguments(fields, suffix)}, {pin.argument}) {{ {selection} }}")
    name = "Conditions" if isinstance(queries[0], IdsQuery) else "Resolved"
    # The same block argument in all root fields makes one group of them: one snapshot, all or nothing.
    meta = f"_meta({pin.argument}) {{ deployment block {{ number }} hasIndexingErrors }}"
    return f"query {name}({', '.join(declared)}) {{ {' '.join(lists)} {meta} }}", values


def check_answer(
    data: object, queries: Sequence[Query], pin: Pin, fields: Fields
) -> tuple[list[dict[str, RawCondition]], int]:
    """What was found for each query, and the block of it all. Raises AnswerFault if any of it is not to be believed."""
    if not isinstance(data, dict):
        raise refuse("it has no data", splits=False)
    block = check_meta(data, pin)
    found = []
    for key, _, query in _numbered(queries):
        rows = data.get(key)
        if not isinstance(rows, list):
            raise refuse(f"`{key}` is no list")
        found.append(query.check(rows, fields))
    return found, block


def _numbered(queries: Sequence[Query]) -> list[tuple[str, str, Query]]:
    """The key of each query's rows in the answer, and the end of its variables' names."""
    if len(queries) == 1:
        return [("conditions", "", queries[0])]
    return [(f"b{number}", str(number), query) for number, query in enumerate(queries)]
