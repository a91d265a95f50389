"""What graph-node answers for ``Condition``: data, queries and expected answers that hold for any endpoint that has it.

The data: conditions 0 to 1199 by number, created in block 1 and (most of them) resolved in block 2, number 5 deleted in
block 4; a few ids that sort after all of them; head 12. ``ROWS`` is what a store is made of, ``CASES`` are queries over
GraphQL and ``HTTP_CASES`` requests below it. Every case runs unchanged against the local subgraph and against a real
graph-node.
"""

# ruff: noqa: UP031 - GraphQL is full of braces, which every other way of formatting wants doubled.
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from payout_pipeline.subgraph.chain import NEVER, Chain
from payout_pipeline.subgraph.store import ConditionRow

HEAD = 12
GENESIS = 1_600_000_000
DEPLOYMENT_MARK = "<deployment>"


def chain() -> Chain:
    """The chain of the conformance data: 12 blocks, one every two seconds."""
    return Chain(head_number=HEAD, genesis=GENESIS)


def cid(number: int) -> str:
    """The condition id of a number."""
    return f"0x{number:064x}"


def _payouts(number: int) -> tuple[str, ...] | None:
    return {
        0: ("1", "0"),
        1: ("0.5", "0.5"),
        2: (),
        3: ("0.3333333333333333333333333333333333", "0.6666666666666666666666666666666667"),
    }.get(number % 10)


ROWS = [
    *(ConditionRow(cid(n), _payouts(n), deleted_block=4 if n == 5 else NEVER) for n in range(1200)),
    *(ConditionRow(name) for name in ("~A", "~B", "~_", "~a")),
    ConditionRow("~d", ("10e-2", "132400e4", "0e3")),
    ConditionRow("~head", created_block=HEAD),
]
LIVE = sorted((row for row in ROWS if row.deleted_block > HEAD), key=lambda row: row.id.encode())
IDS = [row.id for row in LIVE]
THOUSAND = [cid(n) for n in range(1000)]


@dataclass(frozen=True)
class Case:
    """``expected``: the whole JSON body; ``row``: the number in the list of facts that it stands for."""

    row: int
    name: str
    query: str
    expected: dict[str, Any]
    variables: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.row}-{self.name}"


def data(**fields: Any) -> dict[str, Any]:
    return {"data": fields}


def ids(*wanted: str) -> list[dict[str, str]]:
    return [{"id": identity} for identity in wanted]


def error(message: str, *, line: int | None = None, column: int = 0) -> dict[str, Any]:
    """One error and no data."""
    return {"errors": [_error(message, line, column)]}


def _error(message: str, line: int | None = None, column: int = 0) -> dict[str, Any]:
    located = {} if line is None else {"locations": [{"line": line, "column": column}]}
    return {**located, "message": message}


def _range(argument: str, most: int, actual: int) -> dict[str, Any]:
    return error(f"The `{argument}` argument must be between 0 and {most}, but is {actual}")


def _not_yet(kind: str, number: int, head: int = HEAD) -> str:
    return (
        f"Failed to decode `block.{kind}` value: `subgraph {DEPLOYMENT_MARK} has only indexed up to block number {head} "
        f"and data for block number {number} is therefore not yet available`"
    )


def _block(number: int) -> dict[str, Any]:
    return {
        "hash": Chain.block_hash(number),
        "number": number,
        "timestamp": GENESIS + 2 * number,
        "parentHash": Chain.block_hash(number - 1),
    }


_META = "deployment hasIndexingErrors block{number hash timestamp parentHash}"
_MIXED = (
    "Cannot mix column filters with 'or' operator at the same level. Found column filter(s) {0} alongside 'or' operator."
    "\n\nInstead of:\nwhere: {{ {0}, or: [...] }}\n\nUse:\nwhere: {{ or: [{{ {0}, ... }}, {{ {0}, ... }}] }}"
)
_KNOWN_HASH = Chain.block_hash(2)
_UNKNOWN_HASH = "0x" + "ab" * 32
_OR = '{or:[{id:"%s"},{id:"%s"}]}' % (cid(1), cid(2))

