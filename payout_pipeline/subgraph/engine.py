"""Answers GraphQL queries over a store as graph-node does.

graphql-core parses (once for each distinct text) and serves introspection; the data fields are resolved here, a whole
page at a time and straight into JSON bytes, because the server shares its machine with what it is measured by.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import orjson
from graphql import (
    DirectiveNode,
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLField,
    InlineFragmentNode,
    IntValueNode,
    NameNode,
    Node,
    OperationDefinitionNode,
    OperationType,
    SchemaMetaFieldDef,
    SelectionNode,
    SelectionSetNode,
    TypeMetaFieldDef,
    execute_sync,
    get_named_type,
    introspection_types,
    parse,
)

from payout_pipeline.subgraph.chain import Chain
from payout_pipeline.subgraph.columns import columns_of
from payout_pipeline.subgraph.filters import Condition, FilterBuilder, order_of, range_of, select
from payout_pipeline.subgraph.schema import ENTITY, SchemaName, api_schema
from payout_pipeline.subgraph.store import ConditionStore, Rows
from payout_pipeline.subgraph.values import (
    QueryError,
    Value,
    coerce_argument,
    coerce_variables,
    literal,
    located,
    rust_debug,
)

DEFAULT_DEPLOYMENT = "QmVGZ3gBqf1wLmUzR5xYgYhG2nBhTqkJ8yDkEo4sPzXc7N"

_ROOT = "Query"
_OBJECT_TYPES = frozenset({_ROOT, ENTITY, "_Meta_", "_Block_", *introspection_types})
_HASH = re.compile(r"(?:0x)?(?:[0-9a-fA-F]{2})*")
_META_FIELDS: dict[str, tuple[str, ...]] = {
    "_Meta_": ("block", "deployment", "hasIndexingErrors"),
    "_Block_": ("hash", "number", "timestamp", "parentHash"),
}


class ConnectionDroppedError(Exception):
    """graph-node's task panics on this query: the connection is closed without an answer."""


class EmptySelectionError(Exception):
    """An object was asked for without fields: graph-node answers ``{}``."""


@dataclass(frozen=True, slots=True)
class Limits:
    """graph-node's settings of the same meaning; None is no limit."""

    max_first: int = 1000
    max_skip: int = 2**32 - 1
    max_complexity: int | None = None
    max_depth: int = 255


@dataclass(frozen=True, slots=True)
class RootField:
    """One field of the query itself: ``key`` in the answer, coerced ``arguments`` and ``selection`` of what it returns.

    A selected field is (key, name, its own selection as (key, name) or None).
    """

    key: str
    name: str
    arguments: Mapping[str, Any]
    selection: tuple[tuple[str, str, tuple[tuple[str, str], ...] | None], ...]
    block: tuple[str, Any]

    @property
    def ids(self) -> list[str]:
        """The ids asked for by name; empty where it is not asked by id."""
        if self.name == "condition":
            return [self.arguments["id"]]
        where = self.arguments.get("where")
        listed = where.get("id_in") if isinstance(where, dict) else None
        return listed if isinstance(listed, list) else []


@dataclass(frozen=True, slots=True)
class Query:
    """A query that has been checked and can be executed. ``introspection``: a document of those root fields alone."""

    fields: tuple[RootField, ...]
    operation_name: str | None
    introspection: DocumentNode | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        """All ids asked for by name, in the order of the query."""
        listed = [root.ids for root in self.fields]
        return listed[0] if len(listed) == 1 else [identity for ids in listed for identity in ids]

    @property
    def kinds(self) -> list[str]:
        """Names of the root fields, each once."""
        return list(dict.fromkeys(root.name for root in self.fields))

    @property
    def pinned(self) -> dict[str, Any] | None:
        """The ``block`` argument of the first field that has one."""
        return next((dict([root.block]) for root in self.fields if root.block[0] != "latest"), None)


RowsHook = Callable[[Sequence[str], list[str], list[bytes]], list[bytes]]


