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

from payout_pipeline.subgraph.chain import Chain
from payout_pipeline.subgraph.faults import Fault, option_of, spoil_rows
from payout_pipeline.subgraph.fields import fields_of
from payout_pipeline.subgraph.filters import FilterError, select
from payout_pipeline.subgraph.schema import SchemaName, api_schema
from payout_pipeline.subgraph.store import ConditionRow, ConditionStore

DEFAULT_DEPLOYMENT = "QmVGZ3gBqf1wLmUzR5xYgYhG2nBhTqkJ8yDkEo4sPzXc7N"
_MAX_FIRST = 1000
_MAX_SKIP = 5000
_SHOWN_BY_A_FAILED_DEPLOYMENT = frozenset({"_meta", "__schema", "__type"})


class QueryError(Exception):
    """Errors that are reported with HTTP 200."""

    def __init__(self, messages: Iterable[str]) -> None:
        self.messages = list(dict.fromkeys(messages))
        super().__init__("; ".join(self.messages))


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


@dataclass(frozen=True, slots=True)
class _Page:
    """Rows of one list at a block; which of their fields are wanted is known when the answer is put together."""

    rows: list[ConditionRow]
    block: int


class _Execution(ExecutionContext):
    """Reads the fields of a whole page at once, because graphql-core's own way takes ten times as long."""

    def complete_list_value(self, return_type: Any, field_nodes: Any, info: Any, path: Any, result: Any) -> Any:
        if not isinstance(result, _Page):
            return super().complete_list_value(return_type, field_nodes, info, path, result)
        selected = self.collect_subfields(get_named_type(return_type), field_nodes)
        wanted = {key: nodes[0].name.value for key, nodes in selected.items()}
        return self.root_value.page(path.key, result, wanted, self.context_value)


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

    def read(self, text: str, variables: dict[str, Any]) -> Query:
        """Parses and validates a query. Raises :class:`QueryError`."""
        document, operation = self._valid(text)
        roots = [node for node in operation.selection_set.selections if isinstance(node, FieldNode)]
        asked: dict[str, Sequence[str]] = {}
        blocks: list[Any] = []
        for node in roots:
            given = {
                argument.name.value: value_from_ast_untyped(argument.value, variables) for argument in node.arguments
            }
            if node.name.value == "conditions":
                asked[(node.alias or node.name).value] = (given.get("where") or {}).get("id_in") or []
            elif node.name.value == "condition":
                asked[(node.alias or node.name).value] = [str(given["id"])]
            if "block" in given:
                blocks.append(given["block"])
        kinds = tuple(dict.fromkeys(node.name.value for node in roots))
        name = operation.name.value if operation.name else None
        complexity = sum(map(_complexity, roots))
        return Query(document, variables, name, kinds, asked, blocks[0] if blocks else None, complexity)

    def _parse(self, text: str) -> tuple[DocumentNode, OperationDefinitionNode]:
        try:
            document = parse(text)
        except GraphQLError as error:
            raise QueryError([error.message]) from None
        operation = get_operation_ast(document)
        if operation is None:
            raise QueryError(["Operation name required"])
        if operation.operation is not OperationType.QUERY:
            raise QueryError([f"Not supported: {operation.operation.value.capitalize()}s are not supported"])
        if errors := validate(self.schema, document):
            raise QueryError(map(_worded, errors))
        return document, operation

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
                del data[key]
        if context.failed:
            shown = {key: value for key, value in data.items() if key in _SHOWN_BY_A_FAILED_DEPLOYMENT}
            return {**({"data": shown} if shown else {}), **error_body(["indexing_error"])}, 0
        return {"data": data}, context.rows

    # -- the root fields ----------------------------------------------------------------------------------------------

    def condition(self, context: _Context, id: str, block: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """One condition, with all of its fields."""
        number, _hash = self._locate(context, block)
        row = self.store.rows.get(id)
        if row is None or not row.created_block <= number < row.deleted_block:
            return None
        context.rows += 1
        return {name: read(row, number) for name, read in self._fields.items()}

    def conditions(
        self,
        context: _Context,
        first: int | None = None,
        skip: int | None = None,
        where: Mapping[str, Any] | None = None,
        orderBy: str | None = None,  # noqa: N803 - GraphQL's names
        orderDirection: str | None = None,  # noqa: N803
        block: Mapping[str, Any] | None = None,
    ) -> _Page:
        """A page of conditions in the order of their ids."""
        number, _hash = self._locate(context, block)
        first, skip = 100 if first is None else first, skip or 0
        if not 1 <= first <= _MAX_FIRST:
            raise GraphQLError(f"The `first` argument must be between 0 and {_MAX_FIRST}, but is {first}")
        if not 0 <= skip <= _MAX_SKIP:
            raise GraphQLError(f"The `skip` argument must be between 0 and {_MAX_SKIP}, but is {skip}")
        try:
            ids, tests = select(self.store, self._fields, where or {})
        except FilterError as error:
            raise GraphQLError(str(error)) from None
        # graph-node ignores a direction without an order.
        rows = map(self.store.rows.__getitem__, reversed(ids) if orderBy and orderDirection == "desc" else ids)
        visible = (row for row in rows if row.created_block <= number < row.deleted_block)
        matching = (row for row in visible if all(test(row, number) for test in tests)) if tests else visible
        return _Page(list(islice(matching, skip, skip + first)), number)

    def page(self, key: str, page: _Page, wanted: Mapping[str, str], context: _Context) -> list[dict[str, Any]]:
        """The rows of a page as JSON objects. ``wanted``: response key → field name."""
        block = page.block
        readers = [(name, self._fields.get(field, _typename)) for name, field in wanted.items()]
        rows = [{name: read(row, block) for name, read in readers} for row in page.rows]
        if context.spoils and key in context.query.asked:
            alias = list(context.query.asked).index(key)
            rows = spoil_rows(context.spoils, alias, context.query.asked[key], [row.id for row in page.rows], rows)
        context.rows += len(rows)
        return rows

    def meta(self, context: _Context, block: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Block, deployment and health; a block pinned by number has no hash and no time."""
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
        return getattr(source, info.field_name.removeprefix("_"))(info.context, **arguments)
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