CASES: list[Case] = [
    Case(1, "a page without first has 100 rows in order", "{conditions{id}}", data(conditions=ids(*IDS[:100]))),
    Case(2, "first 1000", "{conditions(first:1000){id}}", data(conditions=ids(*IDS[:1000]))),
    Case(2, "first null is 100", "{conditions(first:null){id}}", data(conditions=ids(*IDS[:100]))),
    Case(2, "skip null is 0", "{conditions(first:1,skip:null){id}}", data(conditions=ids(IDS[0]))),
    Case(3, "first 1001", "{conditions(first:1001){id}}", _range("first", 1000, 1001)),
    Case(3, "first 0", "{conditions(first:0){id}}", _range("first", 1000, 0)),
    Case(3, "first -1", "{conditions(first:-1){id}}", _range("first", 1000, -1)),
    Case(5, "skip leaves the rest", "{conditions(first:1000,skip:1150){id}}", data(conditions=ids(*IDS[1150:]))),
    Case(5, "skip beyond the end", "{conditions(skip:5000){id}}", data(conditions=[])),
    Case(
        6,
        "a thousand ids without first give 100 rows and no hint",
        "query($ids:[ID!]!){conditions(where:{id_in:$ids}){id}}",
        data(conditions=ids(*[i for i in THOUSAND if i != cid(5)][:100])),
        {"ids": THOUSAND},
    ),
    Case(
        6,
        "a thousand ids with first",
        "query($ids:[ID!]!){conditions(first:1000,where:{id_in:$ids}){id}}",
        data(conditions=ids(*[i for i in THOUSAND if i != cid(5)])),
        {"ids": THOUSAND},
    ),
    Case(
        7,
        "ids in any order and twice",
        "query($ids:[ID!]!){conditions(first:1000,where:{id_in:$ids}){id payouts}}",
        data(
            conditions=[
                {"id": cid(1), "payouts": ["0.5", "0.5"]},
                {
                    "id": cid(3),
                    "payouts": ["0.3333333333333333333333333333333333", "0.6666666666666666666666666666666667"],
                },
                {"id": cid(9), "payouts": None},
            ]
        ),
        {"ids": [cid(9), cid(3), cid(3), cid(9), "0x" + "f" * 64, cid(1)]},
    ),
    Case(
        7,
        "ids as strings",
        "query($i:[String!]!){conditions(where:{id_in:$i}){id}}",
        data(conditions=ids(cid(1))),
        {"i": [cid(1)]},
    ),
    Case(
        7,
        "ids as bytes",
        "query($i:[Bytes!]!){conditions(where:{id_in:$i}){id}}",
        data(conditions=ids(cid(1))),
        {"i": [cid(1)]},
    ),
    Case(8, "no ids", "{conditions(where:{id_in:[]}){id}}", data(conditions=[])),
    Case(8, "not in nothing is nothing too", "{conditions(where:{id_not_in:[]}){id}}", data(conditions=[])),
    Case(
        8, "not in", '{conditions(first:2,where:{id_not_in:["%s"]}){id}}' % cid(0), data(conditions=ids(cid(1), cid(2)))
    ),
    Case(8, "ids null", "{conditions(where:{id_in:null}){id}}", error("Non-list value passed to `_in` filter")),
    Case(8, "ids undeclared", "{conditions(where:{id_in:$ids}){id}}", error("Non-list value passed to `_in` filter")),
    Case(
        8,
        "one id instead of a list",
        '{conditions(where:{id_in:"x"}){id}}',
        error('Invalid value provided for argument `where`: Object({"id_in": String("x")})', line=0),
    ),
    Case(
        8,
        "one id instead of a list, in a variable",
        "query($ids:[ID!]){conditions(where:{id_in:$ids}){id}}",
        error('Invalid value provided for argument `ids`: String("x")', line=1, column=7),
        {"ids": "x"},
    ),
    Case(9, "greater", '{conditions(first:2,where:{id_gt:"%s"}){id}}' % cid(7), data(conditions=ids(cid(8), cid(9)))),
    Case(9, "greater or equal", '{conditions(first:1,where:{id_gte:"%s"}){id}}' % cid(7), data(conditions=ids(cid(7)))),
    Case(9, "less", '{conditions(where:{id_lt:"%s"}){id}}' % cid(2), data(conditions=ids(cid(0), cid(1)))),
    Case(9, "less or equal", '{conditions(where:{id_lte:"%s"}){id}}' % cid(1), data(conditions=ids(cid(0), cid(1)))),
    Case(9, "other than", '{conditions(first:1,where:{id_not:"%s"}){id}}' % cid(0), data(conditions=ids(cid(1)))),
    Case(
        9, "greater than a longer text", '{conditions(where:{id_gte:"~aa"}){id}}', data(conditions=ids("~d", "~head"))
    ),
    Case(
        10,
        "key sets, second page",
        '{conditions(first:500,where:{id_gt:"%s"}){id}}' % IDS[499],
        data(conditions=ids(*IDS[500:1000])),
    ),
    Case(
        10,
        "key sets, last page",
        '{conditions(first:500,where:{id_gt:"%s"}){id}}' % IDS[999],
        data(conditions=ids(*IDS[1000:])),
    ),
    Case(
        11,
        "one condition",
        '{condition(id:"%s"){id payouts}}' % cid(0),
        data(condition={"id": cid(0), "payouts": ["1", "0"]}),
    ),
    Case(11, "an unknown condition", '{condition(id:"0xff"){id}}', data(condition=None)),
    Case(11, "a deleted condition", '{condition(id:"%s"){id}}' % cid(5), data(condition=None)),
    Case(
        11,
        "a deleted condition before its end",
        '{condition(id:"%s",block:{number:3}){id}}' % cid(5),
        data(condition={"id": cid(5)}),
    ),
    Case(11, "no id", "{condition{id}}", error("No value provided for required argument: `id`", line=0)),
    Case(
        12,
        "upper case is another id",
        '{condition(id:"%s"){id}}' % cid(1194).upper().replace("X", "x"),
        data(condition=None),
    ),
    Case(
        13,
        "null, empty and resolved",
        '{conditions(where:{id_in:["%s","%s","%s"]}){payouts}}' % (cid(10), cid(12), cid(14)),
        data(conditions=[{"payouts": ["1", "0"]}, {"payouts": []}, {"payouts": None}]),
    ),
    Case(
        13,
        "resolved only",
        "{conditions(first:4,where:{payouts_not:null}){id}}",
        data(conditions=ids(cid(0), cid(1), cid(2), cid(3))),
    ),
    Case(13, "unresolved only", "{conditions(first:2,where:{payouts:null}){id}}", data(conditions=ids(cid(4), cid(6)))),
    Case(14, "decimals", '{condition(id:"~d"){payouts}}', data(condition={"payouts": ["0.1", "1324000000", "0"]})),
    Case(
        15,
        "equality by value and position",
        '{conditions(first:2,where:{payouts:["1.0","0.00"]}){id}}',
        data(conditions=ids(cid(0), cid(10))),
    ),
    Case(15, "another order is not equal", '{conditions(first:2,where:{payouts:["0","1"]}){id}}', data(conditions=[])),
    Case(
        15,
        "contains one",
        '{conditions(first:2,where:{payouts_contains:["1"]}){id}}',
        data(conditions=ids(cid(0), cid(10))),
    ),
    Case(
        15,
        "contains both, reversed",
        '{conditions(first:2,where:{payouts_contains:["0","1"]}){id}}',
        data(conditions=ids(cid(0), cid(10))),
    ),
    Case(
        15, "contains one that is missing", '{conditions(where:{payouts_contains:["1","7"]}){id}}', data(conditions=[])
    ),
    Case(
        15,
        "contains nothing matches what is not null",
        "{conditions(first:4,where:{payouts_contains:[]}){id}}",
        data(conditions=ids(cid(0), cid(1), cid(2), cid(3))),
    ),
    Case(
        16,
        "contains not: no overlap, nulls excluded",
        '{conditions(first:3,where:{payouts_not_contains:["1"]}){id}}',
        data(conditions=ids(cid(1), cid(2), cid(3))),
    ),
    Case(17, "or is a union", "{conditions(where:%s){id}}" % _OR, data(conditions=ids(cid(1), cid(2)))),
    Case(
        17,
        "inside or it is and",
        '{conditions(where:{or:[{id:"%s",payouts:null}]}){id}}' % cid(1),
        data(conditions=[]),
    ),
    Case(
        17,
        "and is an intersection",
        '{conditions(first:2,where:{and:[{id_gt:"%s"},{payouts_not:null}]}){id}}' % cid(3),
        data(conditions=ids(cid(10), cid(11))),
    ),
    Case(
        17,
        "and with or inside",
        '{conditions(where:{and:[{id_gt:"%s"},%s]}){id}}' % (cid(1), _OR),
        data(conditions=ids(cid(2))),
    ),
    Case(17, "and of nothing is true", "{conditions(first:1,where:{and:[]}){id}}", data(conditions=ids(cid(0)))),
    Case(17, "or of nothing is false", "{conditions(first:1,where:{or:[]}){id}}", data(conditions=[])),
    Case(
        17,
        "and beside or are pooled",
        '{conditions(where:{and:[{id:"%s"}],or:[{id:"%s"},{id:"%s"}]}){id}}' % (cid(1), cid(1), cid(2)),
        data(conditions=[]),
    ),
    Case(
        18,
        "a column beside or",
        '{conditions(where:{id:"x",or:[{id:"y"}]}){id}}',
        error(_MIXED.format("'id'")),
    ),
    Case(
        18,
        "two columns beside or",
        '{conditions(where:{payouts:null,id:"x",or:[{id:"y"}]}){id}}',
        error(_MIXED.format("'id', 'payouts'")),
    ),
    Case(
        18, "a column beside and", '{conditions(where:{id:"x",and:[{id:"y"}]}){id}}', error("Filter must by an object")
    ),
    Case(
        18,
        "a changed block beside or",
        '{conditions(where:{_change_block:{number_gte:1},or:[{id:"y"}]}){id}}',
        error("Filter must by an object"),
    ),
    Case(
        19,
        "changed since 0",
        "{conditions(first:1000,skip:1000,where:{_change_block:{number_gte:0}}){id}}",
        data(conditions=ids(*IDS[1000:])),
    ),
    Case(
        19,
        "changed since 2",
        "{conditions(first:3,where:{_change_block:{number_gte:2}}){id}}",
        data(conditions=ids(cid(0), cid(1), cid(2))),
    ),
    Case(
        19, "changed since 12", "{conditions(where:{_change_block:{number_gte:12}}){id}}", data(conditions=ids("~head"))
    ),
    Case(
        19,
        "changed since later",
        "{conditions(where:{_change_block:{number_gte:2147483647}}){id}}",
        data(conditions=[]),
    ),
    Case(
        19,
        "changed as seen at a block",
        '{conditions(first:1,block:{number:1},where:{_change_block:{number_gte:1},id_in:["%s"]}){id}}' % cid(3),
        data(conditions=ids(cid(3))),
    ),
    Case(19, "changed since nothing", "{conditions(where:{_change_block:{}}){id}}", error("Filter must by an object")),
    Case(20, "a block beyond the head", "{conditions(block:{number:7000}){id}}", error(_not_yet("number", 7000))),
    Case(
        20,
        "a block beyond the head, in a variable",
        "query($n:Int!){conditions(block:{number:$n}){id}}",
        error(_not_yet("number", 7000)),
        {"n": 7000},
    ),
    Case(
        20,
        "a block in a variable",
        "query($b:Block_height){conditions(first:1,block:$b){id}}",
        data(conditions=ids(cid(0))),
        {"b": {"number": 2}},
    ),
    Case(21, "before anything", "{conditions(first:1,block:{number:0}){id}}", data(conditions=[])),
    Case(
        21,
        "before it was resolved",
        "{conditions(first:1,block:{number:1}){id payouts}}",
        data(conditions=[{"id": cid(0), "payouts": None}]),
    ),
    Case(
        21,
        "after it was resolved",
        "{conditions(first:1,block:{number:2}){id payouts}}",
        data(conditions=[{"id": cid(0), "payouts": ["1", "0"]}]),
    ),
    Case(
        22,
        "a known hash",
        '{conditions(first:1,block:{hash:"%s"}){id payouts}}' % _KNOWN_HASH,
        data(conditions=[{"id": cid(0), "payouts": ["1", "0"]}]),
    ),
    Case(
        22,
        "a known hash without 0x",
        '{conditions(first:1,block:{hash:"%s"}){id}}' % _KNOWN_HASH[2:],
        data(conditions=ids(cid(0))),
    ),
    Case(
        22,
        "an unknown hash",
        '{conditions(block:{hash:"%s"}){id}}' % _UNKNOWN_HASH,
        error("Failed to decode `block.hash` value: `no block with that hash found`"),
    ),
    Case(
        22,
        "hash before number",
        '{conditions(first:1,block:{hash:"%s",number:1,number_gte:99}){payouts}}' % _KNOWN_HASH,
        data(conditions=[{"payouts": ["1", "0"]}]),
    ),
    Case(
        22,
        "no number",
        "{conditions(block:{number:null}){id}}",
        error('Invalid value provided for argument `block`: Object({"number": Null})', line=0),
    ),
    Case(
        22,
        "an empty block",
        "{conditions(block:{}){id}}",
        error("Invalid value provided for argument `block`: Object({})", line=0),
    ),
    Case(
        23,
        "at least 0",
        "{conditions(first:1,block:{number_gte:0}){payouts}}",
        data(conditions=[{"payouts": ["1", "0"]}]),
    ),
    Case(
        23,
        "at least 1",
        "{conditions(first:1,block:{number_gte:1}){payouts}}",
        data(conditions=[{"payouts": ["1", "0"]}]),
    ),
    Case(23, "at least 7000", "{conditions(block:{number_gte:7000}){id}}", error(_not_yet("number_gte", 7000))),
    Case(
        24,
        "a negative block",
        "{conditions(block:{number:-1}){id}}",
        error(
            f"Failed to decode `block.number` value: `subgraph {DEPLOYMENT_MARK} only has data starting at block number 0 "
            "and data for block number -1 is therefore not available`"
        ),
    ),
    Case(
        25,
        "meta of the head",
        "{_meta{%s}}" % _META,
        data(_meta={"deployment": DEPLOYMENT_MARK, "hasIndexingErrors": False, "block": _block(HEAD)}),
    ),
    Case(
        25,
        "meta by number has no hash",
        "{_meta(block:{number:3}){%s}}" % _META,
        data(
            _meta={
                "deployment": DEPLOYMENT_MARK,
                "hasIndexingErrors": False,
                "block": {"number": 3, "hash": None, "timestamp": None, "parentHash": None},
            }
        ),
    ),
    Case(
        25,
        "meta by hash",
        '{_meta(block:{hash:"%s"}){%s}}' % (_KNOWN_HASH, _META),
        data(_meta={"deployment": DEPLOYMENT_MARK, "hasIndexingErrors": False, "block": _block(2)}),
    ),
    Case(
        25,
        "meta at least",
        "{_meta(block:{number_gte:3}){%s}}" % _META,
        data(_meta={"deployment": DEPLOYMENT_MARK, "hasIndexingErrors": False, "block": _block(HEAD)}),
    ),
    Case(25, "meta with another name", "{m:_meta{block{n:number}}}", data(m={"block": {"n": HEAD}})),
    Case(
        28,
        "three blocks in one query",
        "{a:conditions(first:1,block:{number:0}){id} b:conditions(first:1,block:{number:1}){payouts} "
        "c:conditions(first:1,block:{number:2}){payouts}}",
        data(a=[], b=[{"payouts": None}], c=[{"payouts": ["1", "0"]}]),
    ),
    Case(
        29,
        "a good block and one that is not there",
        "{a:conditions(first:1){id} b:conditions(first:1,block:{number:99}){id}}",
        error(_not_yet("number", 99)),
    ),
    Case(
        29,
        "two blocks that are not there",
        "{a:conditions(first:1,block:{number:98}){id} b:conditions(first:1,block:{number:99}){id}}",
        error(_not_yet("number", 98)),
    ),
    Case(
        29,
        "a good block and one whose field fails",
        "{a:conditions(first:1){id} b:conditions(first:0,block:{number:5}){id}}",
        {**data(a=ids(cid(0))), **_range("first", 1000, 0)},
    ),
    Case(
        29,
        "within one block it is all or nothing",
        "{a:conditions(first:1){id} b:conditions(first:0){id}}",
        _range("first", 1000, 0),
    ),
    Case(30, "unknown arguments", "{conditions(limit:5,blok:{number:1},first:1){id}}", data(conditions=ids(cid(0)))),
    Case(31, "first undeclared", "{conditions(first:$first){id}}", data(conditions=ids(*IDS[:100])), {"first": 5}),
    Case(31, "where undeclared", "{conditions(first:1,where:$where){id}}", data(conditions=ids(cid(0)))),
    Case(31, "where null", "{conditions(first:1,where:null){id}}", data(conditions=ids(cid(0)))),
    Case(
        31,
        "where nullable and absent",
        "query($w:Condition_filter){conditions(first:1,where:$w){id}}",
        data(conditions=ids(cid(0))),
    ),
    Case(
        31,
        "a required variable is missing",
        "query($ids:[ID!]!){conditions(where:{id_in:$ids}){id}}",
        error("No value provided for required variable `ids`", line=1, column=7),
    ),
    Case(32, "a variable's default", "query($f:Int=3){conditions(first:$f){id}}", data(conditions=ids(*IDS[:3]))),
    Case(
        32,
        "an explicit null",
        "query($f:Int=3){conditions(first:$f){id}}",
        data(conditions=ids(*IDS[:100])),
        {"f": None},
    ),
    Case(
        33,
        "skip and include",
        "query($y:Boolean!,$n:Boolean!){conditions(first:1){id @include(if:$y) payouts @skip(if:$y) x:id @include(if:$n)}}",
        data(conditions=ids(cid(0))),
        {"y": True, "n": False},
    ),
    Case(
        33,
        "fragments",
        "query{...F} fragment F on Query{conditions(first:1){...C ... on Condition{payouts} ...{again:id}}} "
        "fragment C on Condition{id}",
        data(conditions=[{"id": cid(0), "payouts": ["1", "0"], "again": cid(0)}]),
    ),
    Case(
        37,
        "no GraphQL",
        "<L<G<>M>",
        error(
            "Unexpected unexpected character '<'\nUnexpected end of input\n"
            "Expected {, query, mutation, subscription or fragment",
            line=1,
            column=1,
        ),
    ),
    Case(
        37, "an open brace", "{conditions(first:1){id}", error("Unexpected end of input\nExpected }", line=1, column=25)
    ),
    Case(37, "an object without fields", "{conditions(first:1)}", {}),
    Case(37, "a mutation", "mutation{x}", error("Not supported: Mutations are not supported")),
    Case(37, "two operations", "query A{conditions{id}} query B{conditions{id}}", error("Operation name required")),
    Case(
        40,
        "keys in the order of the query, meta last",
        "{_meta{hasIndexingErrors} z:conditions(first:1){b:payouts a:id} __typename}",
        data(z=[{"b": ["1", "0"], "a": cid(0)}], _meta={"hasIndexingErrors": False}, __typename="Query"),
    ),
    Case(
        40,
        "the type's name",
        "{conditions(first:1){__typename id}}",
        data(conditions=[{"__typename": "Condition", "id": cid(0)}]),
    ),
    Case(
        40,
        "equal keys are merged",
        "{conditions(first:1){id} conditions(first:9){payouts}}",
        data(conditions=[{"id": cid(0), "payouts": ["1", "0"]}]),
    ),
    Case(
        41,
        "an unknown field",
        "{conditions(first:1){id foo}}",
        error("Type `Condition` has no field `foo`", line=1, column=25),
    ),
    Case(
        41,
        "two unknown fields",
        "{conditions(first:1){foo bar}}",
        {
            "errors": [
                _error("Type `Condition` has no field `foo`", 1, 22),
                _error("Type `Condition` has no field `bar`", 1, 26),
            ]
        },
    ),
    Case(
        41,
        "an unknown root field",
        "{conditionz{id}}",
        error("Type `Query` has no field `conditionz`", line=1, column=2),
    ),
    Case(
        41,
        "an unknown filter",
        '{conditions(where:{id_contains:"x"}){id}}',
        error('Invalid value provided for argument `where`: Object({"id_contains": String("x")})', line=0),
    ),
    Case(
        41,
        "an order that is not supported",
        "{conditions(orderBy:payouts){id}}",
        error("Ordering by `payouts` is not supported for type `Condition`"),
    ),
    Case(
        42,
        "descending",
        "{conditions(first:2,orderBy:id,orderDirection:desc){id}}",
        data(conditions=ids("~head", "~d")),
    ),
    Case(
        42,
        "a direction without an order",
        "{conditions(first:1,orderDirection:desc){id}}",
        data(conditions=ids(cid(0))),
    ),
    Case(
        42,
        "an order as a string",
        '{conditions(first:1,orderBy:"id",orderDirection:desc){id}}',
        data(conditions=ids("~head")),
    ),
    Case(
        42,
        "bytewise order",
        '{conditions(where:{id_gt:"~"}){id}}',
        data(conditions=ids("~A", "~B", "~_", "~a", "~d", "~head")),
    ),
    Case(
        42,
        "introspection of the entity",
        '{__type(name:"Condition"){kind fields{name type{kind ofType{kind ofType{kind name}}}}}}',
        data(
            __type={
                "kind": "OBJECT",
                "fields": [
                    {"name": "id", "type": {"kind": "NON_NULL", "ofType": {"kind": "SCALAR", "ofType": None}}},
                    {
                        "name": "payouts",
                        "type": {
                            "kind": "LIST",
                            "ofType": {"kind": "NON_NULL", "ofType": {"kind": "SCALAR", "name": "BigDecimal"}},
                        },
                    },
                ],
            }
        ),
    ),
    Case(
        42,
        "introspection of the filter",
        '{__type(name:"Condition_filter"){inputFields{name}}}',
        data(
            __type={
                "inputFields": [
                    {"name": name}
                    for name in (
                        *("id", "id_not", "id_gt", "id_lt", "id_gte", "id_lte", "id_in", "id_not_in"),
                        *("payouts", "payouts_not", "payouts_contains", "payouts_not_contains"),
                        *("_change_block", "and", "or"),
                    )
                ]
            }
        ),
    ),
    Case(42, "introspection of an unknown type", '{__type(name:"Nope"){name}}', data(__type=None)),
]


