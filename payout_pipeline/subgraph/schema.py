"""The API that graph-node generates for ``Condition``, as far as it is asked for, in two forms of the entity.

``payouts`` is that of positions-subgraph, ``numerators`` that of pnl-subgraph.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

from graphql import GraphQLSchema, build_schema

SchemaName = Literal["payouts", "numerators"]

_CONDITION: dict[SchemaName, str] = {
    "payouts": """
type Condition { id: ID! payouts: [BigDecimal!] }
input Condition_filter { id_in: [ID!] id_gt: ID id_lt: ID payouts_not: [BigDecimal!] }
""",
    "numerators": """
type Condition { id: ID! payoutNumerators: [BigInt!]! payoutDenominator: BigInt! }
input Condition_filter { id_in: [ID!] id_gt: ID id_lt: ID payoutDenominator_gt: BigInt }
""",
}

_API = """
scalar BigDecimal
scalar BigInt
scalar Bytes
enum OrderDirection { asc desc }
input Block_height { number: Int number_gte: Int }
type _Block_ { hash: Bytes number: Int! timestamp: Int }
type _Meta_ { block: _Block_! deployment: String! hasIndexingErrors: Boolean! }
enum Condition_orderBy { id }
type Query {
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
}
"""


@cache
def api_schema(name: SchemaName) -> GraphQLSchema:
    """The schema of one kind of deployment; a query's root value resolves its fields."""
    return build_schema(_CONDITION[name] + _API)
