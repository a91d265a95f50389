"""Answers GraphQL queries over a store: graphql-core parses, validates and executes, the rows come from here."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any

from graphql import (
    ExecutionContext,
    GraphQLError,
    GraphQLResolveInfo,
    IntValueNode,
    get_named_type,
    graphql_sync,
)
from graphql.execution.collect_fields import collect_sub_fields

from payout_pipeline.subgraph.chain import Chain
from payout_pipeline.subgraph.decimals import integer_vector
from payout_pipeline.subgraph.schema import SchemaName, api_schema
from payout_pipeline.subgraph.store import ConditionRow, ConditionStore

DEPLOYMENT = "QmVGZ3gBqf1wLmUzR5xYgYhG2nBhTqkJ8yDkEo4sPzXc7N"
_MAX_FIRST = 1000
_MAX_SKIP = 5000


class Engine:
    """One deployment: a store, a chain and a schema. Blocks before ``earliest_block`` are pruned."""

    def __init__(
        self, store: ConditionStore, chain: Chain, schema: SchemaName = "payouts", earliest_block: int = 0
    ) -> None:
        self.store = store
        self.chain = chain
        self.schema_name = schema
        self.earliest_block = earliest_block

    def answer(self, text: str, variables: dict[str, Any]) -> Answer:
        """Executes a query."""
        answer = Answer(self, self.chain.head())
        result = graphql_sync(
            api_schema(self.schema_name),
            text,
            root_value=answer,
            variable_values=variables,
            execution_context_class=_Execution,
        )
        if result.errors:
            answer.body = error_body(*map(_message, result.errors))
        else:
            answer.body = {"data": result.data}
        return answer

    def fields(self, row: ConditionRow, block: int) -> dict[str, Any]:
        """All fields of a condition as they were at a block; big numbers are strings, as in graph-node's JSON."""
        payouts = row.payouts if row.resolved_block <= block else None
        if self.schema_name == "payouts":
            return {"__typename": "Condition", "id": row.id, "payouts": payouts}
        # The mapping of pnl-subgraph writes an empty list and zero until a condition is resolved.
        numerators, denominator = ((), "0") if payouts is None else _integers(payouts)
        vector = {"payoutNumerators": numerators, "payoutDenominator": denominator}
        return {"__typename": "Condition", "id": row.id, **vector}


