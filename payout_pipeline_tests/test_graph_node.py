"""The conformance list against a real graph-node, the local subgraph beside it, and the whole backfill through it.

``make test-graph-node``; what it needs is installed by ``tools/graph_node_setup.sh``.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from payout_pipeline.subgraph.chain import Chain
from payout_pipeline.subgraph.server import SubgraphServer
from payout_pipeline_tests.graph_node.node import ROOM, GraphNode, query
from payout_pipeline_tests.subgraph_conformance import (
    CASES,
    HEAD,
    HTTP_CASES,
    MORE_QUERIES,
    PNL_QUERIES,
    ROWS,
    Case,
    HttpCase,
    chain,
    normalised,
)
from payout_pipeline_tests.test_subgraph_conformance import send, serve

pytestmark = [
    pytest.mark.graph_node,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not (ROOM / "node_modules").exists(), reason="tools/graph_node_setup.sh has not been run"),
]

DATA = Path(__file__).parents[2] / "shared" / "data"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GraphNode]:
    with GraphNode(tmp_path_factory.mktemp("graph-node"), chain()) as running:
        running.load("positions", ROWS)
        running.load("pnl", ROWS)
        yield running


@pytest.fixture(scope="module")
def positions() -> Iterator[SubgraphServer]:
    with serve() as server:
        yield server


@pytest.fixture(scope="module")
def pnl() -> Iterator[SubgraphServer]:
    with serve(schema="numerators") as server:
        yield server


def answer(url: str, text: str, variables: dict[str, Any]) -> Any:
    """Status and body without the deployment's own id; a connection that ends without an answer is one too."""
    try:
        status, body = send(url, json.dumps({"query": text, "variables": variables}).encode(), JSON)
    except OSError as error:
        return type(error).__mro__[-4].__name__
    deployment = query(url, "{_meta{deployment}}")["data"]["_meta"]["deployment"]
    return status, normalised(json.loads(body), deployment)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_graph_node_answers_as_the_list_says(node: GraphNode, case: Case) -> None:
    status, body = answer(node.url("positions"), case.query, case.variables)
    assert (status, body) == (200, case.expected)
    if "data" in case.expected:
        assert list(body["data"]) == list(case.expected["data"])


@pytest.mark.parametrize("case", HTTP_CASES, ids=str)
def test_graph_node_answers_requests_below_graphql_as_the_list_says(node: GraphNode, case: HttpCase) -> None:
    status, body = send(node.url("positions"), case.body, case.headers, case.method, case.path)
    assert (status, json.loads(body)) == (case.status, case.expected)


@pytest.mark.parametrize(("text", "variables"), MORE_QUERIES, ids=range(len(MORE_QUERIES)))
def test_the_local_subgraph_answers_as_graph_node_does(
    node: GraphNode, positions: SubgraphServer, text: str, variables: dict[str, Any]
) -> None:
    assert answer(positions.url, text, variables) == answer(node.url("positions"), text, variables)


@pytest.mark.parametrize(("text", "variables"), PNL_QUERIES, ids=range(len(PNL_QUERIES)))
def test_the_pnl_schema_answers_as_graph_node_does(
    node: GraphNode, pnl: SubgraphServer, text: str, variables: dict[str, Any]
) -> None:
    assert answer(pnl.url, text, variables) == answer(node.url("pnl"), text, variables)


def test_the_head_is_in_a_header_on_both(node: GraphNode, positions: SubgraphServer) -> None:
    heads = []
    for url in (node.url("positions"), positions.url):
        body = json.dumps({"query": "{conditions(first:1){id}}"})
        command = ["curl", "-sS", "-D", "-", "-o", os.devnull, "-H", "Content-Type: application/json", "-d", body, url]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        heads += [json.loads(line.split(":", 1)[1]) for line in shown.splitlines() if line.startswith("graph-indexed")]
    expected = {"hash": Chain.block_hash(HEAD), "number": HEAD, "timestamp": chain().timestamp(HEAD)}
    assert heads == [expected, expected]


def test_an_undefined_fragment_closes_the_connection_on_both(node: GraphNode, positions: SubgraphServer) -> None:
    for url in (node.url("positions"), positions.url):
        with pytest.raises(ConnectionError):
            send(url, json.dumps({"query": "{conditions(first:1){...Nope}}"}).encode(), JSON)