@dataclass(frozen=True, slots=True)
class Disguise:
    """What a fault makes the subgraph say instead of the truth.

    ``page_cap``: most rows of one list, silently; ``rows``: rewrites (asked ids, returned ids, returned JSON objects);
    ``raw_fields``: JSON of single fields of single ids; ``failed_at``: block of a deterministic failure; ``head_age``:
    seconds by which the head looks older than it is.
    """

    page_cap: int | None = None
    rows: RowsHook | None = None
    raw_fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    failed_at: int | None = None
    has_indexing_errors: bool = False
    deployment: str | None = None
    head_age: int = 0


PLAIN = Disguise()


@dataclass(frozen=True, slots=True)
class Answer:
    """``data``: JSON object bytes, or None for no ``data`` key at all; ``rows``: entities in it."""

    data: bytes | None
    errors: tuple[dict[str, Any], ...] = ()
    rows: int = 0

    def body(self) -> bytes:
        """The HTTP body: never ``data: null``; ``{}`` where there is neither data nor an error."""
        if not self.errors:
            return b"{}" if self.data is None else b'{"data":%b}' % self.data
        errors = b'"errors":%b' % orjson.dumps(list(self.errors))
        return b"{%b}" % errors if self.data is None else b'{"data":%b,%b}' % (self.data, errors)


