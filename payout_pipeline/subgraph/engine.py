"""Answers GraphQL queries over a store: graphql-core parses, validates and executes, the rows come from here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

from graphql import (
    DocumentNode,
    ExecutionContext,
    FieldNode,
    GraphQLError,
    GraphQLResolveInfo,
    IntValueNode,
    OperationDefinitionNode,
    OperationType,
    execute_sync,
    get_named_type,
    get_operation_ast,
    parse,
    validate,
    value_from_ast_untyped,
)
from graphql.execution.collect_fields import collect_sub_fields

from payout_pipeline.subgraph.chain import Chain
from payout_pipeline.subgraph.faults import Fault, option_of, spoil_rows
from payout_pipeline.subgraph.fields import fields_of
from payout_pipeline.subgraph.filters import select
from payout_pipeline.subgraph.schema import SchemaName, api_schema
from payout_pipeline.subgraph.store import ConditionRow, ConditionStore

DEFAULT_DEPLOYMENT = "QmVGZ3gBqf1wLmUzR5xYgYhG2nBhTqkJ8yDkEo4sPzXc7N"
_MAX_FIRST = 1000
_MAX_SKIP = 5000
_SHOWN_BY_A_FAILED_DEPLOYMENT = frozenset({"_meta", "__schema", "__type"})


@dataclass(frozen=True, slots=True)
class Query:
    """A query that is valid, and what is logged of it.

    ``asked``: response key of each list → the ids that it names; ``kinds``: names of the root fields; ``block``: the
    first ``block`` argument; ``complexity``: how many entities it may return, as graph-node estimates it.
    """

    document: DocumentNode
    variables: dict[str, Any]
    operation_name: str | None
    kinds: tuple[str, ...]
    asked: Mapping[str, Sequence[str]]
    block: dict[str, Any] | None
    complexity: int

    @property
    def ids(self) -> list[str]:
        """All ids asked for by name, in the order of the query."""
        return [identity for ids in self.asked.values() for identity in ids]


@dataclass(slots=True)
class _Context:
    """One execution: the head that all its fields see, the faults that spoil it, and what it found."""

    query: Query
    head: int
    spoils: Sequence[Fault]
    rows: int = 0
    failed: bool = False


class _Execution(ExecutionContext):
    """Takes a list of conditions as the resolver made it: completing 10,000 rows one by one takes half a second."""

    def complete_list_value(self, return_type: Any, field_nodes: Any, info: Any, path: Any, result: Any) -> Any:
        if info.field_name == "conditions":
            return result
        return super().complete_list_value(return_type, field_nodes, info, path, result)


class Engine:
    """One deployment: a store, a chain and a schema."""

    def __init__(
        self,
        store: ConditionStore,
        chain: Chain,
        schema: SchemaName = "payouts",
        deployment: str = DEFAULT_DEPLOYMENT,
        earliest_block: int = 0,
    ) -> None:
        self.store = store
        self.chain = chain
        self.schema = api_schema(schema)
        self.deployment = deployment
        self.earliest_block = earliest_block
        self._fields = fields_of(schema)
        self._valid = lru_cache(maxsize=256)(self._parse)

    def read(self, text: str, variables: dict[str, Any]) -> Query | dict[str, Any]:
        """Parses and validates a query; the body of errors where it is wrong."""
        document, operation, errors = self._valid(text)
        if document is None or operation is None:
            return error_body(errors)
        roots = [node for node in operation.selection_set.selections if isinstance(node, FieldNode)]
        asked: dict[str, Sequence[str]] = {}
        blocks: list[Any] = []
        for node in roots:
            given = {
                argument.name.value: value_from_ast_untyped(argument.value, variables) for argument in node.arguments
            }
            if node.name.value == "conditions":
                where = given.get("where")
                listed = where.get("id_in") if isinstance(where, dict) else None
                asked[(node.alias or node.name).value] = listed if isinstance(listed, list) else []
            elif node.name.value == "condition":
                asked[(node.alias or node.name).value] = [str(given.get("id"))]
            if "block" in given:
                blocks.append(given["block"])
        kinds = tuple(dict.fromkeys(node.name.value for node in roots))
        name = operation.name.value if operation.name else None
        complexity = sum(map(_complexity, roots))
        return Query(document, variables, name, kinds, asked, blocks[0] if blocks else None, complexity)

    def _parse(self, text: str) -> tuple[DocumentNode | None, OperationDefinitionNode | None, list[str]]:
        try:
            document = parse(text)
        except GraphQLError as error:
            return None, None, [error.message]
        operation = get_operation_ast(document)
        if operation is None:
            errors = ["Operation name required"]
        elif operation.operation is not OperationType.QUERY:
            errors = [f"Not supported: {operation.operation.value.capitalize()}s are not supported"]
        else:
            errors = [_worded(error) for error in validate(self.schema, document)]
        return (None, None, errors) if errors else (document, operation, [])

    def answer(self, query: Query, spoils: Sequence[Fault] = ()) -> tuple[dict[str, Any], int]:
        """(body, number of entities in it): all of the data, or errors. ``spoils``: faults that make it lie."""
        context = _Context(query, self.chain.head(), spoils)
        result = execute_sync(
            self.schema,
            query.document,
            root_value=self,
            context_value=context,
            variable_values=query.variables,
            field_resolver=_resolve,
            execution_context_class=_Execution,
        )
        if result.errors or result.data is None:
            return error_body(map(_worded, result.errors or ())), 0
        data = result.data
        for number, key in enumerate(query.asked):
            if any(fault.kind == "missing_alias" and fault.hits(number) for fault in spoils):
                data.pop(key, None)
        if context.failed:
            shown = {key: value for key, value in data.items() if key in _SHOWN_BY_A_FAILED_DEPLOYMENT}
            return {**({"data": shown} if shown else {}), **error_body(["indexing_error"])}, 0
        return {"data": data}, context.rows

    # -- the root fields ----------------------------------------------------------------------------------------------

    def condition(self, info: GraphQLResolveInfo, id: str, block: Mapping[str, Any] | None = None) -> Any:
        """One condition, with all of its fields."""
        number, _hash = self._locate(info.context, block)
        row = self.store.rows.get(id)
        if row is None or not row.created_block <= number < row.deleted_block:
            return None
        info.context.rows += 1
        return {name: read(row, number) for name, read in self._fields.items()}

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
        context: _Context = info.context
        number, _hash = self._locate(context, block)
        first, skip = 100 if first is None else first, skip or 0
        if not 1 <= first <= _MAX_FIRST:
            raise GraphQLError(f"The `first` argument must be between 0 and {_MAX_FIRST}, but is {first}")
        if not 0 <= skip <= _MAX_SKIP:
            raise GraphQLError(f"The `skip` argument must be between 0 and {_MAX_SKIP}, but is {skip}")
        ids, tests = select(self.store, self._fields, where or {})
        # graph-node ignores a direction without an order.
        known = map(self.store.rows.__getitem__, reversed(ids) if orderBy and orderDirection == "desc" else ids)
        visible = (row for row in known if row.created_block <= number < row.deleted_block)
        matching = (row for row in visible if all(test(row, number) for test in tests)) if tests else visible
        found = list(islice(matching, skip, skip + first))
        condition: Any = get_named_type(info.return_type)
        selected = collect_sub_fields(self.schema, info.fragments, info.variable_values, condition, info.field_nodes)
        readers = [(key, self._fields.get(nodes[0].name.value, _typename)) for key, nodes in selected.items()]
        rows = [{key: read(row, number) for key, read in readers} for row in found]
        keys, key = list(context.query.asked), str(info.path.key)
        if context.spoils and key in keys:
            asked = context.query.asked[key]
            rows = spoil_rows(context.spoils, keys.index(key), asked, [row.id for row in found], rows)
        context.rows += len(rows)
        return rows

    def meta(self, info: GraphQLResolveInfo, block: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Block, deployment and health; a block pinned by number has no hash and no time."""
        context: _Context = info.context
        number, block_hash = self._locate(context, block)
        shown: dict[str, Any] = {"number": number}
        if block_hash is not None:
            age = option_of(context.spoils, "stale_head", "seconds", 0)
            shown |= {"hash": block_hash, "timestamp": self.chain.timestamp(number) - age}
        return {
            "block": shown,
            "deployment": self._deployment(context),
            "hasIndexingErrors": context.failed or any(fault.kind == "indexing_errors" for fault in context.spoils),
        }

    def _deployment(self, context: _Context) -> str:
        return str(option_of(context.spoils, "deployment", "deployment", self.deployment))

    def _locate(self, context: _Context, block: Mapping[str, Any] | None) -> tuple[int, str | None]:
        """(block number, hash where ``_meta`` tells it): hash before number before number_gte."""
        head, earliest = context.head, self.earliest_block
        kind = next((kind for kind in ("hash", "number", "number_gte") if kind in (block or {})), None)
        value = block[kind] if block and kind else None
        if block is not None and value is None:
            raise GraphQLError(f"Invalid value provided for argument `block`: {dict(block)}")
        number = head if value is None else self.chain.number_of(value) if kind == "hash" else int(value)
        if number is None:
            raise GraphQLError("Failed to decode `block.hash` value: `no block with that hash found`")
        reason = None
        if number > head:
            reason = (
                f"has only indexed up to block number {head} and data for block number {number} is therefore not yet"
            )
        elif number < earliest and kind != "number_gte":
            reason = (
                f"only has data starting at block number {earliest} and data for block number {number} is therefore not"
            )
        if reason:
            deployment = self._deployment(context)
            raise GraphQLError(f"Failed to decode `block.{kind}` value: `subgraph {deployment} {reason} available`")
        number = head if kind == "number_gte" else number
        failed_at = option_of(context.spoils, "failed", "block", None)
        context.failed |= failed_at is not None and number >= failed_at
        return number, None if kind == "number" else self.chain.block_hash(number)


