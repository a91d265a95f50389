"""What graph-node answers for ``Condition``: data, queries and expected answers that hold for any endpoint that has it.

The data: conditions 0 to 1199 by number, created in block 1 and (most of them) resolved in block 2; a few ids that sort
after all of them; head 12. ``ROWS`` is what a store is made of, ``CASES`` are queries with their answers, which hold for
the local subgraph and for a real graph-node. ``QUERIES`` have no answers written down: the two are compared with each
other. Data has to be equal; errors have to mean the same to the client, whose reading of them
(:func:`payout_pipeline.goldsky.classify.classify_errors`) is part of the comparison. What graph-node says of an error is
written down in ``CASES``, and only graph-node has to say it like that.
"""

# ruff: noqa: UP031 - GraphQL is full of braces, which every other way of formatting wants doubled.
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from payout_pipeline.goldsky.classify import classify_errors
from payout_pipeline.subgraph.chain import Chain
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
    *(ConditionRow(cid(n), _payouts(n)) for n in range(1200)),
    *(ConditionRow(name) for name in ("~A", "~B", "~_", "~a")),
    ConditionRow("~d", ("10e-2", "132400e4", "0e3")),
    ConditionRow("~head", created_block=HEAD),
]
IDS = sorted(row.id for row in ROWS)
THOUSAND = [cid(n) for n in range(1000)]


@dataclass(frozen=True)
class Case:
    """``expected``: the whole JSON body of data, or the beginning of the message of the first error."""

    name: str
    query: str
    expected: dict[str, Any] | str
    variables: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def data(**fields: Any) -> dict[str, Any]:
    return {"data": fields}


def ids(*wanted: str) -> list[dict[str, str]]:
    return [{"id": identity} for identity in wanted]


def means(answer: dict[str, Any]) -> Any:
    """What an answer says to the client: its data, or the kind of its errors."""
    if "errors" not in answer and "data" in answer:
        return answer["data"]
    return classify_errors(answer.get("errors", [{"message": "Invalid value provided"}])).kind


def normalised(value: Any, deployment: str) -> Any:
    """A body with the deployment's own id replaced by the mark that the expected answers have."""
    if isinstance(value, dict):
        return {key: normalised(item, deployment) for key, item in value.items()}
    if isinstance(value, list):
        return [normalised(item, deployment) for item in value]
    return value.replace(deployment, DEPLOYMENT_MARK) if isinstance(value, str) else value


def _range(argument: str, most: int, actual: int) -> str:
    return f"The `{argument}` argument must be between 0 and {most}, but is {actual}"


def _not_yet(kind: str, number: int) -> str:
    return (
        f"Failed to decode `block.{kind}` value: `subgraph {DEPLOYMENT_MARK} has only indexed up to block number {HEAD} "
        f"and data for block number {number} is therefore not yet available`"
    )


def _meta(number: int, *, told: bool = True) -> dict[str, Any]:
    block_hash, timestamp = (Chain.block_hash(number), GENESIS + 2 * number) if told else (None, None)
    block = {"number": number, "hash": block_hash, "timestamp": timestamp}
    return {"deployment": DEPLOYMENT_MARK, "hasIndexingErrors": False, "block": block}


_META = "deployment hasIndexingErrors block{number hash timestamp}"
_LISTS = {"a": [cid(1), cid(3)], "b": [cid(5), cid(9)]}
_THIRDS = ["0.3333333333333333333333333333333333", "0.6666666666666666666666666666666667"]

_BY_IDS = "query($ids:[ID!]!){conditions(first:1000,where:{id_in:$ids}){id payouts}}"
_TEN = (
    ",".join(f"$b{n}:[ID!]!" for n in range(10)),
    " ".join(f"b{n}:conditions(first:1000,where:{{id_in:$b{n}}},block:{{number:12}}){{id}}" for n in range(10)),
)
_TENTHS = {f"b{n}": [cid(m) for m in range(n, 1000, 10)] for n in range(10)}

