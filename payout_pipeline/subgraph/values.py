"""GraphQL values as graph-node reads them: variables, coercion and the Rust texts in which it names a wrong one.

Follows graph-node's ``graphql/src/values/coercion.rs`` and ``graphql/src/execution/query.rs`` with GraphQL validations
off (its default): strings are taken for enum values, integers for ids, and what is not declared is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from graphql import (
    BooleanValueNode,
    EnumValueNode,
    FloatValueNode,
    GraphQLEnumType,
    GraphQLInputObjectType,
    GraphQLInputType,
    GraphQLList,
    GraphQLNonNull,
    GraphQLScalarType,
    GraphQLSchema,
    IntValueNode,
    ListTypeNode,
    ListValueNode,
    NamedTypeNode,
    Node,
    NonNullTypeNode,
    NullValueNode,
    ObjectValueNode,
    OperationDefinitionNode,
    StringValueNode,
    TypeNode,
    ValueNode,
    VariableNode,
    specified_scalar_types,
)

Value: TypeAlias = Any
"""A JSON or GraphQL value: whatever came over the wire."""


class Enum(str):
    """An enum literal, which is not the string of the same letters."""

    __slots__ = ()


class QueryError(Exception):
    """Errors that graph-node reports with HTTP 200: a list of ``{"message": …}``, some with ``locations``."""

    def __init__(self, *errors: dict[str, Any]) -> None:
        super().__init__("; ".join(str(error["message"]) for error in errors))
        self.errors = list(errors)


class NotCoercibleError(Exception):
    """A value does not fit its type. ``value``: what graph-node then shows, the item of a list but the whole object."""

    def __init__(self, value: Value) -> None:
        super().__init__()
        self.value = value


def located(message: str, node: Node | None) -> dict[str, Any]:
    """An error with the place of an AST node, or with graph-node's 0,0 where it has no place."""
    place = {"line": 0, "column": 0}
    if node is not None and node.loc is not None:
        token = node.loc.start_token
        place = {"line": token.line, "column": token.column}
    return {"locations": [place], "message": message}


def rust_debug(value: Value) -> str:
    """A value in the form of Rust's ``{:?}`` of a graphql-parser value; objects in the order of their keys."""
    if value is None:
        return "Null"
    if isinstance(value, bool):
        return f"Boolean({str(value).lower()})"
    if isinstance(value, int):
        return f"Int(Number({(value + 2**31) % 2**32 - 2**31}))"  # wrapped to 32 bits, as graph-node shows it
    if isinstance(value, float):
        return f"Float({value!r})"
    if isinstance(value, str):
        return f"{'Enum' if isinstance(value, Enum) else 'String'}({_rust_string(value)})"
    if isinstance(value, list):
        return f"List([{', '.join(map(rust_debug, value))}])"
    pairs = (f"{_rust_string(key)}: {rust_debug(value[key])}" for key in sorted(value))
    return f"Object({{{', '.join(pairs)}}})"


_RUST_ESCAPES = {
    **{code: f"\\u{{{code:x}}}" for code in (*range(32), 127)},
    **str.maketrans({"\0": "\\0", "\t": "\\t", "\n": "\\n", "\r": "\\r", '"': '\\"', "\\": "\\\\"}),
}


def _rust_string(text: str) -> str:
    return f'"{text.translate(_RUST_ESCAPES)}"'


def literal(node: ValueNode, variables: Mapping[str, Any]) -> Value:
    """The value of an AST node; a variable without a value is null."""
    if isinstance(node, VariableNode):
        return variables.get(node.name.value)
    if isinstance(node, StringValueNode):
        return node.value
    if isinstance(node, IntValueNode):
        return int(node.value)
    if isinstance(node, FloatValueNode):
        return float(node.value)
    if isinstance(node, BooleanValueNode):
        return node.value
    if isinstance(node, EnumValueNode):
        return Enum(node.value)
    if isinstance(node, ListValueNode):
        return [literal(item, variables) for item in node.values]
    if isinstance(node, ObjectValueNode):
        return {field.name.value: literal(field.value, variables) for field in node.fields}
    if not isinstance(node, NullValueNode):
        raise TypeError(f"not a value node: {node.kind}")
    return None


