"""The API schema that graph-node generates for ``Condition``, in the forms that Polymarket's subgraphs have had.

The generation rules (root fields, filters by type, ``Block_height``, ``_Meta_``) are those of graph-node's
``graph/src/schema/api.rs`` and ``graph/src/schema/meta.graphql``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from graphql import GraphQLSchema

SchemaName = Literal["payouts", "numerators", "full", "bare"]
SCHEMA_NAMES: tuple[SchemaName, ...] = get_args(SchemaName)

ENTITY = "Condition"

_FIELDS: dict[SchemaName, dict[str, str]] = {
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
_ID_OPERATORS = ("", "_not", "_gt", "_lt", "_gte", "_lte", "_in", "_not_in")
_BYTES_OPERATORS = (*_ID_OPERATORS, "_contains", "_not_contains")

_FIXED = '''
"""Marks the GraphQL type as indexable entity."""
directive @entity on OBJECT
directive @subgraphId(id: String!) on OBJECT
directive @derivedFrom(field: String!) on FIELD_DEFINITION

scalar BigDecimal
scalar BigInt
scalar Bytes
scalar Int8
scalar Timestamp

enum OrderDirection { asc desc }

enum _SubgraphErrorPolicy_ {
  """Data will be returned even if the subgraph has indexing errors"""
  allow
  """If the subgraph has indexing errors, data will be omitted. The default."""
  deny
}

input BlockChangedFilter { number_gte: Int! }

input Block_height { hash: Bytes number: Int number_gte: Int }

type _Block_ {
  """The hash of the block"""
  hash: Bytes
  """The block number"""
  number: Int!
  """Integer representation of the timestamp stored in blocks for the chain"""
  timestamp: Int
  """The hash of the parent block"""
  parentHash: Bytes
}

"""The type for the top-level _meta field"""
type _Meta_ {
  block: _Block_!
  """The deployment ID"""
  deployment: String!
  """If `true`, the subgraph encountered indexing errors at some past block"""
  hasIndexingErrors: Boolean!
}
'''


@dataclass(frozen=True, slots=True)
class ApiSchema:
    """``fields``: GraphQL type of each field of ``Condition``; ``filters``: filter key → (field, operator)."""

    name: SchemaName
    fields: dict[str, str]
    filters: dict[str, tuple[str, str]]
    graphql: GraphQLSchema


@cache
def api_schema(name: SchemaName) -> ApiSchema:
    """The schema of one kind of deployment."""
    from graphql import build_schema  # the command line knows the names without loading it

    fields = _FIELDS[name]
    filters: dict[str, tuple[str, str]] = {}
    lines: list[str] = []
    for field, field_type in fields.items():
        base = field_type.rstrip("!")
        for operator in _operators(base):
            filters[field + operator] = (field, operator)
            listed = operator in ("_in", "_not_in")
            lines.append(f"  {field}{operator}: {f'[{base}!]' if listed else base}")
    columns = "\n".join(f"  {field}: {field_type}" for field, field_type in fields.items())
    filter_lines = "\n".join(lines)
    sdl = f"""{_FIXED}
type {ENTITY} {{
{columns}
}}

enum {ENTITY}_orderBy {{ {" ".join(fields)} }}

input {ENTITY}_filter {{
{filter_lines}
  \"\"\"Filter for the block changed event.\"\"\"
  _change_block: BlockChangedFilter
  and: [{ENTITY}_filter]
  or: [{ENTITY}_filter]
}}

type Query {{
  condition(
    id: ID!
    block: Block_height
    subgraphError: _SubgraphErrorPolicy_! = deny
  ): {ENTITY}
  conditions(
    skip: Int = 0
    first: Int = 100
    orderBy: {ENTITY}_orderBy
    orderDirection: OrderDirection
    where: {ENTITY}_filter
    block: Block_height
    subgraphError: _SubgraphErrorPolicy_! = deny
  ): [{ENTITY}!]!
  \"\"\"Access to subgraph metadata\"\"\"
  _meta(block: Block_height): _Meta_
}}
"""
    return ApiSchema(name, fields, filters, build_schema(sdl))


def _operators(base: str) -> tuple[str, ...]:
    if base.startswith("["):
        return _LIST_OPERATORS
    return _BYTES_OPERATORS if base == "Bytes" else _ID_OPERATORS
