"""The API that graph-node generates for ``Condition``, in the forms that Polymarket's subgraphs have had."""

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
    "numerators": {"id": "ID!", "payoutNumerators": "[BigInt!]!", "payoutDenominator": "BigInt!"},
    # the older deployments
    "full": {
        "id": "ID!",
        "resolutionTimestamp": "BigInt",
        "payouts": "[BigDecimal!]",
        "payoutNumerators": "[BigInt!]",
        "payoutDenominator": "BigInt",
    },
    # activity-, oi- and fpmm-subgraph: nothing to fetch here
    "bare": {"id": "ID!"},
}

_SDL = """
scalar BigDecimal
scalar BigInt
scalar Bytes
enum OrderDirection {{ asc desc }}
input Block_height {{ hash: Bytes number: Int number_gte: Int }}
type _Block_ {{ hash: Bytes number: Int! timestamp: Int }}
type _Meta_ {{ block: _Block_! deployment: String! hasIndexingErrors: Boolean! }}
type Condition {{ {fields} }}
enum Condition_orderBy {{ id }}
input Condition_filter {{ {filters} }}
type Query {{
  condition(id: ID!, block: Block_height): Condition
  conditions(
    skip: Int = 0
    first: Int = 100
    orderBy: Condition_orderBy
    orderDirection: OrderDirection
    where: Condition_filter
    block: Block_height
  ): [Condition!]!
  _meta(block: Block_height): _Meta_
}}
"""


@cache
def api_schema(name: SchemaName) -> GraphQLSchema:
    """The schema of one kind of deployment, without resolvers."""
    from graphql import build_schema  # the command line knows the names without loading it

    filters: list[str] = []
    for field, kind in FIELDS[name].items():
        value = kind.rstrip("!")
        if kind.startswith("["):
            filters += [f"{field}{operator}: {value}" for operator in ("", "_not", "_contains", "_not_contains")]
        else:
            filters += [f"{field}{operator}: {value}" for operator in ("", "_not", "_gt", "_lt", "_gte", "_lte")]
            filters += [f"{field}{operator}: [{value}!]" for operator in ("_in", "_not_in")]
    fields = " ".join(f"{field}: {kind}" for field, kind in FIELDS[name].items())
    return build_schema(_SDL.format(fields=fields, filters=" ".join(filters)))
