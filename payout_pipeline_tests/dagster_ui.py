"""`dagster dev` as a user starts it, with its daemon, and what the buttons of its UI do: the webserver's GraphQL."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import Request, urlopen

from payout_pipeline.jobs import VIEW_JOB, WORKER_JOB
from payout_pipeline_tests.running import REPOSITORY

T = TypeVar("T")
ASSETS = ("goldsky_payouts", "resolutions_external_ingest", "vw_resolutions_truth")
ENDED = {"COMPLETED_SUCCESS", "COMPLETED_FAILED", "COMPLETED", "FAILED", "CANCELED"}
FINISHED = {"SUCCESS", "FAILURE", "CANCELED"}

_LAUNCHED = """{
  __typename
  ... on LaunchBackfillSuccess { backfillId }
  ... on PythonError { message }
}"""
_BACKFILL = (
    "mutation Backfill($params: LaunchBackfillParams!) { done: launchPartitionBackfill(backfillParams: $params) %s }"
)
_AGAIN = (
    "mutation Again($params: ReexecutionParams!) { done: reexecutePartitionBackfill(reexecutionParams: $params) %s }"
)
_STATUS = """query Status($id: String!) { partitionBackfillOrError(backfillId: $id) {
  ... on PartitionBackfill { status numPartitions }
} }"""
_LAUNCH = """mutation Launch($params: ExecutionParams!) { done: launchRun(executionParams: $params) {
  __typename
  ... on LaunchRunSuccess { run { runId } }
  ... on PythonError { message }
} }"""
_TERMINATE = """mutation Terminate($id: String!) { done: terminateRun(runId: $id) {
  __typename
  ... on TerminateRunFailure { message }
  ... on PythonError { message }
} }"""
_RUNS = """query Runs { runsOrError { ... on Runs { results {
  runId status tags { key value } assetSelection { path }
} } } }"""
_LOG = """query Log($id: ID!) { logsForRun(runId: $id) { ... on EventConnection { events {
  __typename
  ... on MessageEvent { message }
} } } }"""


@dataclass(frozen=True)
class Run:
    """A run as the UI lists it."""

    run_id: str
    status: str
    tags: Mapping[str, str]
    assets: frozenset[str]

    @property
    def partition(self) -> str:
        """Its worker; empty for the view."""
        return self.tags.get("dagster/partition", "")


@dataclass
class DagsterUi:
    """One `dagster dev`. ``environment`` is that of its processes; a session of their own, so that all can be ended."""

    directory: Path
    environment: Mapping[str, str]
    port: int = 0
    log: Path = field(init=False)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.log = self.directory / "ui.log"
        self.port = self.port or _free_port()

    def start(self) -> None:
        """Start it and wait for the webserver."""
        command = [sys.executable, "-m", "dagster", "dev", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["-w", str(REPOSITORY / "workspace.yaml")]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command, cwd=self.directory, env=dict(self.environment), stdout=log, stderr=log, start_new_session=True
            )
        self.until("the webserver to answer", self._answers, 120)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.ask("query Ready { version }"))
        return False

    def stop(self) -> None:
        """Ctrl-C, and whatever is left of it after that killed."""
        if self.process is None:
            return
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        self.kill()

    def kill(self) -> None:
        """`kill -9` of everything: webserver, daemon, code server and the runs that they started."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        self.process = None

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """The answer to a GraphQL request."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = Request(f"http://127.0.0.1:{self.port}/graphql", body, {"Content-Type": "application/json"})
        with urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer
        return dict(answer["data"])

    def until(self, what: str, look: Callable[[], T], seconds: float) -> T:
        """Wait for something true."""
        deadline = time.monotonic() + seconds
        while True:
            found = look()
            if found:
                return found
            assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}:\n{self.log.read_text()[-6000:]}"
            time.sleep(0.5)

    # ------------------------------------------------------------------------------------------------------- backfills

    def backfill(self, partitions: Sequence[str], assets: Sequence[str] = ASSETS) -> str:
        """Launch a partition backfill of the assets, and return its id."""
        selector = {
            "assetSelection": [{"path": [name]} for name in assets],
            "partitionNames": list(partitions),
            "allPartitions": False,
        }
        return self._launched(self.ask(_BACKFILL % _LAUNCHED, params=selector))

    def again_from_failure(self, backfill: str) -> str:
        """The button *Re-execute from failure* of a backfill that has ended."""
        params = {"parentRunId": backfill, "strategy": "FROM_FAILURE"}
        return self._launched(self.ask(_AGAIN % _LAUNCHED, params=params))

    def _launched(self, answer: dict[str, Any]) -> str:
        assert answer["done"]["__typename"] == "LaunchBackfillSuccess", answer
        return str(answer["done"]["backfillId"])

    def ended(self, backfill: str, seconds: float = 400) -> str:
        """How the backfill ended."""

        def look() -> str:
            status = str(self.ask(_STATUS, id=backfill)["partitionBackfillOrError"]["status"])
            return status if status in ENDED else ""

        return self.until(f"the end of backfill {backfill}", look, seconds)

    # ------------------------------------------------------------------------------------------------------------ runs

    def launch(self, partition: str | None = None) -> str:
        """Launch a run of one worker; of the view if none is named."""
        params = {
            "selector": {
                "repositoryLocationName": "payout_pipeline", "repositoryName": "__repository__",
                "jobName": WORKER_JOB if partition else VIEW_JOB,
            },
            "executionMetadata": {"tags": [{"key": "dagster/partition", "value": partition}] if partition else []},
        }  # fmt: skip
        answer = self.ask(_LAUNCH, params=params)
        assert answer["done"]["__typename"] == "LaunchRunSuccess", answer
        return str(answer["done"]["run"]["runId"])

    def terminate(self, run_id: str) -> None:
        """The button *Terminate*."""
        answer = self.ask(_TERMINATE, id=run_id)
        assert answer["done"]["__typename"] == "TerminateRunSuccess", answer

    def runs(self, backfill: str | None = None) -> list[Run]:
        """All runs, latest first; those of one backfill if it is named."""
        found = [
            Run(
                run["runId"], run["status"], {tag["key"]: tag["value"] for tag in run["tags"]},
                frozenset("/".join(key["path"]) for key in run["assetSelection"] or ()),
            )
            for run in self.ask(_RUNS)["runsOrError"]["results"]
        ]  # fmt: skip
        return [run for run in found if backfill is None or run.tags.get("dagster/backfill") == backfill]

    def run(self, run_id: str) -> Run:
        """One run."""
        return next(run for run in self.runs() if run.run_id == run_id)

    def finished(self, run_id: str, seconds: float = 120) -> str:
        """How the run ended."""
        self.until(f"the end of run {run_id}", lambda: self.run(run_id).status in FINISHED, seconds)
        return self.run(run_id).status

    def log_of(self, run_id: str) -> str:
        """The messages of a run's event log."""
        events = self.ask(_LOG, id=run_id)["logsForRun"]["events"]
        return "\n".join(str(event.get("message", "")) for event in events)

    def pid_of(self, run_id: str) -> int:
        """The process of a run, as its log names it."""
        found = re.search(r"Started process for run \(pid: (\d+)\)", self.log_of(run_id))
        assert found, self.log_of(run_id)
        return int(found[1])

    # ----------------------------------------------------------------------------------------------------------- pools


@contextlib.contextmanager
def dagster_dev(directory: Path, environment: Mapping[str, str]) -> Iterator[DagsterUi]:
    """A `dagster dev` of which nothing is left afterwards."""
    kept = {name: value for name, value in environment.items() if name != "DAGSTER_MODULE_NAME"}
    ui = DagsterUi(directory, kept)
    try:
        ui.start()
        yield ui
    finally:
        ui.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