@dataclass(frozen=True, slots=True)
class _Prepared:
    document: DocumentNode
    operation: OperationDefinitionNode
    fragments: Mapping[str, FragmentDefinitionNode]


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
        self.schema = api_schema(schema)
        self.limits = limits
        self.deployment = deployment
        self.earliest_block = earliest_block
        self._columns = columns_of(store, schema)
        self._filters = FilterBuilder(store, self.schema, self._columns)
        self._prepare = lru_cache(maxsize=256)(_prepare)

    # -- from a text to a query -------------------------------------------------------------------------------------

    def read(self, text: str, variables: Mapping[str, Any]) -> Query:
        """Parses and checks a query.

        Raises :class:`~payout_pipeline.subgraph.values.QueryError` (errors for the client),
        :class:`EmptySelectionError` and :class:`ConnectionDroppedError`.
        """
        prepared = self._prepare(text)
        operation = prepared.operation
        coerced = coerce_variables(self.schema.graphql, operation, variables)
        if operation.operation is OperationType.MUTATION:
            raise QueryError({"message": "Not supported: Mutations are not supported"})
        if operation.operation is OperationType.SUBSCRIPTION:
            raise QueryError({"message": "Not supported: Subscriptions are not supported"})
        self._check_size(prepared)
        reader = _Reader(prepared.fragments, coerced)
        roots = reader.fields(operation.selection_set, _ROOT)
        self._check_fields(roots, reader)
        errors: list[dict[str, Any]] = []
        fields: list[RootField] = []
        asked_about_schema = False
        for key, name, nodes in roots:
            if name in ("__schema", "__type"):
                if name == "__type" and not any(argument.name.value == "name" for argument in nodes[0].arguments):
                    errors.append(located("No value provided for required argument: `name`", None))
                asked_about_schema = True
                fields.append(RootField(key, name, {}, (), ("latest", None)))
                continue
            try:
                fields.append(self._root_field(key, name, nodes, reader, coerced))
            except QueryError as fault:
                errors.extend(fault.errors)
        if errors:
            raise QueryError(*errors)
        introspection = _introspection_document(prepared) if asked_about_schema else None
        name_node = operation.name
        return Query(tuple(fields), name_node.value if name_node else None, introspection, dict(variables))

    def _root_field(
        self, key: str, name: str, nodes: list[FieldNode], reader: _Reader, variables: Mapping[str, Any]
    ) -> RootField:
        if name == "__typename":
            return RootField(key, name, {}, (), ("latest", None))
        arguments = self._arguments(name, nodes[0], variables)
        selection = tuple(
            (inner_key, inner_name, _inner_selection(inner_nodes, reader))
            for inner_key, inner_name, inner_nodes in reader.fields(
                _merged(nodes), "_Meta_" if name == "_meta" else ENTITY
            )
        )
        if not selection and name != "_meta":
            reason = f"internal error resolving {ENTITY}.{name}: expected prefetched result, but found nothing"
            raise QueryError({"message": f"Failed to get entities from store: {reason}"})
        return RootField(key, name, arguments, selection, _block_constraint(arguments.get("block")))

    def _arguments(self, name: str, node: FieldNode, variables: Mapping[str, Any]) -> dict[str, Any]:
        query_type = self.schema.graphql.query_type
        if query_type is None:
            raise TypeError("the schema has no Query")
        # Of two arguments of the same name the first one counts.
        given = {argument.name.value: argument.value for argument in reversed(node.arguments)}
        values: dict[str, Any] = {}
        errors: list[dict[str, Any]] = []
        for argument, definition in query_type.fields[name].args.items():
            if argument in given:
                value = literal(given[argument], variables)
            elif definition.ast_node is not None and definition.ast_node.default_value is not None:
                value = literal(definition.ast_node.default_value, {})
            else:
                if argument == "id":
                    errors.append(located("No value provided for required argument: `id`", None))
                continue
            try:
                values[argument] = coerce_argument(argument, value, definition.type, None)
            except QueryError as fault:
                errors.extend(fault.errors)
        if errors:
            raise QueryError(*errors)
        return values

    def _check_fields(self, roots: list[tuple[str, str, list[FieldNode]]], reader: _Reader) -> None:
        query_type = self.schema.graphql.query_type
        known = {*(query_type.fields if query_type else ()), "__schema", "__type", "__typename"}
        errors: list[dict[str, Any]] = []
        empty = False
        for _key, name, nodes in roots:
            if name not in known:
                errors.append(located(f"Type `{_ROOT}` has no field `{name}`", nodes[0]))
            elif name == "_meta":
                empty |= self._check_object("_Meta_", nodes, reader, errors)
            elif name in ("__schema", "__type"):
                self._check_introspection(nodes, reader, errors)
            elif name in ("condition", "conditions"):
                empty |= self._check_object(ENTITY, nodes, reader, errors)
        if errors:
            raise QueryError(*errors)
        if empty:
            raise EmptySelectionError

    def _check_object(
        self, type_name: str, nodes: list[FieldNode], reader: _Reader, errors: list[dict[str, Any]]
    ) -> bool:
        """Collects unknown fields; returns whether an object is asked for without any field."""
        selection = _merged(nodes)
        if not selection.selections:
            return True
        known: Any = self.schema.fields if type_name == ENTITY else _META_FIELDS[type_name]
        empty = False
        for _key, name, inner in reader.fields(selection, type_name):
            if name == "__typename":
                continue
            if name not in known:
                errors.append(located(f"Type `{type_name}` has no field `{name}`", inner[0]))
            elif type_name == "_Meta_" and name == "block":
                self._check_object("_Block_", inner, reader, errors)
        return empty

    def _check_introspection(
        self, nodes: list[FieldNode], reader: _Reader, errors: list[dict[str, Any]], owner: str = _ROOT
    ) -> None:
        """Collects unknown fields of the types that describe a schema."""
        meta_fields = {"__schema": SchemaMetaFieldDef, "__type": TypeMetaFieldDef}
        name = nodes[0].name.value
        definition: GraphQLField = meta_fields[name] if owner == _ROOT else introspection_types[owner].fields[name]  # type: ignore[attr-defined]
        type_name = get_named_type(definition.type).name
        for _key, inner, inner_nodes in reader.fields(_merged(nodes), type_name):
            if inner == "__typename":
                continue
            if inner not in introspection_types[type_name].fields:  # type: ignore[attr-defined]
                errors.append(located(f"Type `{type_name}` has no field `{inner}`", inner_nodes[0]))
            elif inner_nodes[0].selection_set is not None:
                self._check_introspection(inner_nodes, reader, errors, type_name)

    def _check_size(self, prepared: _Prepared) -> None:
        depth, complexity = _measure(prepared.operation.selection_set, prepared.fragments, 0)
        if depth > self.limits.max_depth:
            raise QueryError({"message": f"query has a depth that exceeds the limit of `{self.limits.max_depth}`"})
        limit = self.limits.max_complexity
        if limit is not None and complexity > limit:
            raise QueryError(
                {
                    "message": f"query potentially returns `{complexity}` entities or more and thereby exceeds the "
                    f"limit of `{limit}` entities. Possible solutions are reducing the depth of the query, querying "
                    "fewer relationships or using `first` to return smaller collections"
                }
            )

    # -- from a query to an answer ----------------------------------------------------------------------------------

    def answer(self, query: Query, disguise: Disguise = PLAIN) -> Answer:
        """Executes a query; a block group that fails costs its own data only."""
        parts: list[bytes] = []
        errors: list[dict[str, Any]] = []
        rows = 0
        groups = _block_groups(query.fields)
        try:
            # All blocks are looked up before anything is executed: one that is not there fails the whole query.
            places = [self._locate(group[0].block, disguise) for group in groups]
        except QueryError as fault:
            return Answer(None, tuple(fault.errors))
        for group, place in zip(groups, places, strict=True):
            try:
                data, count, group_errors = self._group(group, place, query, disguise)
            except QueryError as fault:
                errors.extend(fault.errors)
                continue
            parts.extend(data)
            errors.extend(group_errors)
            rows += count
        if not parts:
            return Answer(None, tuple(errors))
        return Answer(b"{%b}" % b",".join(parts), tuple(errors), rows)

    def _group(
        self, group: Sequence[RootField], place: tuple[int, str | None], query: Query, disguise: Disguise
    ) -> tuple[list[bytes], int, list[dict[str, Any]]]:
        number, pointer = place
        data: list[tuple[str, bytes]] = []
        late: list[tuple[str, bytes]] = []
        last: list[tuple[str, bytes]] = []
        introspected: dict[str, Any] | None = None
        rows = 0
        for root in group:
            if root.name in ("__schema", "__type"):
                if introspected is None:
                    introspected = self._introspect(query)
                last.append((root.key, orjson.dumps(introspected[root.key])))
            elif root.name == "__typename":
                late.append((root.key, b'"Query"'))
            elif root.name == "_meta":
                late.append((root.key, self._meta(root, number, pointer, disguise)))
            else:
                objects = self._objects(root, number, disguise)
                rows += len(objects)
                if root.name == "conditions":
                    data.append((root.key, b"[%b]" % b",".join(objects)))
                else:
                    data.append((root.key, objects[0] if objects else b"null"))
        errors: list[dict[str, Any]] = []
        every = data + late + last
        if disguise.failed_at is not None and number >= disguise.failed_at:
            errors.append({"message": "indexing_error"})
            if any(root.arguments.get("subgraphError", "deny") == "deny" for root in group):
                every = [(key, value) for key, value in every if key in ("_meta", "_logs", "__schema", "__type")]
                rows = 0
        return [b"%b:%b" % (orjson.dumps(key), value) for key, value in every], rows, errors

    def _locate(self, constraint: tuple[str, Any], disguise: Disguise) -> tuple[int, str | None]:
        """(block number, hash where ``_meta`` tells it). Raises for a block that is not there."""
        kind, value = constraint
        head = self.chain.head()
        if kind == "latest":
            return head, self.chain.block_hash(head)
        number: int | None = value
        if kind == "hash":
            number = self.chain.number_of(value)
            if number is None:
                raise QueryError({"message": "Failed to decode `block.hash` value: `no block with that hash found`"})
        if number is None:
            raise TypeError(f"no number for {constraint}")
        deployment = disguise.deployment or self.deployment
        if number > head:
            reason = (
                f"subgraph {deployment} has only indexed up to block number {head} and data for block number {number} "
                "is therefore not yet available"
            )
        elif number < self.earliest_block and kind != "number_gte":
            reason = (
                f"subgraph {deployment} only has data starting at block number {self.earliest_block} and data for "
                f"block number {number} is therefore not available"
            )
        elif kind == "number_gte":
            return head, self.chain.block_hash(head)
        else:
            return number, self.chain.block_hash(number) if kind == "hash" else None
        raise QueryError({"message": f"Failed to decode `block.{kind}` value: `{reason}`"})

    def _objects(self, root: RootField, block: int, disguise: Disguise) -> list[bytes]:
        store = self.store
        rows: Rows
        if root.name == "condition":
            rows = store.find([root.arguments["id"]])
            rows = rows[store.visible(rows, block)]
        else:
            first, skip = range_of(root.arguments, self.limits.max_first, self.limits.max_skip)
            order = order_of(root.arguments, self.schema, self._columns)
            condition: Condition = self._filters.build(root.arguments.get("where"))
            if disguise.page_cap is not None:
                first = min(first, disguise.page_cap)
            rows = select(store, condition, block, first=first, skip=skip, order=order)
        ids = store.ids[rows].tolist()
        columns: list[list[bytes]] = []
        keys: list[bytes] = []
        for key, name, _node in root.selection:
            keys.append(orjson.dumps(key).replace(b"%", b"%%"))
            if name == "id":
                columns.append([b'"%b"' % identity for identity in ids] if store.plain_ids else _quoted(ids))
            elif name == "__typename":
                columns.append([b'"%b"' % ENTITY.encode()] * len(ids))
            else:
                columns.append(self._columns[name].json(rows, block))
        if disguise.raw_fields:
            self._overwrite(root, ids, columns, disguise)
        template = b"{" + b",".join(key + b":%b" for key in keys) + b"}"
        objects = [template % values for values in zip(*columns, strict=True)]
        if disguise.rows is not None and root.ids:
            objects = disguise.rows(root.ids, [identity.decode() for identity in ids], objects)
        return objects

    @staticmethod
    def _overwrite(root: RootField, ids: list[bytes], columns: list[list[bytes]], disguise: Disguise) -> None:
        for place, identity in enumerate(ids):
            raw = disguise.raw_fields.get(identity.decode())
            if raw is None:
                continue
            for column, (_key, name, _node) in zip(columns, root.selection, strict=True):
                if name in raw:
                    column[place] = orjson.dumps(raw[name]) if not isinstance(raw[name], bytes) else raw[name]

    def _meta(self, root: RootField, number: int, block_hash: str | None, disguise: Disguise) -> bytes:
        told = block_hash is not None
        block = {
            "__typename": "_Block_",
            "hash": block_hash,
            "number": number,
            "timestamp": self.chain.timestamp(number) - disguise.head_age if told else None,
            "parentHash": self.chain.block_hash(number - 1) if told and number > 0 else None,
        }
        failed = disguise.failed_at is not None and number >= disguise.failed_at
        meta: dict[str, Any] = {
            "__typename": "_Meta_",
            "deployment": disguise.deployment or self.deployment,
            "hasIndexingErrors": failed or disguise.has_indexing_errors,
        }
        shown: dict[str, Any] = {}
        for key, name, inner in root.selection:
            if name != "block":
                shown[key] = meta[name]
            elif inner is not None:
                shown[key] = {inner_key: block[inner_name] for inner_key, inner_name in inner}
        return orjson.dumps(shown)

    def _introspect(self, query: Query) -> dict[str, Any]:
        if query.introspection is None:
            raise TypeError("not an introspection query")
        result = execute_sync(self.schema.graphql, query.introspection, variable_values=dict(query.variables))
        if result.errors or result.data is None:
            raise QueryError(*({"message": error.message} for error in result.errors or ()))
        return result.data

    def head_pointer(self, disguise: Disguise = PLAIN) -> dict[str, Any]:
        """What the header ``graph-indexed`` says."""
        head = self.chain.head()
        timestamp = self.chain.timestamp(head) - disguise.head_age
        return {"hash": self.chain.block_hash(head), "number": head, "timestamp": timestamp}


