"""The conformance list against a real graph-node, the local subgraph beside it, and the whole backfill through it.

``make test-graph-node``; what it needs is installed by ``tools/graph_node_setup.sh``.
"""

from __future__ import annotations

import contextlib
import csv
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pandas
import pytest

from payout_pipeline.subgraph.chain import Chain
from payout_pipeline.subgraph.decimals import integer_vector
from payout_pipeline.subgraph.server import SubgraphConfig, SubgraphServer
from payout_pipeline.subgraph.store import ConditionRow, ConditionStore
from payout_pipeline.warehouse.identifiers import QualifiedName
from payout_pipeline.warehouse.statements import statement
from payout_pipeline_tests.clickhouse_front import running
from payout_pipeline_tests.graph_node.gateway import gateway
from payout_pipeline_tests.graph_node.node import ROOM, SUBGRAPHS, GraphNode, query
from payout_pipeline_tests.running import REPOSITORY, Place
from payout_pipeline_tests.subgraph.test_subgraph_conformance import check, send, serve
from payout_pipeline_tests.subgraph_conformance import (
    CASES,
    NO_QUERIES,
    PNL_QUERIES,
    QUERIES,
    ROWS,
    Case,
    chain,
    cid,
    means,
    normalised,
)
from payout_pipeline_tests.warehouse_fixtures import WRITER

pytestmark = [
    pytest.mark.graph_node,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not (ROOM / "node_modules").exists(), reason="tools/graph_node_setup.sh has not been run"),
]

DATA = REPOSITORY.parent / "shared" / "data"
JSON = {"Content-Type": "application/json"}
LOCAL_SCHEMAS = {"positions": "payouts", "pnl": "numerators"}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GraphNode]:
    with GraphNode(tmp_path_factory.mktemp("graph-node"), chain(), statement_timeout=5) as running:
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
    """Status and body without the deployment's own id."""
    status, body = send(url, json.dumps({"query": text, "variables": variables}).encode(), JSON)
    deployment = query(url, "{_meta{deployment}}")["data"]["_meta"]["deployment"]
    return status, normalised(json.loads(body), deployment)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_graph_node_answers_as_the_list_says(node: GraphNode, case: Case) -> None:
    status, body = answer(node.url("positions"), case.query, case.variables)
    assert status == 200
    check(case, body)
    if isinstance(case.expected, str):
        assert body["errors"][0]["message"].startswith(case.expected)


@pytest.mark.parametrize(("body", "status"), NO_QUERIES)
def test_graph_node_refuses_what_is_no_query(node: GraphNode, body: bytes, status: int) -> None:
    assert send(node.url("positions"), body, JSON)[0] == status


@pytest.mark.parametrize(("text", "variables"), QUERIES, ids=range(len(QUERIES)))
def test_the_local_subgraph_answers_as_graph_node_does(
    node: GraphNode, positions: SubgraphServer, text: str, variables: dict[str, Any]
) -> None:
    local, real = answer(positions.url, text, variables), answer(node.url("positions"), text, variables)
    assert (local[0], means(local[1])) == (real[0], means(real[1]))


@pytest.mark.parametrize(("text", "variables"), PNL_QUERIES, ids=range(len(PNL_QUERIES)))
def test_the_pnl_schema_answers_as_graph_node_does(
    node: GraphNode, pnl: SubgraphServer, text: str, variables: dict[str, Any]
) -> None:
    local, real = answer(pnl.url, text, variables), answer(node.url("pnl"), text, variables)
    assert (local[0], means(local[1])) == (real[0], means(real[1]))


def test_a_cancelled_statement_is_said_as_by_the_fault(node: GraphNode, positions: SubgraphServer) -> None:
    text = 'query($ids:[ID!]!){conditions(first:1000,where:{id_in:$ids,id_gt:"0"}){id}}'
    wanted = {"ids": [cid(n) for n in range(100, 105)]}
    with node.locked("positions"):
        real = query(node.url("positions"), text, wanted)
    positions.faults.add("statement_timeout", times=1)
    local = query(positions.url, text, wanted)
    for answer_ in (real, local):
        assert list(answer_) == ["errors"]
        (message,) = (error["message"] for error in answer_["errors"])
        assert message.startswith("Failed to get entities from store: canceling statement due to statement timeout")
        assert all(identity in message for identity in wanted["ids"])
    assert len(query(node.url("positions"), text, wanted)["data"]["conditions"]) == 5