CASES: list[Case] = [
    # pages
    Case("a page without first has 100 rows in order", "{conditions{id}}", data(conditions=ids(*IDS[:100]))),
    Case("first 1000", "{conditions(first:1000){id}}", data(conditions=ids(*IDS[:1000]))),
    Case("first null is 100", "{conditions(first:null){id}}", data(conditions=ids(*IDS[:100]))),
    Case("first 1001", "{conditions(first:1001){id}}", _range("first", 1000, 1001)),
    Case("first 0", "{conditions(first:0){id}}", _range("first", 1000, 0)),
    Case("first -1", "{conditions(first:-1){id}}", _range("first", 1000, -1)),
    Case("skip null is 0", "{conditions(first:1,skip:null){id}}", data(conditions=ids(IDS[0]))),
    Case("skip leaves the rest", "{conditions(first:1000,skip:1150){id}}", data(conditions=ids(*IDS[1150:]))),
    Case("skip beyond the end", "{conditions(skip:5000){id}}", data(conditions=[])),
    Case("a default of a variable", "query($f:Int=3){conditions(first:$f){id}}", data(conditions=ids(*IDS[:3]))),
    Case("descending", "{conditions(first:2,orderBy:id,orderDirection:desc){id}}", data(conditions=ids("~head", "~d"))),
    Case("a direction without an order", "{conditions(first:1,orderDirection:desc){id}}", data(conditions=ids(cid(0)))),
    Case("bytewise order", '{conditions(where:{id_gt:"~"}){id}}', data(conditions=ids(*IDS[-6:]))),
    # lists of ids
    Case(
        "a thousand ids without first give 100 rows and no hint",
        "query($ids:[ID!]!){conditions(where:{id_in:$ids}){id}}",
        data(conditions=ids(*THOUSAND[:100])),
        {"ids": THOUSAND},
    ),
    Case(
        "a thousand ids with first",
        "query($ids:[ID!]!){conditions(first:1000,where:{id_in:$ids}){id}}",
        data(conditions=ids(*THOUSAND)),
        {"ids": THOUSAND},
    ),
    Case(
        "ids in any order and twice, one of them unknown",
        _BY_IDS,
        data(
            conditions=[
                {"id": cid(1), "payouts": ["0.5", "0.5"]},
                {"id": cid(3), "payouts": _THIRDS},
                {"id": cid(9), "payouts": None},
            ]
        ),
        {"ids": [cid(9), cid(3), cid(3), cid(9), "0x" + "f" * 64, cid(1)]},
    ),
    Case(
        "null, empty and resolved",
        _BY_IDS,
        data(
            conditions=[
                {"id": cid(10), "payouts": ["1", "0"]},
                {"id": cid(12), "payouts": []},
                {"id": cid(14), "payouts": None},
            ]
        ),
        {"ids": [cid(10), cid(12), cid(14)]},
    ),
    Case("no ids", "{conditions(where:{id_in:[]}){id}}", data(conditions=[])),
    Case("ids null", "{conditions(where:{id_in:null}){id}}", "Non-list value passed to `_in` filter"),
    # several lists
    Case(
        "two lists of ids and meta at one block",
        "query($a:[ID!]!,$b:[ID!]!){b0:conditions(first:1000,where:{id_in:$a},block:{number:3}){id payouts} "
        "b1:conditions(first:1000,where:{id_in:$b},block:{number:3}){id payouts} _meta(block:{number:3}){%s}}" % _META,
        data(
            b0=[{"id": cid(1), "payouts": ["0.5", "0.5"]}, {"id": cid(3), "payouts": _THIRDS}],
            b1=[{"id": cid(5), "payouts": None}, {"id": cid(9), "payouts": None}],
            _meta=_meta(3, told=False),
        ),
        _LISTS,
    ),
    Case(
        "ten lists of ids",
        "query(%s){%s}" % _TEN,
        data(**{key: ids(*listed) for key, listed in _TENTHS.items()}),
        _TENTHS,
    ),
    Case("one bad list of two", "{a:conditions(first:1){id} b:conditions(first:0){id}}", _range("first", 1000, 0)),
    Case(
        "three blocks in one query",
        "{a:conditions(first:1,block:{number:0}){id} b:conditions(first:1,block:{number:1}){payouts} "
        "c:conditions(first:1,block:{number:2}){payouts}}",
        data(a=[], b=[{"payouts": None}], c=[{"payouts": ["1", "0"]}]),
    ),
    # bounds of ids
    Case("greater", '{conditions(first:2,where:{id_gt:"%s"}){id}}' % cid(7), data(conditions=ids(cid(8), cid(9)))),
    Case("less", '{conditions(where:{id_lt:"%s"}){id}}' % cid(2), data(conditions=ids(cid(0), cid(1)))),
    Case(
        "between two ids, resolved only",
        '{conditions(first:9,where:{id_gt:"%s",id_lt:"%s",payouts_not:null}){id}}' % (cid(3), cid(12)),
        data(conditions=ids(cid(10), cid(11))),
    ),
    # one condition
    Case("one condition", '{condition(id:"%s"){payouts}}' % cid(0), data(condition={"payouts": ["1", "0"]})),
    Case("an unknown condition", '{condition(id:"0xff"){id}}', data(condition=None)),
    Case("upper case is another id", '{condition(id:"0x%s"){id}}' % cid(1194)[2:].upper(), data(condition=None)),
    Case("decimals", '{condition(id:"~d"){payouts}}', data(condition={"payouts": ["0.1", "1324000000", "0"]})),
    # payouts
    Case("resolved only", "{conditions(first:4,where:{payouts_not:null}){id}}", data(conditions=ids(*IDS[:4]))),
    # blocks
    Case("a block beyond the head", "{conditions(block:{number:7000}){id}}", _not_yet("number", 7000)),
    Case(
        "a block in a variable", "query($n:Int!){conditions(block:{number:$n}){id}}", _not_yet("number", 99), {"n": 99}
    ),
    Case("before anything", "{conditions(first:1,block:{number:0}){id}}", data(conditions=[])),
    Case(
        "before it was resolved",
        "{conditions(first:1,block:{number:1}){payouts}}",
        data(conditions=[{"payouts": None}]),
    ),
    Case("no number", "{conditions(block:{number:null}){id}}", "Invalid value provided for argument `block`"),
    Case("at least 1", "{conditions(first:1,block:{number_gte:1}){id}}", data(conditions=ids(cid(0)))),
    Case("at least 7000", "{conditions(block:{number_gte:7000}){id}}", _not_yet("number_gte", 7000)),
    Case(
        "a negative block",
        "{conditions(block:{number:-1}){id}}",
        f"Failed to decode `block.number` value: `subgraph {DEPLOYMENT_MARK} only has data starting at block number 0 and "
        "data for block number -1 is therefore not available`",
    ),
    Case("meta of the head", "{_meta{%s}}" % _META, data(_meta=_meta(HEAD))),
    Case("meta by number has no hash", "{_meta(block:{number:3}){%s}}" % _META, data(_meta=_meta(3, told=False))),
    Case("meta at least", "{_meta(block:{number_gte:3}){%s}}" % _META, data(_meta=_meta(HEAD))),
    Case("meta with another name", "{m:_meta{block{n:number}}}", data(m={"block": {"n": HEAD}})),
    # GraphQL
    Case(
        "names",
        "{conditions(first:1){__typename b:payouts a:id}}",
        data(conditions=[{"__typename": "Condition", "b": ["1", "0"], "a": cid(0)}]),
    ),
    Case(
        "fragments and directives",
        "query($y:Boolean!){...F} fragment F on Query{conditions(first:1){...C payouts @skip(if:$y)}} "
        "fragment C on Condition{id @include(if:$y)}",
        data(conditions=ids(cid(0))),
        {"y": True},
    ),
    Case("an unknown field", "{conditions(first:1){id foo}}", "Type `Condition` has no field `foo`"),
    Case("an unknown root field", "{conditionz{id}}", "Type `Query` has no field `conditionz`"),
    Case("a mutation", "mutation{x}", "Not supported: Mutations are not supported"),
    Case("two operations", "query A{conditions{id}} query B{conditions{id}}", "Operation name required"),
    Case(
        "introspection of the entity",
        '{__type(name:"Condition"){kind fields{name type{kind ofType{kind ofType{name}}}}}}',
        data(
            __type={
                "kind": "OBJECT",
                "fields": [
                    {"name": "id", "type": {"kind": "NON_NULL", "ofType": {"kind": "SCALAR", "ofType": None}}},
                    {
                        "name": "payouts",
                        "type": {"kind": "LIST", "ofType": {"kind": "NON_NULL", "ofType": {"name": "BigDecimal"}}},
                    },
                ],
            }
        ),
    ),
]

