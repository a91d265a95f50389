"""A partition backfill as the UI launches it: through the webserver's GraphQL, carried out by the daemon."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from urllib.request import Request, urlopen

import pytest

from payout_pipeline.subgraph.server import SubgraphConfig, SubgraphServer
from payout_pipeline_tests.running import REPOSITORY, Place, as_counter, truth_of
from payout_pipeline_tests.test_end_to_end import REAL_BAR, split_unknown

LAUNCH = """
mutation Launch($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""
STATUS = """
query Status($id: String!) {
  partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status numPartitions } }
}
"""


def _ask(port: int, query: str, variables: dict[str, object]) -> dict[str, object]:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = Request(f"http://127.0.0.1:{port}/graphql", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=30) as response:
        answer = json.load(response)
    assert "errors" not in answer, answer
    return answer["data"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("schema", ["payouts", "numerators"])
def test_a_partition_backfill_from_the_ui_stores_all_real_vectors_and_builds_the_view_once(tmp_path, real_data, schema):
    truth = truth_of(real_data / "resolutions.csv")
    unresolved, _ = split_unknown(real_data, tmp_path)
    config = SubgraphConfig(conditions=real_data / "resolutions.csv", unresolved=unresolved, schema=schema)
    with SubgraphServer(config) as server:
        place = Place(tmp_path, server.url, real_data / "condition_ids.txt", REAL_BAR)
        port = _free_port()
        environment = place.environment
        environment.pop("DAGSTER_MODULE_NAME")
        command = [sys.executable, "-m", "dagster", "dev", "--host", "127.0.0.1", "--port", str(port)]
        command += ["-w", str(REPOSITORY / "workspace.yaml")]
        with (tmp_path / "ui.log").open("w") as log:
            ui = subprocess.Popen(
                command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            _until_ready(port)
            selector = {
                "assetSelection": [
                    {"path": [name]}
                    for name in ("goldsky_payouts", "resolutions_external_ingest", "vw_resolutions_truth")
                ],
                "partitionNames": [f"worker_{n}_of_4" for n in range(1, 5)],
                "allPartitions": False,
            }
            launched = _ask(port, LAUNCH, {"params": selector})["launchPartitionBackfill"]
            assert launched["__typename"] == "LaunchBackfillSuccess", launched
            deadline = time.monotonic() + 400
            status = ""
            while status not in ("COMPLETED_SUCCESS", "COMPLETED_FAILED", "COMPLETED", "FAILED", "CANCELED"):
                assert time.monotonic() < deadline, f"the backfill is still {status}"
                time.sleep(2)
                status = _ask(port, STATUS, {"id": launched["backfillId"]})["partitionBackfillOrError"]["status"]
            assert status == "COMPLETED_SUCCESS", (tmp_path / "ui.log").read_text()[-4000:]
        finally:
            ui.terminate()
            ui.wait(30)
    assert place.stored() == as_counter(truth)
    assert sum(place.ledger_counts().values()) == 32_314
    assert place.run("report").returncode == 0


def _until_ready(port: int) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            _ask(port, "query Ready { version }", {})
            return
        except OSError:
            assert time.monotonic() < deadline, "the webserver did not start"
            time.sleep(1)