class _Reader:
    """Selections with fragments spread, directives obeyed and equal response keys merged."""

    def __init__(self, fragments: Mapping[str, FragmentDefinitionNode], variables: Mapping[str, Any]) -> None:
        self._fragments = fragments
        self._variables = variables

    def fields(self, selection: SelectionSetNode, type_name: str) -> list[tuple[str, str, list[FieldNode]]]:
        """(response key, field name, nodes) in order of appearance."""
        found: dict[str, list[FieldNode]] = {}
        for node in self._walk(selection.selections, type_name):
            found.setdefault((node.alias or node.name).value, []).append(node)
        return [(key, nodes[0].name.value, nodes) for key, nodes in found.items()]

    def _walk(self, selections: Sequence[SelectionNode], type_name: str) -> Iterator[FieldNode]:
        for node in selections:
            if not self._wanted(node.directives):
                continue
            if isinstance(node, FieldNode):
                yield node
            elif isinstance(node, InlineFragmentNode):
                condition = node.type_condition
                if condition is None or self._applies(condition.name.value, type_name):
                    yield from self._walk(node.selection_set.selections, type_name)
            elif isinstance(node, FragmentSpreadNode):
                fragment = self._fragments[node.name.value]
                if self._applies(fragment.type_condition.name.value, type_name):
                    yield from self._walk(fragment.selection_set.selections, type_name)

    @staticmethod
    def _applies(condition: str, type_name: str) -> bool:
        if condition == type_name:
            return True
        if condition not in _OBJECT_TYPES:
            raise QueryError({"message": f"Failed to resolve named type `{condition}`"})
        raise QueryError(
            {"message": f"invalid query: can not merge fields because type `{condition}` showed up unexpectedly"}
        )

    def _wanted(self, directives: Sequence[DirectiveNode]) -> bool:
        for directive in directives:
            value = next((a.value for a in directive.arguments if a.name.value == "if"), None)
            chosen = value is not None and literal(value, self._variables) is True
            if directive.name.value == "skip" and (chosen or value is None):
                return False
            if directive.name.value == "include" and not chosen:
                return False
        return True


