"""Answers GraphQL queries over a store: graphql-core parses, validates and executes, the rows come from here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
    parse,
    validate,
    value_from_ast_untyped,
)
from graphql.utilities import get_operation_ast

from payout_pipeline.subgraph.chain import Chain
from payout_pipeline.subgraph.faults import Fault, option_of, spoil_rows
from payout_pipeline.subgraph.fields import fields_of
from payout_pipeline.subgraph.filters import FilterError, select
from payout_pipeline.subgraph.schema import SchemaName, api_schema
from payout_pipeline.subgraph.store import ConditionRow, ConditionStore

DEFAULT_DEPLOYMENT = "QmVGZ3gBqf1wLmUzR5xYgYhG2nBhTqkJ8yDkEo4sPzXc7N"
_SHOWN_BY_A_FAILED_DEPLOYMENT = frozenset({"_meta", "__schema", "__type"})


@dataclass(frozen=True, slots=True)
class Limits:
    """What one query may ask for; None is no limit.

    ``max_complexity``: sum of the literal ``first`` of all aliases (100 where it is a variable or missing).
    ``max_aliases``: more lists in one query close the connection. ``alias_timeout``: more of them time out.
    """

    max_first: int = 1000
    max_skip: int = 5000
    max_complexity: int | None = None
    max_aliases: int | None = None
    alias_timeout: int | None = None


class QueryError(Exception):
    """Errors that are reported with HTTP 200."""

    def __init__(self, *messages: str) -> None:
        super().__init__("; ".join(messages))
        self.messages = messages


@dataclass(frozen=True, slots=True)
class Query:
    """A query that is valid, and what the log tells of it.

    ``asked``: response key of each ``condition`` or ``conditions`` → the ids that it names; ``block``: the first
    ``block`` argument.
    """

    document: DocumentNode
    variables: Mapping[str, Any]
    operation_name: str | None
    kinds: tuple[str, ...]
    asked: Mapping[str, Sequence[str]]
    block: dict[str, Any] | None

    @property
    def ids(self) -> list[str]:
        """All ids asked for by name, in the order of the query."""
        return [identity for ids in self.asked.values() for identity in ids]


@dataclass(frozen=True, slots=True)
class Answer:
    """``data``: None for no ``data`` key at all; ``rows``: entities in it."""

    data: dict[str, Any] | None
    errors: tuple[dict[str, Any], ...] = ()
    rows: int = 0

    def payload(self) -> dict[str, Any]:
        """The JSON body; never ``data: null``."""
        data = {} if self.data is None else {"data": self.data}
        return {**data, "errors": list(self.errors)} if self.errors else data


@dataclass(slots=True)
class _Context:
    """One execution: the head that all fields see, the faults that spoil it, and what happened."""

    query: Query
    head: int
    spoils: Sequence[Fault]
    rows: int = 0
    failed: bool = False
    denied: bool = False

    def option(self, kind: str, name: str, default: Any) -> Any:
        return option_of(self.spoils, kind, name, default)


@dataclass(frozen=True, slots=True)
class _Found:
    """Rows of one list at a block, whose fields are read when the answer is put together."""

    rows: list[ConditionRow]
    block: int


class _Execution(ExecutionContext):
    """Reads the fields of a list of conditions at once: graphql-core's own way takes ten times as long for a row."""

    def complete_list_value(self, return_type: Any, field_nodes: Any, info: Any, path: Any, result: Any) -> Any:
        if not isinstance(result, _Found):
            return super().complete_list_value(return_type, field_nodes, info, path, result)
        engine: Engine = self.root_value
        condition = engine.schema.type_map["Condition"]
        wanted = {
            key: nodes[0].name.value
            for key, nodes in self.collect_subfields(condition, field_nodes).items()  # type: ignore[arg-type]
        }
        return engine.project(path.key, result, wanted, self.context_value)