def coerce(value: Value, wanted: GraphQLInputType) -> Value:
    """A value as the type wants it. Raises :class:`NotCoercibleError`."""
    if isinstance(wanted, GraphQLNonNull):
        if value is None:
            raise NotCoercibleError(value)
        return coerce(value, wanted.of_type)
    if value is None:
        return None
    if isinstance(wanted, GraphQLList):
        if not isinstance(value, list):
            raise NotCoercibleError(value)
        inner = wanted.of_type
        leaf = inner.of_type if isinstance(inner, GraphQLNonNull) else inner
        if isinstance(leaf, GraphQLScalarType) and leaf.name in _TEXT_SCALARS and all(type(v) is str for v in value):
            return value
        return [coerce(item, inner) for item in value]
    if isinstance(wanted, GraphQLEnumType):
        if isinstance(value, str) and value in wanted.values:
            return Enum(value)
        raise NotCoercibleError(value)
    if isinstance(wanted, GraphQLInputObjectType):
        if not isinstance(value, dict) or not value.keys() <= wanted.fields.keys():
            raise NotCoercibleError(value)
        try:
            return {key: coerce(item, wanted.fields[key].type) for key, item in value.items()}
        except NotCoercibleError:
            raise NotCoercibleError(value) from None
    if not isinstance(wanted, GraphQLScalarType):
        raise NotCoercibleError(value)
    return _coerce_scalar(value, wanted)


_TEXT_SCALARS = frozenset({"ID", "String", "Bytes", "BigInt", "BigDecimal"})
_INTEGERS_AS_TEXT = frozenset({"ID", "BigInt", "BigDecimal", "Int8", "Timestamp"})


def _coerce_scalar(value: Value, wanted: GraphQLScalarType) -> Value:
    name = wanted.name
    if isinstance(value, bool):
        if name == "Boolean":
            return value
        raise NotCoercibleError(value)
    if isinstance(value, int):
        if name == "Int" and -(2**31) <= value < 2**31:
            return value
        if name in _INTEGERS_AS_TEXT and -(2**63) <= value < 2**63:
            return str(value)
        raise NotCoercibleError(value)
    if isinstance(value, float):
        if name == "BigDecimal":
            return repr(value)
        raise NotCoercibleError(value)
    if isinstance(value, str) and not isinstance(value, Enum) and name in {*_TEXT_SCALARS, "Int8", "Timestamp"}:
        return value
    raise NotCoercibleError(value)


def coerce_argument(name: str, value: Value, wanted: GraphQLInputType, node: Node | None) -> Value:
    """A value for an argument or a variable. Raises :class:`QueryError` with graph-node's text."""
    try:
        return coerce(value, wanted)
    except NotCoercibleError as error:
        text = f"Invalid value provided for argument `{name}`: {rust_debug(error.value)}"
        raise QueryError(located(text, node)) from None


def coerce_variables(
    schema: GraphQLSchema, operation: OperationDefinitionNode, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Values of the declared variables that have one. Raises :class:`QueryError`."""
    values: dict[str, Any] = {}
    errors: list[dict[str, Any]] = []
    for definition in operation.variable_definitions:
        name = definition.variable.name.value
        wanted = _type_of(definition.type, schema)
        if wanted is None:
            errors.append(located(f"Variable `{name}` must have an input type", definition))
            continue
        if name in given:
            value = given[name]
        elif definition.default_value is not None:
            value = literal(definition.default_value, {})
        else:
            if isinstance(wanted, GraphQLNonNull):
                errors.append(located(f"No value provided for required variable `{name}`", definition))
            continue
        values[name] = coerce_argument(name, value, wanted, definition)
    if errors:
        raise QueryError(*errors)
    return values


def _type_of(node: TypeNode, schema: GraphQLSchema) -> GraphQLInputType | None:
    if isinstance(node, NonNullTypeNode):
        inner = _type_of(node.type, schema)
        return None if inner is None else GraphQLNonNull(inner)
    if isinstance(node, ListTypeNode):
        inner = _type_of(node.type, schema)
        return None if inner is None else GraphQLList(inner)
    if not isinstance(node, NamedTypeNode):
        raise TypeError(f"not a type node: {node.kind}")
    name = node.name.value
    found = schema.get_type(name) or specified_scalar_types.get(name)
    return found if isinstance(found, _NAMED_INPUTS) else None


_NAMED_INPUTS = (GraphQLScalarType, GraphQLEnumType, GraphQLInputObjectType)