def _prepare(text: str) -> _Prepared:
    try:
        document = parse(text)
    except GraphQLError as error:
        place = error.locations[0] if error.locations else None
        location = {"line": place.line if place else 1, "column": place.column if place else 1}
        raise QueryError({"locations": [location], "message": _parse_message(text, error)}) from None
    operations = [node for node in document.definitions if isinstance(node, OperationDefinitionNode)]
    fragments = {node.name.value: node for node in document.definitions if isinstance(node, FragmentDefinitionNode)}
    if len(operations) != 1:
        raise QueryError({"message": "Operation name required"})
    for name in _spread_names(document.definitions):
        if name not in fragments:
            raise ConnectionDroppedError(f"fragment {name} is not defined")
    for name in fragments:
        _refuse_cycle(name, fragments, ())
    return _Prepared(document, operations[0], fragments)


def _parse_message(text: str, error: GraphQLError) -> str:
    """The first line as graph-node's parser words it; what it expected instead is only told for the two plain cases."""
    stripped = text.lstrip()
    if not stripped:
        return "Unexpected end of input\nExpected {, query, mutation, subscription or fragment"
    if "<EOF>" in error.message:
        return "Unexpected end of input\nExpected }"
    if stripped and not (stripped[0].isalpha() or stripped[0] in "_{"):
        return (
            f"Unexpected unexpected character '{stripped[0]}'\nUnexpected end of input\n"
            "Expected {, query, mutation, subscription or fragment"
        )
    return error.message.removeprefix("Syntax Error: ")