def test_a_database_that_is_away_is_said_and_comes_back(node: GraphNode) -> None:
    text = "{conditions(first:3,skip:7){id}}"
    with node.without_database():
        assert _until(lambda: query(node.url("positions"), text)).get("errors") == [
            {"message": "Store error: database unavailable"}
        ]
    expected = {"data": {"conditions": [{"id": cid(n)} for n in (7, 8, 9)]}}
    assert _until(lambda: query(node.url("positions"), text), lambda body: body == expected) == expected


def _until(
    ask: Callable[[], dict[str, Any]], wanted: Callable[[dict[str, Any]], bool] = lambda _body: True
) -> dict[str, Any]:
    """The first wanted answer, or the last one within half a minute."""
    deadline = time.monotonic() + 30
    while True:
        body = ask()
        if wanted(body) or time.monotonic() > deadline:
            return body
        time.sleep(0.25)


# -- the whole backfill -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RealData:
    """The ids of the input file, what of them a subgraph has, and what has to come out."""

    ids: Path
    rows: list[ConditionRow]
    vectors: dict[str, tuple[tuple[int, ...], int]]
    statuses: dict[str, str]


@pytest.fixture(scope="module")
def real_data() -> RealData:
    """Outcomes from public records; of the ids without one every other is unresolved and the rest is unknown."""
    if not DATA.exists():
        pytest.skip("the real data is not here")
    with (DATA / "resolutions.csv").open(newline="") as file:
        outcomes = {row["condition_id"]: tuple(json.loads(row["payouts"])) for row in csv.DictReader(file)}
    every = (DATA / "condition_ids.txt").read_text().split()
    open_ids = sorted(set(every) - outcomes.keys())
    unresolved, absent = open_ids[::2], open_ids[1::2]
    rows = [ConditionRow(f"0x{identity}", payouts, 1, 10) for identity, payouts in outcomes.items()]
    rows += [ConditionRow(f"0x{identity}", None, 1) for identity in unresolved]
    vectors = {}
    for identity, payouts in outcomes.items():
        numerators, denominator = integer_vector(payouts)
        vectors[identity] = (tuple(numerators), denominator)
    statuses = {
        **dict.fromkeys(outcomes, "resolved"),
        **dict.fromkeys(unresolved, "unresolved"),
        **dict.fromkeys(absent, "absent"),
    }
    return RealData(DATA / "condition_ids.txt", rows, vectors, statuses)


@pytest.fixture(scope="module")
def filled_node(tmp_path_factory: pytest.TempPathFactory, real_data: RealData) -> Iterator[GraphNode]:
    """A chain whose head is as old as now and further along than the margin at which a run is pinned."""
    growing_old = Chain(head_number=300, genesis=int(time.time()) - 600)
    with GraphNode(tmp_path_factory.mktemp("filled"), growing_old) as running:
        running.load("positions", real_data.rows)
        running.load("pnl", real_data.rows)
        yield running


@contextlib.contextmanager
def warehouse(kind: str, directory: Path) -> Iterator[dict[str, str]]:
    """The environment of a ClickHouse that is new: the embedded one, or one behind HTTP with the user's table in it."""
    if kind == "embedded":
        yield {}
        return
    with running(directory / "front") as front:
        user, password = WRITER
        create = statement("create_market_resolutions", table=QualifiedName("default", "market_resolutions_final"))
        headers = {"X-ClickHouse-User": user, "X-ClickHouse-Key": password}
        with urlopen(Request(front.url, create.encode(), headers), timeout=30):
            pass
        login = {"CLICKHOUSE_USER": user, "CLICKHOUSE_PASSWORD": password}
        yield {"CLICKHOUSE_HOST": front.url, **login, "PAYOUT_PNL_VIEW": ""}
        assert any(sent["sql"].startswith("INSERT") for sent in front.counters().statements)


