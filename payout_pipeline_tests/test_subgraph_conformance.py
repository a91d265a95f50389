"""The local subgraph gives the answers that graph-node gives: the conformance list, and what is ours alone."""

# ruff: noqa: UP031 - GraphQL is full of braces, which every other way of formatting wants doubled.
from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payout_pipeline.subgraph.chain import NEVER
from payout_pipeline.subgraph.engine import Engine, Limits
from payout_pipeline.subgraph.server import SubgraphConfig, SubgraphServer
from payout_pipeline.subgraph.store import ConditionRow, ConditionStore
from payout_pipeline_tests.subgraph_conformance import (
    CASES,
    HEAD,
    HTTP_CASES,
    ROWS,
    Case,
    HttpCase,
    chain,
    cid,
    normalised,
)


def send(
    url: str, body: bytes, headers: dict[str, str], method: str = "POST", path: str | None = None
) -> tuple[int, bytes]:
    """One request in the very bytes that are given; no header is added but Host and Content-Length."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    try:
        connection.putrequest(method, path or parts.path, skip_accept_encoding=True)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def ask(url: str, query: str, variables: dict[str, Any] | None = None) -> Any:
    """The JSON body of one query that is answered with HTTP 200."""
    body = json.dumps({"query": query, "variables": variables or {}}).encode()
    status, answer = send(url, body, {"Content-Type": "application/json"})
    assert status == 200, answer
    return json.loads(answer)


def serve(**changes: Any) -> SubgraphServer:
    settings = {"store": ConditionStore.from_rows(ROWS), "chain": chain(), **changes}
    return SubgraphServer(SubgraphConfig(**settings))


@pytest.fixture(scope="module")
def server() -> Iterator[SubgraphServer]:
    with serve() as running:
        yield running


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_query_is_answered_as_by_graph_node(server: SubgraphServer, case: Case) -> None:
    answer = ask(server.url, case.query, case.variables)
    assert normalised(answer, server.engine.deployment) == case.expected
    if "data" in case.expected:
        assert list(answer["data"]) == list(case.expected["data"])


@pytest.mark.parametrize("case", HTTP_CASES, ids=str)
def test_a_request_below_graphql_is_answered_as_by_graph_node(server: SubgraphServer, case: HttpCase) -> None:
    status, body = send(server.url, case.body, case.headers, case.method, case.path)
    assert status == case.status
    answer = json.loads(body)
    if case.name == "no JSON":
        # The position is the parser's own business; that it is a client error is not.
        assert answer["error"].startswith("GraphQL server error (client error): ")
    else:
        assert answer == case.expected


def test_skip_is_limited_where_the_deployment_limits_it() -> None:
    with serve(limits=Limits(max_skip=5000)) as server:
        message = "The `skip` argument must be between 0 and 5000, but is 5001"
        assert ask(server.url, "{conditions(skip:5001){id}}") == {"errors": [{"message": message}]}
        assert ask(server.url, "{conditions(skip:5000){id}}") == {"data": {"conditions": []}}


def test_complexity_counts_a_literal_first_and_100_for_a_variable() -> None:
    with serve(limits=Limits(max_complexity=1500)) as server:
        too_many = ask(server.url, "{a:conditions(first:1000){id} b:conditions(first:1000){id}}")
        assert too_many["errors"][0]["message"].startswith("query potentially returns `2000` entities or more")
        assert "data" in ask(server.url, "{a:conditions(first:1000){id} b:conditions(first:500){id}}")
        assert "data" in ask(
            server.url, "query($f:Int){a:conditions(first:$f){id} b:conditions(first:1000){id}}", {"f": 1000}
        )


def test_a_query_that_is_too_deep_is_refused() -> None:
    with serve(limits=Limits(max_depth=2)) as server:
        refused = {"errors": [{"message": "query has a depth that exceeds the limit of `2`"}]}
        assert ask(server.url, "{_meta{block{number}}}") == refused
        assert "data" in ask(server.url, "{_meta{deployment}}")


def test_a_block_that_was_pruned_is_refused() -> None:
    with serve(earliest_block=5) as server:
        message = ask(server.url, "{conditions(block:{number:4}){id}}")["errors"][0]["message"]
        assert message == (
            f"Failed to decode `block.number` value: `subgraph {server.engine.deployment} only has data starting at block "
            "number 5 and data for block number 4 is therefore not available`"
        )
        assert ask(server.url, "{conditions(first:1,block:{number:5}){id}}") == {
            "data": {"conditions": [{"id": cid(0)}]}
        }
        assert ask(server.url, "{conditions(first:1,block:{number_gte:4}){id}}") == {
            "data": {"conditions": [{"id": cid(0)}]}
        }


def test_an_undefined_fragment_closes_the_connection(server: SubgraphServer) -> None:
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        ask(server.url, "{conditions(first:1){...Nope}}")


def test_the_head_is_told_in_a_header(server: SubgraphServer) -> None:
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    connection.request(
        "POST", parts.path, json.dumps({"query": "{conditions(first:1){id}}"}), {"Content-Type": "application/json"}
    )
    response = connection.getresponse()
    response.read()
    connection.close()
    head = json.loads(response.headers["graph-indexed"])
    assert head == {"hash": chain().block_hash(HEAD), "number": HEAD, "timestamp": chain().timestamp(HEAD)}
    assert response.headers["graph-attestable"] == "true"


def test_a_get_is_sent_to_the_browser_page(server: SubgraphServer) -> None:
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    connection.request("GET", parts.path)
    response = connection.getresponse()
    response.read()
    connection.close()
    assert (response.status, response.headers["location"]) == (302, f"{parts.path}/graphql")


def test_the_path_of_goldsky_serves_known_names_and_versions_only(server: SubgraphServer) -> None:
    assert ask(server.goldsky_url, "{conditions(first:1){id}}") == {"data": {"conditions": [{"id": cid(0)}]}}
    assert ask(server.goldsky_url.replace("0.0.7", "prod"), "{conditions(first:1){id}}")["data"]
    body = b'{"query":"{conditions(first:1){id}}"}'
    wrong = server.goldsky_url.replace("0.0.7", "9.9.9")
    assert send(wrong, body, {"Content-Type": "application/json"}) == (404, b"Not Found")


def test_the_deployment_can_be_asked_by_its_id(server: SubgraphServer) -> None:
    url = f"{server.base_url}/subgraphs/id/{server.engine.deployment}"
    assert ask(url, "{conditions(first:1){id}}") == {"data": {"conditions": [{"id": cid(0)}]}}


def test_the_pnl_schema_has_empty_numerators_until_the_condition_is_resolved() -> None:
    with serve(schema="numerators") as server:
        query = "query($ids:[ID!]){conditions(where:{id_in:$ids}){id payoutNumerators payoutDenominator}}"
        thirds, unresolved, halves = cid(3), cid(4), cid(1)
        assert ask(server.url, query, {"ids": [thirds, unresolved, halves]})["data"]["conditions"] == [
            {"id": halves, "payoutNumerators": ["1", "1"], "payoutDenominator": "2"},
            {"id": thirds, "payoutNumerators": ["1", "2"], "payoutDenominator": "3"},
            {"id": unresolved, "payoutNumerators": [], "payoutDenominator": "0"},
        ]
        assert ask(server.url, "{conditions(first:1){payouts}}")["errors"][0]["message"] == (
            "Type `Condition` has no field `payouts`"
        )
        resolved = ask(server.url, '{conditions(first:2,where:{payoutDenominator_gt:"2"}){id}}')
        assert resolved == {"data": {"conditions": [{"id": cid(3)}, {"id": cid(13)}]}}
        ordered = ask(
            server.url, "{conditions(first:1,orderBy:payoutDenominator,orderDirection:desc){payoutDenominator}}"
        )
        assert ordered == {"data": {"conditions": [{"payoutDenominator": "13240000001"}]}}


def test_the_older_schema_tells_when_a_condition_was_resolved() -> None:
    rows = [
        ConditionRow(cid(1), ("0.54", "0.46"), 1, 2, resolved_at=1_600_000_004),
        ConditionRow(cid(2), None, 1),
        ConditionRow(cid(3), ("1", "0", "0"), 1, 9, resolved_at=1_600_000_018),
    ]
    fields = "id outcomeSlotCount resolutionTimestamp payouts payoutNumerators payoutDenominator"
    unset = {"resolutionTimestamp": None, "payouts": None, "payoutNumerators": None, "payoutDenominator": None}
    with serve(schema="full", store=ConditionStore.from_rows(rows)) as server:
        assert ask(server.url, "{conditions(block:{number:8}){%s}}" % fields)["data"]["conditions"] == [
            {
                "id": cid(1),
                "outcomeSlotCount": 2,
                "resolutionTimestamp": "1600000004",
                "payouts": ["0.54", "0.46"],
                "payoutNumerators": ["27", "23"],
                "payoutDenominator": "50",
            },
            {"id": cid(2), "outcomeSlotCount": 2, **unset},
            {"id": cid(3), "outcomeSlotCount": 3, **unset},
        ]
        later = ask(server.url, '{conditions(where:{resolutionTimestamp_gt:"1600000004"}){id resolutionTimestamp}}')
        assert later == {"data": {"conditions": [{"id": cid(3), "resolutionTimestamp": "1600000018"}]}}
        # Null comes first when descending, as PostgreSQL has it.
        by_time = ask(server.url, "{conditions(orderBy:resolutionTimestamp,orderDirection:asc){id}}")
        assert by_time == {"data": {"conditions": [{"id": cid(1)}, {"id": cid(3)}, {"id": cid(2)}]}}


def test_a_subgraph_without_vectors_has_ids_only() -> None:
    with serve(schema="bare") as server:
        assert ask(server.url, "{conditions(first:1){id}}") == {"data": {"conditions": [{"id": cid(0)}]}}
        assert ask(server.url, '{__type(name:"Condition"){fields{name}}}')["data"] == {
            "__type": {"fields": [{"name": "id"}]}
        }
        refused = ask(server.url, "{conditions(where:{payouts_not:null}){id}}")
        assert refused["errors"][0]["message"].startswith("Invalid value provided for argument `where`")


def test_a_failed_deployment_denies_data_unless_errors_are_allowed() -> None:
    failed = [{"message": "indexing_error"}]
    with serve() as server:
        server.faults.add("failed", block=6)
        assert ask(server.url, "{conditions(first:1){id}}") == {"errors": failed}
        both = ask(server.url, "{conditions(first:1){id} _meta{hasIndexingErrors}}")
        assert both == {"data": {"_meta": {"hasIndexingErrors": True}}, "errors": failed}
        assert ask(server.url, "{m:_meta{hasIndexingErrors}}") == {"errors": failed}
        allowed = ask(server.url, "{conditions(first:1,subgraphError:allow){id}}")
        assert allowed == {"data": {"conditions": [{"id": cid(0)}]}, "errors": failed}
        before = ask(server.url, "{conditions(first:1,block:{number:5}){id}}")
        assert before == {"data": {"conditions": [{"id": cid(0)}]}}


def test_the_head_moves_on_when_the_chain_advances() -> None:
    growing = chain()
    growing.advancing = True
    growing.started_at -= 2 * 100
    with serve(chain=growing) as server:
        assert ask(server.url, "{_meta{block{number}}}")["data"]["_meta"]["block"]["number"] >= HEAD + 100


# -- filters against a slow reading of the same rows --------------------------------------------------------------------

SMALL = [
    ConditionRow(name, payouts, created, created + 3, deleted, resolved_at=when)
    for name, payouts, created, deleted, when in (
        ("a", ("1", "0"), 1, NEVER, 100),
        ("aa", None, 1, NEVER, None),
        ("b", (), 2, NEVER, None),
        ("c", ("0.5", "0.5"), 3, 9, 50),
        ("d", ("0", "1"), 4, NEVER, 100),
        ("e", None, 5, 8, None),
        ("f", ("0.2", "0.3", "0.5"), 6, NEVER, 75),
        ("~", ("1", "0"), 9, NEVER, None),
    )
]
NAMES = st.sampled_from([row.id for row in SMALL] + ["", "b~", "zz", "A"])
VECTORS = st.sampled_from([[], ["1"], ["0", "1"], ["1", "0"], ["0.5"], ["0.50", "0.5"], ["7"]])
COLUMN_FILTERS = st.one_of(
    st.dictionaries(st.sampled_from([f"id{o}" for o in ("", "_not", "_gt", "_lt", "_gte", "_lte")]), NAMES, max_size=3),
    st.dictionaries(st.sampled_from(["id_in", "id_not_in"]), st.lists(NAMES, max_size=4), max_size=2),
    st.dictionaries(
        st.sampled_from([f"payouts{o}" for o in ("", "_not", "_contains", "_not_contains")]), VECTORS, max_size=2
    ),
    st.sampled_from([{"payouts": None}, {"payouts_not": None}]),
    st.integers(0, 12).map(lambda block: {"_change_block": {"number_gte": block}}),
)
FILTERS = st.recursive(
    COLUMN_FILTERS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda parts: {"or": parts}),
        st.lists(inner, max_size=3).map(lambda parts: {"and": parts}),
    ),
    max_leaves=5,
)


def slowly(row: ConditionRow, block: int, where: dict[str, Any]) -> bool:
    """Whether a row matches, by the words of the list of facts."""
    resolved = row.payouts is not None and row.resolved_block <= block
    vector = [Decimal(text) for text in row.payouts or ()] if resolved else None

    def one(key: str, value: Any) -> bool:
        if key == "and":
            return all(slowly(row, block, part) for part in value)
        if key == "or":
            return any(slowly(row, block, part) for part in value)
        if key == "_change_block":
            return (row.resolved_block if resolved else row.created_block) >= value["number_gte"]
        field, _, operator = key.partition("_")
        if field == "id":
            return {
                "": lambda: row.id == value,
                "not": lambda: row.id != value,
                "gt": lambda: row.id > value,
                "lt": lambda: row.id < value,
                "gte": lambda: row.id >= value,
                "lte": lambda: row.id <= value,
                "in": lambda: row.id in value,
                "not_in": lambda: bool(value) and row.id not in value,
            }[operator]()
        if value is None:
            return (vector is None) == (operator == "")
        if vector is None:
            return False
        wanted = [Decimal(text) for text in value]
        return {
            "": lambda: vector == wanted,
            "not": lambda: vector != wanted,
            "contains": lambda: all(item in vector for item in wanted),
            "not_contains": lambda: not any(item in vector for item in wanted),
        }[operator]()

    return all(one(key, value) for key, value in where.items())


@pytest.fixture(scope="module")
def small() -> Engine:
    return Engine(ConditionStore.from_rows(SMALL), chain())


@given(FILTERS, st.integers(0, HEAD), st.integers(1, 9), st.integers(0, 9), st.booleans())
def test_any_filter_selects_what_a_slow_reading_selects(
    small: Engine, where: dict[str, Any], block: int, first: int, skip: int, descending: bool
) -> None:
    matching = [row.id for row in SMALL if row.created_block <= block < row.deleted_block and slowly(row, block, where)]
    expected = (matching[::-1] if descending else matching)[skip : skip + first]
    text = (
        "query($w:Condition_filter,$b:Int,$f:Int,$s:Int,$d:OrderDirection)"
        "{conditions(where:$w,block:{number:$b},first:$f,skip:$s,orderBy:id,orderDirection:$d){id}}"
    )
    variables = {"w": where, "b": block, "f": first, "s": skip, "d": "desc" if descending else "asc"}
    answer = json.loads(small.answer(small.read(text, variables)).body())
    assert answer == {"data": {"conditions": [{"id": identity} for identity in expected]}}