def _spread_names(nodes: Sequence[Node]) -> Iterator[str]:
    """Names of the fragments that are spread anywhere below these nodes."""
    stack: list[Any] = list(nodes)
    while stack:
        node = stack.pop()
        if isinstance(node, FragmentSpreadNode):
            yield node.name.value
        selection = getattr(node, "selection_set", None)
        if selection is not None:
            stack.extend(selection.selections)


def _refuse_cycle(name: str, fragments: Mapping[str, FragmentDefinitionNode], above: tuple[str, ...]) -> None:
    if name in above:
        raise QueryError({"message": f"query has fragment cycle including `{name}`"})
    for inner in _spread_names([fragments[name]]):
        _refuse_cycle(inner, fragments, (*above, name))


def _introspection_document(prepared: _Prepared) -> DocumentNode:
    """The same operation with nothing but its ``__schema`` and ``__type`` fields."""
    reader = _Reader(prepared.fragments, {})
    nodes = [node for _k, _n, nodes in reader.fields(prepared.operation.selection_set, _ROOT) for node in nodes]
    kept = tuple(node for node in nodes if node.name.value in ("__schema", "__type"))
    operation = OperationDefinitionNode(
        operation=OperationType.QUERY,
        name=NameNode(value="Introspection"),
        variable_definitions=prepared.operation.variable_definitions,
        directives=(),
        selection_set=SelectionSetNode(selections=kept),
    )
    return DocumentNode(definitions=(operation, *prepared.fragments.values()))