@dataclass(slots=True)
class Answer:
    """The root value of one query, whose methods resolve the root fields at the same ``head``; then its result.

    ``body``: the data, or errors; never both. ``operation``: the query's name. ``asked``: response key of each list of
    conditions → the ids that it names. ``block``: the first ``block`` argument. ``complexity``: how many entities the
    lists may have, as graph-node estimates it.
    """

    engine: Engine
    head: int
    body: dict[str, Any] = field(default_factory=dict)
    operation: str | None = None
    asked: dict[str, Sequence[str]] = field(default_factory=dict)
    block: Mapping[str, Any] | None = None
    complexity: int = 0

    @property
    def ids(self) -> list[str]:
        """All ids that the lists name."""
        return [identity for ids in self.asked.values() for identity in ids]

    def condition(self, _info: GraphQLResolveInfo, id: str, block: Mapping[str, Any] | None = None) -> Any:
        """One condition."""
        row, number = self.engine.store.rows.get(id), self._located(block)
        return None if row is None or row.created_block > number else self.engine.fields(row, number)

    def conditions(
        self,
        info: GraphQLResolveInfo,
        first: int | None = None,
        skip: int | None = None,
        where: Mapping[str, Any] | None = None,
        orderBy: str | None = None,  # noqa: N803 - GraphQL's names
        orderDirection: str | None = None,  # noqa: N803
        block: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """A page of conditions in the order of their ids."""
        where = where or {}
        self.operation = info.operation.name.value if info.operation.name else None
        self.asked[str(info.path.key)] = where.get("id_in") or ()
        self.complexity += _literal_first(info)
        number = self._located(block)
        first, skip = 100 if first is None else first, skip or 0
        for name, least, value, most in (("first", 1, first, _MAX_FIRST), ("skip", 0, skip, _MAX_SKIP)):
            if not least <= value <= most:
                raise GraphQLError(f"The `{name}` argument must be between 0 and {most}, but is {value}")
        # graph-node ignores a direction without an order.
        found = self._matching(where, number, descending=bool(orderBy) and orderDirection == "desc")
        condition: Any = get_named_type(info.return_type)
        selected = collect_sub_fields(info.schema, info.fragments, info.variable_values, condition, info.field_nodes)
        names = {key: nodes[0].name.value for key, nodes in selected.items()}
        return [{key: row[name] for key, name in names.items()} for row in islice(found, skip, skip + first)]

    def _matching(self, where: Mapping[str, Any], block: int, *, descending: bool) -> Iterator[dict[str, Any]]:
        """The fields of all conditions that fulfil ``where``, of which our client needs a few filters."""
        store = self.engine.store
        if any(value is None for key, value in where.items() if key != "payouts_not") or where.get("payouts_not"):
            raise GraphQLError(f"Invalid value provided for argument `where`: {dict(where)}")
        ids = sorted(store.rows.keys() & set(where["id_in"])) if "id_in" in where else store.ids
        low = bisect_right(ids, where["id_gt"]) if "id_gt" in where else 0
        high = bisect_left(ids, where["id_lt"]) if "id_lt" in where else len(ids)
        for position in reversed(range(low, high)) if descending else range(low, high):
            row = store.rows[ids[position]]
            if row.created_block <= block:
                fields = self.engine.fields(row, block)
                if "payouts_not" in where and fields["payouts"] is None:
                    continue
                least = where.get("payoutDenominator_gt")
                if least is not None and int(fields["payoutDenominator"]) <= int(least):
                    continue
                yield fields

    def _meta(self, info: GraphQLResolveInfo, block: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Block, deployment and health; a block pinned by number has no hash and no time."""
        number = self._located(block)
        shown: dict[str, Any] = {"number": number}
        if "number" not in (block or {}):
            shown |= {"hash": Chain.block_hash(number), "timestamp": self.engine.chain.timestamp(number)}
        return {"block": shown, "deployment": DEPLOYMENT, "hasIndexingErrors": False}

    def _located(self, block: Mapping[str, Any] | None) -> int:
        """The number of the block that an argument asks for. Raises ``GraphQLError`` where there is no data for it."""
        if block is None:
            return self.head
        self.block = self.block or block
        kind = "number" if "number" in block else "number_gte"
        wanted = block.get(kind)
        if wanted is None:
            raise GraphQLError(f"Invalid value provided for argument `block`: {dict(block)}")
        earliest, reason = self.engine.earliest_block, ""
        if wanted > self.head:
            reason = f"has only indexed up to block number {self.head} and data for block number {wanted} is therefore not yet"
        elif wanted < earliest and kind == "number":
            reason = (
                f"only has data starting at block number {earliest} and data for block number {wanted} is therefore not"
            )
        if reason:
            raise GraphQLError(f"Failed to decode `block.{kind}` value: `subgraph {DEPLOYMENT} {reason} available`")
        return wanted if kind == "number" else self.head


class _Execution(ExecutionContext):
    """Takes a list of conditions as the resolver made it: of 10,000 rows, graphql-core's own way takes three times as
    long as all the rest."""

    def complete_list_value(self, return_type: Any, field_nodes: Any, info: Any, path: Any, result: Any) -> Any:
        if info.field_name == "conditions":
            return result
        return super().complete_list_value(return_type, field_nodes, info, path, result)


def error_body(*messages: str) -> dict[str, Any]:
    """A body of nothing but errors."""
    return {"errors": [{"message": message} for message in messages]}


def _message(error: GraphQLError) -> str:
    """The text of a resolver's error; what graphql-core refuses gets the beginning by which a client knows a mistake."""
    return error.message if error.path else f"Invalid value provided: {error.message}"


def _literal_first(info: GraphQLResolveInfo) -> int:
    """graph-node takes a ``first`` that is no literal for 100 when it estimates how many entities a list may have."""
    given = (argument.value for argument in info.field_nodes[0].arguments if argument.name.value == "first")
    return next((int(value.value) for value in given if isinstance(value, IntValueNode)), 100)


@lru_cache(maxsize=65_536)  # there are few distinct vectors
def _integers(payouts: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    numerators, denominator = integer_vector(payouts)
    return tuple(map(str, numerators)), str(denominator)