# Mistakes above all: what is refused by one is refused by the other, and the client reads the refusals alike.
QUERIES: list[tuple[str, dict[str, Any]]] = [
    (_BY_IDS, {"ids": None}),
    (_BY_IDS, {}),
    (_BY_IDS, {"ids": [None]}),
    (_BY_IDS, {"ids": [True]}),
    ("query($ids:[ID!]){conditions(first:1,where:{id_in:$ids}){id}}", {"ids": [1, 2]}),
    ("{conditions(where:{id_in:$ids}){id}}", {}),
    ("{conditions(first:1,where:{id_in:[null]}){id}}", {}),
    ("{conditions(first:1,where:null){id}}", {}),
    ("query($w:Condition_filter){conditions(first:1,where:$w){id}}", {}),
    ("query($w:Condition_filter){conditions(first:1,where:$w){id}}", {"w": {"foo": 1}}),
    ("query($w:Condition_filter){conditions(first:1,where:$w){id}}", {"w": "x"}),
    ("query($x:ID!){condition(id:$x){id}}", {}),
    ('{conditions(where:{id_contains:"x"}){id}}', {}),
    ("{conditions(first:1,where:[]){id}}", {}),
    ('{conditions(first:1,where:"x"){id}}', {}),
    ('{conditions(first:1,where:{id_gt:"~head", id_lt:"~A"}){id}}', {}),
    ("{conditions(first:1,block:null){id}}", {}),
    ("query($b:Block_height){conditions(first:1,block:$b){id}}", {"b": {"number": 2}}),
    ("query($n:Int){conditions(first:1,block:{number:$n}){id}}", {}),
    ("{conditions(block:{}){id}}", {}),
    ('{conditions(first:1,block:{number:"5"}){id}}', {}),
    ("{conditions(first:1,block:{number_gte:-5}){id}}", {}),
    ("{a:conditions(first:1,block:{number:98}){id} b:conditions(first:1,block:{number:99}){id}}", {}),
    ("{conditions(first:99999999999){id}}", {}),
    ('{conditions(first:"5"){id}}', {}),
    ("query($f:Int!){conditions(first:$f){id}}", {}),
    ("query($f:Int){conditions(first:$f){id}}", {"f": "5"}),
    ("{conditions(first:1,orderBy:nope){id}}", {}),
    ("{conditions(orderBy:payouts){id}}", {}),
    ("{conditions(first:1,orderDirection:sideways){id}}", {}),
    ("{conditions(skip:-1){id}}", {}),
    ("{condition{id}}", {}),
    ("query($x:ID!){condition(id:$x){id}}", {"x": "~A"}),
    ('{a:condition(id:"~A") {id} b:condition(id:"zz"){id} conditions(first:1){id}}', {}),
    ("{conditions(first:1)}", {}),
    ("{_meta{foo}}", {}),
    ("{a:_meta{block{number}} b:_meta(block:{number:3}){block{number}}}", {}),
    ("{__schema{queryType{name}} _meta{deployment}}", {}),
    ('{__type(name:"Nope"){name}}', {}),
    ("", {}),
    ("<L<G<>M>", {}),
    ("{conditions(first:1){id}", {}),
    ("subscription{conditions{id}}", {}),
]

_PNL = "id payoutNumerators payoutDenominator"
PNL_QUERIES: list[tuple[str, dict[str, Any]]] = [
    ("{conditions(first:1000){%s}}" % _PNL, {}),
    ("{conditions(first:5,block:{number:1}){%s}}" % _PNL, {}),
    ("query($ids:[ID!]!){conditions(first:1000,where:{id_in:$ids}){%s}}" % _PNL, {"ids": THOUSAND}),
    ('{conditions(first:9,where:{payoutDenominator_gt:"0"}){id}}', {}),
    ('{conditions(first:9,where:{id_gt:"%s",payoutDenominator_gt:"0"}){id}}' % cid(7), {}),
    ("{conditions(first:1){payouts}}", {}),
]

# (body, status) of requests that carry no query.
NO_QUERIES: list[tuple[bytes, int]] = [
    (b"{}", 400),
    (b"{x", 400),
    (b"[]", 400),
    (b'{"query":5}', 400),
    (b'{"query":"{conditions(first:1){id}}","variables":[1]}', 400),
    (b'{"query":"{conditions(first:1){id}}","variables":null}', 200),
]
