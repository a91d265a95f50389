"""Where a benchmark runs: generated ids with their truth, a local subgraph in a process of its own, fresh directories."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from benchmarks import measure
from benchmarks.measure import Measured
from payout_pipeline.subgraph.generate import GeneratedData, expected_vectors, generate

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
LIMIT = "50/10s"
LATENCY = 0.3


@dataclass
class Requests:
    """What the subgraph counted of a run."""

    count: int
    span: float
    refused: int
    most_in_window: int


@dataclass
class Run:
    """A measured command, the requests that it sent, and what is wrong with the rows it left ("" where nothing is)."""

    measured: Measured
    requests: Requests
    home: Path
    wrong: str

    @property
    def wall(self) -> float:
        """Seconds of the whole command."""
        return self.measured.wall


class Subgraph:
    """``payout-pipeline subgraph`` over generated conditions, with the limit and the latency on or off."""

    def __init__(self, data: GeneratedData, limited: bool) -> None:
        command = [str(BIN / "payout-pipeline"), "subgraph", "--conditions", str(data.conditions), "--port", "0"]
        command += ["--rate-limit", LIMIT, "--latency", str(LATENCY)] if limited else []
        self.limited = limited
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = self._process.stdout.readline() if self._process.stdout else ""
        if "http://" not in line:
            raise RuntimeError(f"the local subgraph did not start: {line!r}")
        self.url = line[line.index("http://") :].strip()

    def _log(self, method: str) -> bytes:
        url = urlsplit(self.url)._replace(path="/_control/log").geturl()
        request = Request(url, method=method)  # noqa: S310 - our own process on loopback
        with urlopen(request, timeout=30) as response:  # noqa: S310
            content: bytes = response.read()
        return content

    def requests(self) -> Requests:
        """Of all requests since :meth:`forget`."""
        log = json.loads(self._log("GET"))
        arrived = [request["arrived"] for request in log["requests"]]
        refused = sum(request["status"] == 429 for request in log["requests"])
        span = max(arrived) - min(arrived) if arrived else 0.0
        return Requests(len(arrived), span, refused, log["max_in_window"])

    def forget(self) -> None:
        """Empty the log."""
        self._log("DELETE")

    def forget_after_a_window(self) -> None:
        """Empty the log once a window of the limit has passed since the last request: the next run knows nothing of it."""
        arrived = [request["arrived"] for request in json.loads(self._log("GET"))["requests"]]
        if self.limited and arrived:  # the monotonic clock is one for all processes of a machine
            time.sleep(max(0.0, max(arrived) + 10.5 - time.monotonic()))
        self.forget()

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait(20)


class Place:
    """One set of ids with its truth, under ``directory``."""

    def __init__(self, directory: Path, ids: int) -> None:
        self.directory = directory
        self.ids = ids
        self.data = generate(ids, 1, directory / "data")
        self._truth: Counter[str] | None = None
        self._runs = 0
        self.finished: Path | None = None
        """Where a finished backfill is, for what comes after one."""

    @contextlib.contextmanager
    def subgraph(self, *, limited: bool) -> Iterator[Subgraph]:
        """A subgraph over the ids."""
        server = Subgraph(self.data, limited)
        try:
            yield server
        finally:
            server.close()

    def fresh(self) -> Path:
        """A new working directory with an initialised Dagster home in it."""
        self._runs += 1
        home = self.directory / f"run-{self._runs:02d}"
        home.mkdir()
        shutil.copy(ROOT / "dagster.yaml", home)
        command = [sys.executable, "-c", "import dagster as dg; dg.DagsterInstance.get().dispose()"]
        subprocess.run(command, env={**os.environ, "DAGSTER_HOME": str(home)}, check=True)
        return home

    def environment(self, home: Path, server: Subgraph, extra: Mapping[str, str]) -> dict[str, str]:
        """Of a command; nothing of the user's own variables reaches it."""
        return {
            "PATH": f"{BIN}{os.pathsep}/usr/bin:/bin",
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(ROOT),
            "DAGSTER_HOME": str(home),
            "PAYOUT_RUNTIME_DIR": str(home / "runtime"),
            "CONDITION_IDS_FILE": str(self.data.ids),
            "GOLDSKY_ENDPOINT": server.url,
            "GOLDSKY_RATE_LIMIT": LIMIT if server.limited else "1000000/1s",
            **extra,
        }

    def run(
        self,
        server: Subgraph,
        command: Sequence[str],
        *,
        home: Path | None = None,
        extra: Mapping[str, str] | None = None,
        compare: bool = True,
        kill_after: int = 0,
        timeout: float = 600,
    ) -> Run:
        """Measure a command. ``kill_after``: kill it with ``kill -9`` once so many requests were answered."""
        if home is None:
            home = self.fresh()
            server.forget_after_a_window()
        else:  # its rate limit counts the requests of the run before
            server.forget()

        def kill(running: measure.Running) -> None:
            while server.requests().count < kill_after:
                time.sleep(0.05)
            running.kill()

        measured = measure.run(
            [str(BIN / command[0]), *command[1:]],
            env=self.environment(home, server, extra or {}),
            cwd=home,
            log=home / f"{Path(command[0]).name}.log",
            timeout=timeout,
            meanwhile=kill if kill_after else None,
        )
        wrong = ""
        if not kill_after:
            wrong = f"exit code {measured.exit_code}" if measured.exit_code else ""
            if compare and not wrong:
                wrong = self.compare(home, server)
        return Run(measured, server.requests(), home, wrong)

    def compare(self, home: Path, server: Subgraph) -> str:
        """Every raw row of the table and of the view against the truth; "" where they are the same."""
        if self._truth is None:
            rows = expected_vectors(self.data.conditions)
            self._truth = Counter(f"{i}\t[{','.join(map(str, numerators))}]\t{of}" for i, numerators, of in rows)
        for table in ("default.resolutions_external_ingest", "cascadian_clean.vw_resolutions_truth"):
            sql = f"SELECT condition_id, payout_numerators, payout_denominator FROM {table} FORMAT TSV"  # noqa: S608
            done = subprocess.run(
                [str(BIN / "payout-pipeline"), "sql", sql],
                env=self.environment(home, server, {}),
                cwd=home,
                capture_output=True,
                text=True,
                check=False,
            )
            stored = Counter(done.stdout.splitlines())
            if stored != self._truth:
                return f"{table}: {stored.total():,} rows are not the {self._truth.total():,} of the truth"
        return ""