# Further queries, odd ones among them, on which the local subgraph has to say what a real graph-node says.
MORE_QUERIES: list[tuple[str, dict[str, Any]]] = [
    ("{a:conditions(first:1){id} b:conditions(first:0,block:{number:5}){id}}", {}),
    (
        "{a:conditions(first:1){id} b:conditions(first:0,block:{number:5}){id} c:conditions(skip:-1,block:{number:6}){id}}",
        {},
    ),
    ("{conditions(first:1,block:null){id}}", {}),
    ("query($b:Block_height){conditions(first:1,block:$b){id}}", {}),
    ("query($b:Block_height){conditions(first:1,block:$b){id}}", {"b": None}),
    ("query($n:Int){conditions(first:1,block:{number:$n}){id}}", {}),
    ("{conditions(first:1,where:{id:null}){id}}", {}),
    ("{conditions(first:1,where:{id_gt:null}){id}}", {}),
    ("{conditions(first:1,where:{id_not:null}){id}}", {}),
    ("{conditions(first:1,where:{id_not_in:null}){id}}", {}),
    ("{conditions(first:1,where:{id_in:[null]}){id}}", {}),
    ("{conditions(first:1,where:{id_in:[5]}){id}}", {}),
    ("{conditions(first:1,where:{id:5}){id}}", {}),
    ("{conditions(first:1,where:{payouts:[null]}){id}}", {}),
    ('{conditions(first:1,where:{payouts:["abc"]}){id}}', {}),
    ('{conditions(first:1,where:{payouts:"1"}){id}}', {}),
    ("{conditions(first:1,where:{payouts:[1,0]}){id}}", {}),
    ("{conditions(first:1,where:{payouts:[0.5,0.5]}){id}}", {}),
    ('{conditions(first:3,where:{payouts_not:["1","0"]}){id}}', {}),
    ("{conditions(first:3,where:{payouts_not_contains:[]}){id}}", {}),
    ("{conditions(first:3,where:{payouts:[]}){id}}", {}),
    ('{conditions(first:1,block:{hash:"0x12"}){id}}', {}),
    ('{conditions(first:1,block:{hash:"zz"}){id}}', {}),
    ('{conditions(first:1,block:{number:"5"}){id}}', {}),
    ("{conditions(first:1,block:{number:5,foo:1}){id}}", {}),
    ("{conditions(first:1,block:5){id}}", {}),
    ("{conditions(first:1,block:{number:5.5}){id}}", {}),
    ("{conditions(first:1,block:{number_gte:-5}){id}}", {}),
    ("{conditions(first:99999999999){id}}", {}),
    ('{conditions(first:"5"){id}}', {}),
    ("{conditions(first:1.5){id}}", {}),
    ("query($f:Int){conditions(first:$f){id}}", {"f": "5"}),
    ("query($f:Int){conditions(first:$f){id}}", {"f": 5.0}),
    ("query($f:Nope){conditions(first:$f){id}}", {"f": 1}),
    ("query($f:Int!){conditions(first:$f){id}}", {"f": None}),
    ("query($f:Int!){conditions(first:$f){id}}", {}),
    ("query($f:Int!,$g:Int!){conditions(first:$f){id}}", {}),
    ("query($f:Float){conditions(first:1){id}}", {"f": 1}),
    ("query($f:[ID!]){conditions(first:1,where:{id_in:$f}){id}}", {"f": [1, 2]}),
    ("query($f:[ID!]){conditions(first:1,where:{id_in:$f}){id}}", {"f": [None]}),
    ("query($f:[ID!]){conditions(first:1,where:{id_in:$f}){id}}", {"f": [True]}),
    ("query($w:Condition_filter){conditions(first:1,where:$w){id}}", {"w": {"foo": 1}}),
    ("query($w:Condition_filter){conditions(first:1,where:$w){id}}", {"w": {"id": "x", "id_in": ["y"]}}),
    ("{conditions(first:1,orderBy:nope){id}}", {}),
    ("{conditions(first:1,orderBy:null){id}}", {}),
    ("{conditions(first:1,orderDirection:sideways){id}}", {}),
    ("{conditions(first:1,subgraphError:maybe){id}}", {}),
    ("{conditions(first:1,subgraphError:null){id}}", {}),
    ("{conditions(first:1,where:{and:null}){id}}", {}),
    ("{conditions(first:1,where:{or:null}){id}}", {}),
    ("{conditions(first:1,where:{or:[null]}){id}}", {}),
    ("{conditions(first:1,where:{and:[null]}){id}}", {}),
    ('{conditions(first:1,where:{or:{id:"x"}}){id}}', {}),
    ("{conditions(first:1,where:{_change_block:null}){id}}", {}),
    ('{conditions(first:1,where:{_change_block:{number_gte:1},and:[{id:"y"}]}){id}}', {}),
    ('{conditions(first:1,where:{_change_block:{number_gte:1},id:"y"}){id}}', {}),
    ('{conditions(first:1,where:{or:[{_change_block:{number_gte:12}},{id:"~A"}]}){id}}', {}),
    ("{conditions(first:1,where:{or:[{}]}){id}}", {}),
    ("{conditions(first:1,where:{and:[{}]}){id}}", {}),
    ("{conditions(first:1,where:{}){id}}", {}),
    ("{conditions(first:1,where:[]){id}}", {}),
    ('{conditions(first:1,where:"x"){id}}', {}),
    ("{conditions(first:1){id{foo}}}", {}),
    ("{conditions(first:1){id(x:1) payouts}}", {}),
    ("{_meta}", {}),
    ("{_meta{block}}", {}),
    ("{_meta{block{foo}}}", {}),
    ("{_meta{foo}}", {}),
    ("{_meta{__typename block{__typename number}}}", {}),
    ("{a:_meta{block{number}} b:_meta(block:{number:3}){block{number}}}", {}),
    ("{__typename}", {}),
    ("{x:__typename conditions(first:1){id}}", {}),
    ("{__schema{queryType{name}}}", {}),
    ("{__schema{queryType{name}} conditions(first:1){id} _meta{deployment}}", {}),
    ('{conditions(first:1){id} __type(name:"Query"){name} }', {}),
    ("{__schema{foo}}", {}),
    ("{__type{name}}", {}),
    ("query($n:String!){__type(name:$n){name}}", {"n": "Condition"}),
    ('{__type(name:"Condition_orderBy"){enumValues{name}}}', {}),
    ('{__type(name:"Block_height"){inputFields{name}}}', {}),
    ("", {}),
    ("  ", {}),
    ("fragment F on Query{conditions{id}}", {}),
    ("{conditions(first:1){id} ...F} fragment F on Condition{id}", {}),
    ("{...F} fragment F on Query{...F}", {}),
    ("{conditions(first:1){...F}} fragment F on Nope{id}", {}),
    ("{conditions(first:1){... on Nope{id}}}", {}),
    ("{conditions(first:1){... on Nope{foo} id}}", {}),
    ("{conditions(first:1){id @skip}}", {}),
    ("{conditions(first:1){id @foo payouts}}", {}),
    ("query($s:Boolean){conditions(first:1){id @skip(if:$s) payouts}}", {}),
    ("{conditions(first:1) @skip(if:true){id} _meta{deployment}}", {}),
    ("{conditions(first:1) @skip(if:true){id}}", {}),
    ("{conditions(first:1){id @skip(if:true)}}", {}),
    ("subscription{conditions{id}}", {}),
    ("{condition(id:null){id}}", {}),
    ("{condition(id:5){id}}", {}),
    ("{condition(id:$x){id}}", {}),
    ("query($x:ID!){condition(id:$x){id}}", {"x": "~A"}),
    ('{condition(id:"~A") {id} condition(id:"~B"){payouts}}', {}),
    ('{a:condition(id:"~A") {id} b:condition(id:"zz"){id} conditions(first:1){id}}', {}),
    ("{conditions(first:2,skip:1,orderBy:id,orderDirection:desc){id}}", {}),
    ("{conditions(skip:-1){id}}", {}),
    ("{conditions(first:0,skip:-1){id}}", {}),
    (
        '{conditions(first:1,where:{id_in:["aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]}){id}}',
        {},
    ),
    ('{conditions(first:1,where:{id_gt:"~head", id_lt:"~A"}){id}}', {}),
    ('{conditions(first:1,where:{id:"é\\u00e9\\n\\"q"}){id}}', {}),
    ('{conditions(where:{id:"x",or:[{id:"y\\"é"}]}){id}}', {}),
    ('{conditions(where:{id_in:"é\\u0001\\n\\"q\'"}){id}}', {}),
    ('{conditions(where:{foo:{bar:[1,2.5,true,null,ENUM,"s",{}]}}){id}}', {}),
    ("query A($f:Int=3,$f:Int=4){conditions(first:$f){id}}", {}),
    ("{conditions(first:1,first:2){id}}", {}),
    ('{conditions(first:1,where:{id:"~A",id:"~B"}){id}}', {}),
]

