"""The local subgraph gives the answers that graph-node gives: the conformance list, and what is ours alone."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payout_pipeline.subgraph.engine import DEPLOYMENT, Engine
from payout_pipeline.subgraph.server import SubgraphConfig, SubgraphServer
from payout_pipeline.subgraph.store import ConditionRow, ConditionStore
from payout_pipeline_tests.subgraph_conformance import (
    CASES,
    HEAD,
    NO_QUERIES,
    ROWS,
    Case,
    chain,
    cid,
    means,
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
    settings = {"conditions": ConditionStore.from_rows(ROWS), "chain": chain(), **changes}
    return SubgraphServer(SubgraphConfig(**settings))


@pytest.fixture(scope="module")
def server() -> Iterator[SubgraphServer]:
    with serve() as running:
        yield running


def check(case: Case, answer: dict[str, Any]) -> None:
    if isinstance(case.expected, str):
        assert "data" not in answer
        assert means(answer) == means({"errors": [{"message": case.expected}]})
    else:
        assert answer == case.expected


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_query_is_answered_as_by_graph_node(server: SubgraphServer, case: Case) -> None:
    check(case, normalised(ask(server.url, case.query, case.variables), DEPLOYMENT))


@pytest.mark.parametrize(("body", "status"), NO_QUERIES)
def test_what_is_no_query_is_refused(server: SubgraphServer, body: bytes, status: int) -> None:
    seen, answer = send(server.url, body, {"Content-Type": "application/json"})
    assert (seen, "error" in json.loads(answer)) == (status, status == 400)


def test_unknown_paths_and_deployments_are_not_found(server: SubgraphServer) -> None:
    body = b'{"query":"{_meta{deployment}}"}'
    for path in ("/", "/foo/bar", "/subgraphs/name/positions/more"):
        assert send(server.url, body, {}, path=path) == (200, b'{"message":"Not found"}')
    assert send(server.url, body, {}, method="PUT") == (200, b'{"message":"Not found"}')
    missing = send(server.url, body, {}, path="/subgraphs/name/nope")
    assert missing == (200, b'{"errors":[{"message":"deployment `nope` does not exist"}]}')


def test_skip_is_limited() -> None:
    with serve() as server:
        message = "The `skip` argument must be between 0 and 5000, but is 5001"
        assert ask(server.url, "{conditions(skip:5001){id}}") == {"errors": [{"message": message}]}


def test_a_block_that_was_pruned_is_refused() -> None:
    with serve(earliest_block=5) as server:
        message = ask(server.url, "{conditions(block:{number:4}){id}}")["errors"][0]["message"]
        assert message == (
            f"Failed to decode `block.number` value: `subgraph {DEPLOYMENT} only has data starting at block "
            "number 5 and data for block number 4 is therefore not available`"
        )
        assert ask(server.url, "{conditions(first:1,block:{number:5}){id}}") == {
            "data": {"conditions": [{"id": cid(0)}]}
        }
        assert ask(server.url, "{conditions(first:1,block:{number_gte:4}){id}}") == {
            "data": {"conditions": [{"id": cid(0)}]}
        }


def test_the_path_of_goldsky_serves_known_names_and_versions_only(server: SubgraphServer) -> None:
    assert ask(server.goldsky_url, "{conditions(first:1){id}}") == {"data": {"conditions": [{"id": cid(0)}]}}
    body = b'{"query":"{conditions(first:1){id}}"}'
    wrong = server.goldsky_url.replace("0.0.7", "9.9.9")
    assert send(wrong, body, {"Content-Type": "application/json"}) == (404, b"Not Found")


def test_the_pnl_schema_has_empty_numerators_until_the_condition_is_resolved() -> None:
    with serve(schema="numerators") as server:
        query = "query($ids:[ID!]){conditions(where:{id_in:$ids}){id payoutNumerators payoutDenominator}}"
        thirds, unresolved, halves = cid(3), cid(4), cid(1)
        assert ask(server.url, query, {"ids": [thirds, unresolved, halves]})["data"]["conditions"] == [
            {"id": halves, "payoutNumerators": ["1", "1"], "payoutDenominator": "2"},
            {"id": thirds, "payoutNumerators": ["1", "2"], "payoutDenominator": "3"},
            {"id": unresolved, "payoutNumerators": [], "payoutDenominator": "0"},
        ]
        assert "'payouts'" in ask(server.url, "{conditions(first:1){payouts}}")["errors"][0]["message"]
        resolved = ask(server.url, '{conditions(first:2,where:{payoutDenominator_gt:"2"}){id}}')
        assert resolved == {"data": {"conditions": [{"id": cid(3)}, {"id": cid(13)}]}}


def test_a_failed_deployment_denies_data() -> None:
    failed = [{"message": "indexing_error"}]
    with serve() as server:
        server.faults.add("failed")
        assert ask(server.url, "{conditions(first:1){id}}") == {"errors": failed}
        both = ask(server.url, "{conditions(first:1){id} _meta{hasIndexingErrors}}")
        assert both == {"data": {"_meta": {"hasIndexingErrors": True}}, "errors": failed}
        assert ask(server.url, "{m:_meta{hasIndexingErrors}}") == {"errors": failed}


def test_the_head_moves_on_when_the_chain_advances() -> None:
    growing = chain()
    growing.advancing = True
    growing.started_at -= 2 * 100
    with serve(chain=growing) as server:
        assert ask(server.url, "{_meta{block{number}}}")["data"]["_meta"]["block"]["number"] >= HEAD + 100


# -- filters against a slow reading of the same rows --------------------------------------------------------------------

SMALL = [
    ConditionRow(name, payouts, created, created + 3)
    for name, payouts, created in (
        ("a", ("1", "0"), 1),
        ("aa", None, 1),
        ("b", (), 2),
        ("c", ("0.5", "0.5"), 3),
        ("d", ("0", "1"), 4),
        ("e", None, 5),
        ("f", ("0.2", "0.3", "0.5"), 6),
        ("~", ("1", "0"), 9),
    )
]
NAMES = st.sampled_from([row.id for row in SMALL] + ["", "b~", "zz", "A"])
FILTERS = st.fixed_dictionaries(
    {},
    optional={"id_in": st.lists(NAMES, max_size=4), "id_gt": NAMES, "id_lt": NAMES, "payouts_not": st.none()},
)


def slowly(row: ConditionRow, block: int, where: dict[str, Any]) -> bool:
    """Whether a row is there and matches, by the words of the list of facts."""
    return (
        row.created_block <= block
        and ("id_in" not in where or row.id in where["id_in"])
        and ("id_gt" not in where or row.id > where["id_gt"])
        and ("id_lt" not in where or row.id < where["id_lt"])
        and ("payouts_not" not in where or (row.payouts is not None and row.resolved_block <= block))
    )


@pytest.fixture(scope="module")
def small() -> Engine:
    return Engine(ConditionStore.from_rows(SMALL), chain())


@given(FILTERS, st.integers(0, HEAD), st.integers(1, 9), st.integers(0, 9), st.booleans())
def test_any_filter_selects_what_a_slow_reading_selects(
    small: Engine, where: dict[str, Any], block: int, first: int, skip: int, descending: bool
) -> None:
    matching = [row.id for row in SMALL if slowly(row, block, where)]
    expected = (matching[::-1] if descending else matching)[skip : skip + first]
    text = (
        "query($w:Condition_filter,$b:Int,$f:Int,$s:Int,$d:OrderDirection)"
        "{conditions(where:$w,block:{number:$b},first:$f,skip:$s,orderBy:id,orderDirection:$d){id}}"
    )
    variables = {"w": where, "b": block, "f": first, "s": skip, "d": "desc" if descending else "asc"}
    assert small.answer(text, variables).body == {"data": {"conditions": [{"id": identity} for identity in expected]}}
