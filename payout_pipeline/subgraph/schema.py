"""The API schema that graph-node generates for ``Condition``, in the forms that Polymarket's subgraphs have had."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from graphql import GraphQLSchema

SchemaName = Literal["payouts", "numerators", "full", "bare"]
SCHEMA_NAMES: tuple[SchemaName, ...] = get_args(SchemaName)

FIELDS: dict[SchemaName, dict[str, str]] = {
    # positions-subgraph
    "payouts": {"id": "ID!", "payouts": "[BigDecimal!]"},
    # pnl-subgraph
    "numerators": {
        "id": "ID!",
        "positionIds": "[BigInt!]!",
        "payoutNumerators": "[BigInt!]!",
        "payoutDenominator": "BigInt!",
    },
    # the older deployments
    "full": {
        "id": "ID!",
        "outcomeSlotCount": "Int!",
        "resolutionTimestamp": "BigInt",
        "resolutionHash": "Bytes",
        "payouts": "[BigDecimal!]",
        "payoutNumerators": "[BigInt!]",
        "payoutDenominator": "BigInt",
    },
    # activity-, oi- and fpmm-subgraph: nothing to fetch here
    "bare": {"id": "ID!"},
}

_LIST_OPERATORS = ("", "_not", "_contains", "_not_contains")
_SCALAR_OPERATORS = ("", "_not", "_gt", "_lt", "_gte", "_lte", "_in", "_not_in")

_SDL = """
scalar BigDecimal
scalar BigInt
scalar Bytes
enum OrderDirection {{ asc desc }}
enum _SubgraphErrorPolicy_ {{ allow deny }}
input Block_height {{ hash: Bytes number: Int number_gte: Int }}
type _Block_ {{ hash: Bytes number: Int! timestamp: Int parentHash: Bytes }}
type _Meta_ {{ block: _Block_! deployment: String! hasIndexingErrors: Boolean! }}
type Condition {{ {fields} }}
enum Condition_orderBy {{ {names} }}
input Condition_filter {{ {filters} and: [Condition_filter] or: [Condition_filter] }}
type Query {{
  condition(id: ID!, block: Block_height, subgraphError: _SubgraphErrorPolicy_! = deny): Condition
  conditions(
    skip: Int = 0
    first: Int = 100
    orderBy: Condition_orderBy
    orderDirection: OrderDirection
    where: Condition_filter
    block: Block_height
    subgraphError: _SubgraphErrorPolicy_! = deny
  ): [Condition!]!
  _meta(block: Block_height): _Meta_
}}
"""


@cache
def filters_of(name: SchemaName) -> dict[str, tuple[str, str]]:
    """Filter key → (field, operator)."""
    return {
        field + operator: (field, operator)
        for field, kind in FIELDS[name].items()
        for operator in (_LIST_OPERATORS if kind.startswith("[") else _SCALAR_OPERATORS)
    }


@cache
def api_schema(name: SchemaName) -> GraphQLSchema:
    """The schema of one kind of deployment, without resolvers."""
    from graphql import build_schema  # the command line knows the names without loading it

    fields = FIELDS[name]
    filters = [
        f"{key}: {'[%s!]' if operator in ('_in', '_not_in') else '%s'}" % fields[field].rstrip("!")
        for key, (field, operator) in filters_of(name).items()
    ]
    return build_schema(
        _SDL.format(
            fields=" ".join(f"{field}: {kind}" for field, kind in fields.items()),
            names=" ".join(fields),
            filters=" ".join(filters),
        )
    )