def _inner_selection(nodes: list[FieldNode], reader: _Reader) -> tuple[tuple[str, str], ...] | None:
    selection = _merged(nodes)
    if not selection.selections:
        return None
    return tuple((key, name) for key, name, _nodes in reader.fields(selection, "_Block_"))


def _merged(nodes: list[FieldNode]) -> SelectionSetNode:
    selections = [item for node in nodes if node.selection_set for item in node.selection_set.selections]
    return SelectionSetNode(selections=tuple(selections))


def _measure(
    selection: SelectionSetNode | None, fragments: Mapping[str, FragmentDefinitionNode], depth: int
) -> tuple[int, int]:
    """(depth, complexity): a list counts its literal ``first``, or 100 where that is a variable or missing."""
    if selection is None:
        return depth, 0
    deepest, complexity = depth + 1, 0
    for node in selection.selections:
        if isinstance(node, FragmentSpreadNode):
            inner, cost = _measure(fragments[node.name.value].selection_set, fragments, depth)
        elif isinstance(node, InlineFragmentNode):
            inner, cost = _measure(node.selection_set, fragments, depth)
        elif isinstance(node, FieldNode) and node.selection_set is not None and not node.name.value.startswith("__"):
            inner, nested = _measure(node.selection_set, fragments, depth + 1)
            arity = 1
            if node.name.value == "conditions":
                first = next((a.value for a in node.arguments if a.name.value == "first"), None)
                arity = int(first.value) if isinstance(first, IntValueNode) else 100
            cost = arity * (1 + nested)
        else:
            continue
        deepest, complexity = max(deepest, inner), complexity + cost
    return deepest, complexity


def _block_constraint(value: Value) -> tuple[str, Any]:
    """hash before number before number_gte; what else stands beside them is ignored."""
    if value is None:
        return "latest", None
    for kind in ("hash", "number", "number_gte"):
        if kind in value:
            if value[kind] is None or (kind == "hash" and not _HASH.fullmatch(value[kind])):
                break
            return kind, value[kind]
    raise QueryError(located(f"Invalid value provided for argument `block`: {rust_debug(value)}", None))


def _block_groups(fields: Sequence[RootField]) -> list[list[RootField]]:
    groups: list[list[RootField]] = []
    for root in fields:
        if groups and groups[-1][0].block == root.block:
            groups[-1].append(root)
        else:
            groups.append([root])
    return groups


def _quoted(ids: list[bytes]) -> list[bytes]:
    return [orjson.dumps(identity.decode()) for identity in ids]


def with_rows(disguise: Disguise, hook: RowsHook) -> Disguise:
    """A disguise that also rewrites rows, after what it already does to them."""
    earlier = disguise.rows
    if earlier is None:
        return replace(disguise, rows=hook)

    def both(asked: Sequence[str], ids: list[str], objects: list[bytes]) -> list[bytes]:
        return hook(asked, ids, earlier(asked, ids, objects))

    return replace(disguise, rows=both)