@contextlib.contextmanager
def local(real_data: RealData, chain: Chain, schema: str) -> Iterator[str]:
    store = ConditionStore.from_rows(real_data.rows)
    with SubgraphServer(SubgraphConfig(store, chain=chain, schema=LOCAL_SCHEMAS[schema])) as server:
        yield server.url


def backfill(
    directory: Path, endpoint: str, kind: str, real_data: RealData, **environment: str
) -> Counter[tuple[object, ...]]:
    """Every raw row that the command stores in a new ClickHouse, after a look at the view and the ledgers."""
    directory.mkdir()
    with warehouse(kind, directory) as extra:
        place = Place(
            directory, endpoint, real_data.ids, {"PAYOUT_MIN_UNIQUE_CONDITIONS": "0.36", **extra, **environment}
        )
        done = place.run("backfill", timeout=300)
        assert done.returncode == 0, done.stdout[-6000:]
        rows = place.query(
            "SELECT condition_id, payout_numerators AS n, toString(payout_denominator) AS d, winning_index, resolved_at, "
            "source FROM default.resolutions_external_ingest"
        )
        assert place.query(
            "SELECT count() AS n, uniqExact(condition_id) AS u FROM cascadian_clean.vw_resolutions_truth"
        ) == [{"n": len(real_data.vectors), "u": len(real_data.vectors)}]
    kept = pandas.concat(pandas.read_parquet(path) for path in place.runtime.glob("goldsky_payouts/*/ledger.parquet"))
    assert Counter(zip(kept["condition_id"], kept["status"], strict=True)) == Counter(real_data.statuses.items())
    assert set(kept["block_number"]) == {50}
    return Counter(
        (r["condition_id"], tuple(map(int, r["n"])), int(r["d"]), r["winning_index"], r["resolved_at"], r["source"])
        for r in rows
    )


@pytest.mark.timeout(900)
def test_one_backfill_stores_the_same_rows_from_both_subgraphs_with_both_schemas_embedded_and_over_http(
    filled_node: GraphNode, real_data: RealData, tmp_path: Path
) -> None:
    stored = {}
    for schema in SUBGRAPHS:
        with local(real_data, filled_node.chain, schema) as local_url:
            for origin, endpoint in (("graph-node", filled_node.url(schema)), ("local", local_url)):
                for kind in ("embedded", "http"):
                    one = (schema, origin, kind)
                    stored[one] = backfill(tmp_path / "-".join(one), endpoint, kind, real_data)
    truth = truth_of(real_data)
    assert len(truth) == 11_927
    assert {one: rows == truth for one, rows in stored.items()} == dict.fromkeys(stored, True)
    assert len(stored) == 8


def test_behind_a_gateway_with_the_limit_all_ids_are_asked_within_one_window(
    filled_node: GraphNode, real_data: RealData, tmp_path: Path
) -> None:
    with gateway(filled_node.url("positions"), 50, 10.0) as seen:
        stored = backfill(tmp_path / "gateway", seen.url, "embedded", real_data, GOLDSKY_RATE_LIMIT="50/10s")
    assert stored == truth_of(real_data)
    figures = f"{len(seen.arrivals)} requests in {seen.span:.1f} s, {seen.refused} refused"
    print(figures)
    assert len(seen.arrivals) <= 40, figures
    assert seen.span <= 6, figures
    assert not seen.refused, figures


def truth_of(real_data: RealData) -> Counter[tuple[object, ...]]:
    """The rows that a backfill of the real ids has to store."""
    return Counter(
        (identity, numerators, denominator, _winner(numerators), None, "goldsky-api")
        for identity, (numerators, denominator) in real_data.vectors.items()
    )


def _winner(numerators: tuple[int, ...]) -> int:
    most = max(numerators)
    return numerators.index(most) if numerators.count(most) == 1 else -1