class Engine:
    """One deployment: a store, a chain and a schema."""

    def __init__(
        self,
        store: ConditionStore,
        chain: Chain,
        schema: SchemaName = "payouts",
        *,
        limits: Limits = Limits(),
        deployment: str = DEFAULT_DEPLOYMENT,
        earliest_block: int = 0,
    ) -> None:
        self.store = store
        self.chain = chain
        self.schema_name = schema
        self.schema = api_schema(schema)
        self.limits = limits
        self.deployment = deployment
        self.earliest_block = earliest_block
        self._fields = fields_of(schema)
        self._document = lru_cache(maxsize=256)(self._checked)

    def read(self, text: str, variables: Mapping[str, Any]) -> Query:
        """Parses and validates a query. Raises :class:`QueryError`."""
        document, operation = self._document(text)
        self._check_complexity(operation)
        roots = [node for node in operation.selection_set.selections if isinstance(node, FieldNode)]
        asked: dict[str, Sequence[str]] = {}
        block = None
        for node in roots:
            given = {argument.name.value: argument.value for argument in node.arguments}
            if block is None and "block" in given:
                block = value_from_ast_untyped(given["block"], dict(variables))
            if node.name.value in ("condition", "conditions"):
                asked[(node.alias or node.name).value] = _named_ids(given, variables)
        return Query(
            document,
            variables,
            operation.name.value if operation.name else None,
            tuple(dict.fromkeys(node.name.value for node in roots)),
            asked,
            block,
        )

    def _checked(self, text: str) -> tuple[DocumentNode, OperationDefinitionNode]:
        try:
            document = parse(text)
        except GraphQLError as error:
            raise QueryError(error.message) from None
        operation = get_operation_ast(document)
        if operation is None:
            raise QueryError("Operation name required")
        if operation.operation is not OperationType.QUERY:
            raise QueryError(f"Not supported: {operation.operation.value.capitalize()}s are not supported")
        errors = validate(self.schema, document)
        if errors:
            raise QueryError(*(_worded(error) for error in errors))
        return document, operation

    def _check_complexity(self, operation: OperationDefinitionNode) -> None:
        limit = self.limits.max_complexity
        complexity = sum(map(_complexity, operation.selection_set.selections))
        if limit is not None and complexity > limit:
            raise QueryError(
                f"query potentially returns `{complexity}` entities or more and thereby exceeds the limit of `{limit}` "
                "entities. Possible solutions are reducing the depth of the query, querying fewer relationships or "
                "using `first` to return smaller collections"
            )

    def answer(self, query: Query, spoils: Sequence[Fault] = ()) -> Answer:
        """Executes a query, all of it or nothing. ``spoils``: faults that make the answer lie."""
        if self.limits.alias_timeout is not None and len(query.asked) > self.limits.alias_timeout:
            return Answer(None, ({"message": "Query timed out"},))
        context = _Context(query, self.chain.head(), spoils)
        result = execute_sync(
            self.schema,
            query.document,
            root_value=self,
            context_value=context,
            variable_values=dict(query.variables),
            field_resolver=_resolve,
            execution_context_class=_Execution,
        )
        if result.errors or result.data is None:
            messages = dict.fromkeys(_worded(error) for error in result.errors or ())
            return Answer(None, tuple({"message": message} for message in messages))
        data = result.data
        for number, key in enumerate(query.asked):
            if any(fault.kind == "missing_alias" and fault.hits(number) for fault in spoils):
                del data[key]
        if not context.failed:
            return Answer(data, (), context.rows)
        if context.denied:
            data = {key: value for key, value in data.items() if key in _SHOWN_BY_A_FAILED_DEPLOYMENT}
        return Answer(data or None, ({"message": "indexing_error"},), 0 if context.denied else context.rows)

    # -- the root fields ----------------------------------------------------------------------------------------------

    def condition(self, context: _Context, id: str, **arguments: Any) -> dict[str, Any] | None:
        """One condition, with all of its fields."""
        block, _hash = self._locate(context, **arguments)
        row = self.store.rows.get(id)
        if row is None or not row.created_block <= block < row.deleted_block:
            return None
        context.rows += 1
        return {"__typename": "Condition", **{name: read(row, block) for name, read in self._fields.items()}}

    def conditions(
        self,
        context: _Context,
        first: int | None = None,
        skip: int | None = None,
        where: Mapping[str, Any] | None = None,
        orderBy: str | None = None,  # noqa: N803 - GraphQL's name
        orderDirection: str | None = None,  # noqa: N803
        **arguments: Any,
    ) -> _Found:
        """A page of conditions in the order of their ids."""
        block, _hash = self._locate(context, **arguments)
        first, skip, where = 100 if first is None else first, skip or 0, where or {}
        if not 1 <= first <= self.limits.max_first:
            raise GraphQLError(f"The `first` argument must be between 0 and {self.limits.max_first}, but is {first}")
        if not 0 <= skip <= self.limits.max_skip:
            raise GraphQLError(f"The `skip` argument must be between 0 and {self.limits.max_skip}, but is {skip}")
        if orderBy not in (None, "id"):
            raise GraphQLError(f"Ordering by `{orderBy}` is not supported for type `Condition`")
        try:
            ids, matches = select(self.store, self.schema_name, where)
        except FilterError as error:
            raise GraphQLError(str(error)) from None
        # graph-node ignores a direction without an order.
        ordered = reversed(ids) if orderBy and orderDirection == "desc" else ids
        rows = (self.store.rows[identity] for identity in ordered)
        page = (row for row in rows if row.created_block <= block < row.deleted_block and matches(row, block))
        return _Found(list(islice(page, skip, skip + first)), block)

    def project(self, key: str, found: _Found, wanted: Mapping[str, str], context: _Context) -> list[dict[str, Any]]:
        """The rows as JSON objects. ``wanted``: response key → field name."""
        block = found.block
        readers = [(name, self._fields.get(field, _typename)) for name, field in wanted.items()]
        rows = [{name: read(row, block) for name, read in readers} for row in found.rows]
        if context.spoils:
            asked = context.query.asked.get(key, ())
            number = list(context.query.asked).index(key) if key in context.query.asked else 0
            rows = spoil_rows(context.spoils, number, asked, [row.id for row in found.rows], rows)
        context.rows += len(rows)
        return rows

    def meta(self, context: _Context, **arguments: Any) -> dict[str, Any]:
        """Block, deployment and health; a block pinned by number has no hash and no time."""
        number, block_hash = self._locate(context, **arguments)
        age = context.option("stale_head", "seconds", 0)
        block: dict[str, Any] = {"number": number}
        if block_hash is not None:
            block |= {
                "hash": block_hash,
                "timestamp": self.chain.timestamp(number) - age,
                "parentHash": self.chain.block_hash(number - 1) if number else None,
            }
        broken = context.failed or any(fault.kind == "indexing_errors" for fault in context.spoils)
        deployment = context.option("deployment", "deployment", self.deployment)
        return {"block": block, "deployment": deployment, "hasIndexingErrors": broken}

    def _locate(
        self,
        context: _Context,
        block: Mapping[str, Any] | None = None,
        subgraphError: str = "deny",  # noqa: N803
    ) -> tuple[int, str | None]:
        """(block number, hash where ``_meta`` tells it): hash before number before number_gte."""
        number, block_hash = self._block(context, block)
        failed_at = context.option("failed", "block", None)
        if failed_at is not None and number >= failed_at:
            context.failed = True
            context.denied |= subgraphError == "deny"
        return number, block_hash

    def _block(self, context: _Context, block: Mapping[str, Any] | None) -> tuple[int, str | None]:
        head = context.head
        if block is None:
            return head, self.chain.block_hash(head)
        kind = next((kind for kind in ("hash", "number", "number_gte") if kind in block), "number")
        value = block.get(kind)
        number = self.chain.number_of(value) if kind == "hash" and value else value
        if value is None:
            raise GraphQLError(f"Invalid value provided for argument `block`: {dict(block)}")
        if number is None:
            raise GraphQLError("Failed to decode `block.hash` value: `no block with that hash found`")
        subgraph = f"subgraph {context.option('deployment', 'deployment', self.deployment)}"
        if number > head:
            reason = (
                f"{subgraph} has only indexed up to block number {head} and data for block number {number} "
                "is therefore not yet available"
            )
        elif number < self.earliest_block and kind != "number_gte":
            reason = (
                f"{subgraph} only has data starting at block number {self.earliest_block} and data for block number "
                f"{number} is therefore not available"
            )
        elif kind == "number_gte":
            return head, self.chain.block_hash(head)
        else:
            return number, self.chain.block_hash(number) if kind == "hash" else None
        raise GraphQLError(f"Failed to decode `block.{kind}` value: `{reason}`")

    def head_pointer(self, spoils: Sequence[Fault] = ()) -> dict[str, Any]:
        """What the header ``graph-indexed`` says."""
        head = self.chain.head()
        timestamp = self.chain.timestamp(head) - option_of(spoils, "stale_head", "seconds", 0)
        return {"hash": self.chain.block_hash(head), "number": head, "timestamp": timestamp}


