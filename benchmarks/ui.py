"""A backfill of all partitions as the UI launches it: ``dagster dev`` with its daemon, and the webserver's GraphQL."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

_LAUNCH = """
mutation Launch($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
    ... on UnauthorizedError { message }
  }
}
"""
_STATUS = """
query Status($id: String!) {
  partitionBackfillOrError(backfillId: $id) { __typename ... on PartitionBackfill { status } }
}
"""


@contextlib.contextmanager
def dagster_dev(
    python: Path, module: str, env: Mapping[str, str], cwd: Path, log: Path, ready_seconds: float = 90
) -> Iterator[int]:
    """Webserver and daemon of a module on a free port, until they answer; everything is ended afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [str(python), "-m", "dagster", "dev", "-m", module, "-h", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=dict(env), cwd=cwd, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + ready_seconds
        while True:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                answer = query(port, "{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }")
                if answer["repositoriesOrError"]["nodes"]:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"dagster dev of {module} did not start: see {log}")
            time.sleep(0.2)
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def query(port: int, text: str, variables: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One request to the webserver's GraphQL; raises ValueError with its errors."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        body = json.dumps({"query": text, "variables": dict(variables or {})})
        connection.request("POST", "/graphql", body, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    if answer.get("errors"):
        raise ValueError(json.dumps(answer["errors"])[:2000])
    data: dict[str, Any] = answer["data"]
    return data


def backfill(port: int, assets: Sequence[str], partitions: Sequence[str], timeout: float) -> tuple[float, str]:
    """Launch, and wait for the end. Returns seconds from the launch to the final status, and that status."""
    params = {"assetSelection": [{"path": [asset]} for asset in assets], "partitionNames": list(partitions)}
    started = time.perf_counter()
    launched = query(port, _LAUNCH, {"params": params})["launchPartitionBackfill"]
    if launched["__typename"] != "LaunchBackfillSuccess":
        raise ValueError(f"the backfill was not launched: {launched}")
    status = "REQUESTED"
    while time.perf_counter() - started < timeout:
        found = query(port, _STATUS, {"id": launched["backfillId"]})["partitionBackfillOrError"]
        status = str(found.get("status", found["__typename"]))
        if status not in ("REQUESTED", "CANCELING", "FAILING"):
            break
        time.sleep(0.25)
    return time.perf_counter() - started, status