_PNL = "id payoutNumerators payoutDenominator"
PNL_QUERIES: list[tuple[str, dict[str, Any]]] = [
    ("{conditions(first:1000){%s}}" % _PNL, {}),
    ("{conditions(first:5,block:{number:1}){%s positionIds}}" % _PNL, {}),
    ("query($ids:[ID!]!){conditions(first:1000,where:{id_in:$ids}){%s}}" % _PNL, {"ids": THOUSAND}),
    ('{conditions(first:9,where:{payoutDenominator_gt:"0"}){id}}', {}),
    ('{conditions(first:9,where:{payoutDenominator:"3"}){id}}', {}),
    ("{conditions(first:9,where:{payoutDenominator:0}){id}}", {}),
    ('{conditions(first:9,where:{payoutDenominator_not:"0",payoutDenominator_lte:"2"}){id}}', {}),
    ('{conditions(first:9,where:{payoutDenominator_in:["1","2"]}){id}}', {}),
    ('{conditions(first:9,where:{payoutDenominator_not_in:["0","1"]}){id}}', {}),
    ("{conditions(first:9,where:{payoutDenominator_in:[]}){id}}", {}),
    ('{conditions(first:9,where:{payoutDenominator:"x"}){id}}', {}),
    ("{conditions(first:9,where:{payoutDenominator_gt:null}){id}}", {}),
    ("{conditions(first:9,where:{payoutDenominator:null}){id}}", {}),
    ("{conditions(first:9,where:{payoutDenominator_not:null}){id}}", {}),
    ("{conditions(first:9,where:{payoutNumerators:[1,0]}){id}}", {}),
    ('{conditions(first:9,where:{payoutNumerators_contains:["2"]}){id}}', {}),
    ("{conditions(first:9,where:{payoutNumerators:[]}){id}}", {}),
    ("{conditions(first:9,where:{payoutNumerators_not:[]}){id}}", {}),
    ("{conditions(first:9,where:{payoutNumerators_not:null}){id}}", {}),
    ("{conditions(first:9,orderBy:payoutDenominator){id payoutDenominator}}", {}),
    ("{conditions(first:9,orderBy:payoutDenominator,orderDirection:desc){id payoutDenominator}}", {}),
    ("{conditions(first:9,skip:3,orderBy:payoutDenominator,orderDirection:asc){id payoutDenominator}}", {}),
    ("{conditions(orderBy:payoutNumerators){id}}", {}),
    ("{conditions(first:1){payouts}}", {}),
    ('{__type(name:"Condition"){fields{name type{kind ofType{kind name ofType{kind ofType{name}}}}}}}', {}),
    ('{__type(name:"Condition_filter"){inputFields{name type{kind name ofType{kind ofType{name}}}}}}', {}),
    ('{__type(name:"Condition_orderBy"){enumValues{name}}}', {}),
]