def error_body(messages: Iterable[str]) -> dict[str, Any]:
    """A body of nothing but errors."""
    return {"errors": [{"message": message} for message in dict.fromkeys(messages)]}


def _resolve(source: Any, info: GraphQLResolveInfo, **arguments: Any) -> Any:
    if isinstance(source, Engine):
        return getattr(source, info.field_name.removeprefix("_"))(info, **arguments)
    return source.get(info.field_name)


def _typename(_row: ConditionRow, _block: int) -> str:
    return "Condition"


def _complexity(node: FieldNode) -> int:
    """How many entities a root field may return, as graph-node estimates it."""
    if node.name.value != "conditions":
        return 0
    first = next((argument.value for argument in node.arguments if argument.name.value == "first"), None)
    return int(first.value) if isinstance(first, IntValueNode) else 100


_UNKNOWN_FIELD = re.compile(r"Cannot query field '(\w+)' on type '(\w+)'")


def _worded(error: GraphQLError) -> str:
    """The message of an error as graph-node (or its validation) says it, as far as a client tells them apart."""
    if error.path:
        return error.message
    if unknown := _UNKNOWN_FIELD.match(error.message):
        return f"Type `{unknown[2]}` has no field `{unknown[1]}`"
    message = error.message.replace("'", '"')
    return message if message.startswith(("Variable ", "Field ", "Unknown ")) else f"Invalid value provided: {message}"