def _resolve(source: Any, info: GraphQLResolveInfo, **arguments: Any) -> Any:
    if isinstance(source, Engine):
        return getattr(source, info.field_name.removeprefix("_"))(info.context, **arguments)
    return source.get(info.field_name)


def _typename(_row: ConditionRow, _block: int) -> str:
    return "Condition"


def _named_ids(arguments: Mapping[str, Any], variables: Mapping[str, Any]) -> Sequence[str]:
    if "id" in arguments:
        return [str(value_from_ast_untyped(arguments["id"], dict(variables)))]
    where = value_from_ast_untyped(arguments["where"], dict(variables)) if "where" in arguments else None
    listed = where.get("id_in") if isinstance(where, dict) else None
    return listed if isinstance(listed, list) else []


def _complexity(node: Any) -> int:
    """How many entities a root field may return, by graph-node's rule for a list without lists inside."""
    if not isinstance(node, FieldNode) or node.name.value.startswith("__"):
        return 0
    first = next((argument.value for argument in node.arguments if argument.name.value == "first"), None)
    if node.name.value == "conditions":
        return int(first.value) if isinstance(first, IntValueNode) else 100
    inner = node.selection_set.selections if node.selection_set else ()
    return 1 + sum(1 for selected in inner if isinstance(selected, FieldNode) and selected.selection_set)


_UNKNOWN_FIELD = re.compile(r"Cannot query field '(\w+)' on type '(\w+)'")


def _worded(error: GraphQLError) -> str:
    """The message of an error as graph-node (or its validation) says it, as far as a client tells them apart."""
    if error.path or error.message.startswith("Syntax Error"):
        return error.message
    if unknown := _UNKNOWN_FIELD.match(error.message):
        return f"Type `{unknown[2]}` has no field `{unknown[1]}`"
    message = error.message.replace("'", '"')
    plain = message.startswith(("Variable ", "Field ", "Unknown "))
    return message if plain else f"Invalid value provided: {message}"