@dataclass(frozen=True)
class HttpCase:
    """A request to the endpoint as raw bytes, and the whole answer: status and JSON body."""

    row: int
    name: str
    body: bytes
    status: int
    expected: dict[str, Any]
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    method: str = "POST"
    path: str | None = None

    def __str__(self) -> str:
        return f"{self.row}-{self.name}"


def _client(reason: str) -> dict[str, str]:
    return {"error": f"GraphQL server error (client error): {reason}"}


HTTP_CASES: list[HttpCase] = [
    HttpCase(36, "no query", b"{}", 400, _client('The "query" field is missing in request data')),
    HttpCase(38, "an unknown path", b"{}", 200, {"message": "Not found"}, path="/foo/bar"),
    HttpCase(38, "the root", b"{}", 200, {"message": "Not found"}, path="/"),
    HttpCase(38, "another method", b"{}", 200, {"message": "Not found"}, method="PUT"),
    HttpCase(39, "no JSON", b"{x", 400, _client("key must be a string at line 1 column 2")),
    HttpCase(39, "a list of queries", b"[]", 400, _client("Request data is not an object")),
    HttpCase(39, "a query that is no text", b'{"query":5}', 400, _client('The "query" field is not a string')),
    HttpCase(
        39,
        "variables that are no object",
        b'{"query":"{conditions(first:1){id}}","variables":[1]}',
        400,
        _client("Invalid query variables provided"),
    ),
    HttpCase(
        39,
        "variables that are null",
        b'{"query":"{conditions(first:1){id}}","variables":null}',
        200,
        data(conditions=ids(cid(0))),
    ),
    HttpCase(
        39,
        "any content type",
        b'{"query":"{conditions(first:1){id}}"}',
        200,
        data(conditions=ids(cid(0))),
        headers={"Content-Type": "text/x-anything"},
    ),
    HttpCase(39, "no content type", b"{}", 400, {"error": "Content-Type header is required"}, headers={}),
    HttpCase(39, "no body", b"", 400, {"error": "Body is required"}),
    HttpCase(
        38,
        "an unknown deployment",
        b'{"query":"{conditions(first:1){id}}"}',
        200,
        error("deployment `nope` does not exist"),
        path="/subgraphs/name/nope",
    ),
]


def normalised(value: Any, deployment: str) -> Any:
    """A body with the deployment's own id replaced by the mark that the expected answers have."""
    if isinstance(value, dict):
        return {key: normalised(item, deployment) for key, item in value.items()}
    if isinstance(value, list):
        return [normalised(item, deployment) for item in value]
    return value.replace(deployment, DEPLOYMENT_MARK) if isinstance(value, str) else value
