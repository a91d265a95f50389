"""What the regimes are made of: the prepared server, one run of the pipeline in a directory of its own, its verdict."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from benchmarks import data, measure, ui, verify
from benchmarks.measure import Measured

_READY_SECONDS = 90.0
#: What a server has to have before a backfill, as in the user's warehouse; the embedded engine makes them by itself.
_USERS_TABLES = (
    "CREATE DATABASE IF NOT EXISTS cascadian_clean",
    "CREATE TABLE default.market_resolutions_final (condition_id_norm FixedString(64), payout_numerators Array(UInt8), "
    "payout_denominator UInt8, outcome_count UInt8, winning_outcome LowCardinality(String), winning_index UInt16 DEFAULT 0, "
    "resolved_at Nullable(DateTime), updated_at DateTime, source LowCardinality(String), version UInt8) "
    "ENGINE = ReplacingMergeTree(updated_at) ORDER BY condition_id_norm",
)
_NOT_COMPARED = "not compared with the truth"
_ASSETS = ("goldsky_payouts", "resolutions_external_ingest", "vw_resolutions_truth")


@dataclass(frozen=True, slots=True)
class Report:
    """What the server saw: (arrived, answered, status, ids listed) a request."""

    log: list[tuple[float, float, int, int]]
    most: int

    @property
    def span(self) -> float:
        """Seconds from the first request to the last answer."""
        return max(entry[1] for entry in self.log) - self.log[0][0] if self.log else 0.0

    @property
    def batches(self) -> list[tuple[float, float, int, int]]:
        """The requests that listed ids and were answered."""
        return [entry for entry in self.log if entry[3] and entry[2] == 200]

    @property
    def refused(self) -> int:
        """Answers of 429."""
        return sum(1 for entry in self.log if entry[2] == 429)


class Server:
    """A running prepared server."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def _ask(self, method: str, path: str, body: str = "") -> Any:
        connection = HTTPConnection(urlsplit(self.endpoint).netloc, timeout=30)
        try:
            connection.request(method, path, body)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def configure(self, **options: float) -> None:
        """Latency, jitter, requests, seconds; empties the log."""
        self._ask("POST", "/_control/configure", json.dumps(options))

    def report(self) -> Report:
        """What it saw since it was configured."""
        found = self._ask("GET", "/_control/log")
        return Report([tuple(entry) for entry in found["log"]], found["most_in_window"])


@dataclass
class Run:
    """One run of the pipeline: what it cost, what the server saw, whether the truth was stored (`Harness.settle`)."""

    measured: Measured
    report: Report
    runtime: Path
    work_wall: float = 0.0
    work_cpu: float = 0.0
    wrong: str = _NOT_COMPARED

    @property
    def span(self) -> float:
        """First request to last answer."""
        return self.report.span

    @property
    def batch_span(self) -> float:
        """First batch to last answer."""
        batches = self.report.batches
        return max(entry[1] for entry in batches) - batches[0][0] if batches else 0.0

    @property
    def requests(self) -> int:
        """All requests."""
        return len(self.report.log)

    @property
    def batches(self) -> int:
        """Requests that listed ids."""
        return len(self.report.batches)

    @property
    def refused(self) -> int:
        """Answers of 429."""
        return self.report.refused

    @property
    def most(self) -> int:
        """Most requests within one window, as the server counted."""
        return self.report.most

    @property
    def answered_by_end(self) -> int:
        """Batches whose answer was on its way before the command ended."""
        end = self.measured.started + self.measured.wall
        return sum(1 for entry in self.report.batches if entry[1] <= end)


@dataclass
class Work:
    """One run of ``benchmarks.work``: seconds of all of it, and (wall, CPU) of each part."""

    wall: float
    cpu: float
    parts: dict[str, list[float]]
    runtime: Path
    wrong: str = _NOT_COMPARED


@dataclass(frozen=True)
class _Comparison:
    """A run whose rows are still to be compared with the truth. ``fault``: what is known to be wrong without that."""

    run: Run | Work
    fault: str = ""
    ids: Path | None = None
    url: str | None = None
    view: bool = True
    keep: bool = False


class Harness:
    """Everything below one directory; use as a context manager."""

    def __init__(self, root: Path, place: Path) -> None:
        self.root, self.place = root, place
        self.python = Path(sys.executable)
        self.bin = self.python.parent
        self.kept: Path | None = None
        self._count = 0
        self._to_compare: list[_Comparison] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Harness:
        home = self.place / "home"
        home.mkdir(exist_ok=True)
        shutil.copy(self.root / "dagster.yaml", home / "dagster.yaml")
        self.ids = self.write_ids(data.IDS)
        self.server = self._stack.enter_context(self.prepared(self.ids))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    # --- parts --------------------------------------------------------------------------------------------------

    def write_ids(self, count: int) -> Path:
        """The input file of so many ids."""
        path = self.place / f"ids-{count}.txt"
        return path if path.exists() else self._with_truth(data.write_ids(path, count))

    def _with_truth(self, ids: Path) -> Path:
        ids.with_suffix(".truth").write_text(json.dumps(verify.truth_of(data.read_ids(ids))), encoding="ascii")
        return ids

    @contextlib.contextmanager
    def prepared(self, ids: Path) -> Iterator[Server]:
        """The prepared server over a file of ids."""
        command = ["-m", "benchmarks.prepared_server", "--ids", str(ids), "--prepare", "4x1000", "--prepare", "1x1000"]
        with self._process(command, "server") as line:
            yield Server(line.split("listening on ", 1)[1].strip())

    @property
    def has_front(self) -> bool:
        """Whether ClickHouse can be had as a server: the HTTP front of the tests."""
        return (self.root / "payout_pipeline_tests" / "clickhouse_front.py").exists()

    @contextlib.contextmanager
    def clickhouse(self) -> Iterator[str]:
        """ClickHouse over HTTP on an empty directory; gives its URL."""
        directory = self._fresh("clickhouse")
        command = ["-m", "payout_pipeline_tests.clickhouse_front", "--path", str(directory), "--port", "0"]
        with self._process(command, "front") as line:
            url = line[line.index("http://") :].split()[0].strip()
            for statement in _USERS_TABLES:
                parts = urlsplit(url)
                connection = HTTPConnection(parts.hostname or "", parts.port, timeout=30)
                connection.request("POST", "/", statement)
                answer = connection.getresponse()
                if answer.status != 200:
                    raise RuntimeError(f"{statement}: {answer.read()[:300]!r}")
                connection.close()
            yield url

    @contextlib.contextmanager
    def _process(self, command: Sequence[str], name: str) -> Iterator[str]:
        """A Python process that prints one line when it is ready."""
        with (
            (self.place / f"{name}.log").open("wb") as errors,
            subprocess.Popen(
                [str(self.python), *command], cwd=self.root, stdout=subprocess.PIPE, stderr=errors, text=True
            ) as process,
        ):
            try:
                line = process.stdout.readline() if process.stdout else ""
                if "http://" not in line:
                    raise RuntimeError(f"{command[1]} did not start: {line!r}; see {self.place / f'{name}.log'}")
                yield line
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()

    def _fresh(self, name: str) -> Path:
        self._count += 1
        path = self.place / f"{self._count:03d}-{name}"
        path.mkdir()
        return path

    def _env(
        self, runtime: Path, more: Mapping[str, str], ids: Path | None = None, server: Server | None = None
    ) -> dict[str, str]:
        return {
            "PATH": f"{self.bin}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.place),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(self.root),
            "DAGSTER_HOME": str(self.place / "home"),
            "PAYOUT_RUNTIME_DIR": str(runtime),
            "CONDITION_IDS_FILE": str(ids or self.ids),
            "GOLDSKY_ENDPOINT": (server or self.server).endpoint,
            "GOLDSKY_RATE_LIMIT": "1000000/1s",
            **more,
        }

    def settle(self) -> None:
        """Compare what the runs since the last call have stored with the truth, two at a time; right ones are removed."""
        waiting, self._to_compare = self._to_compare, []
        with ThreadPoolExecutor(2) as pool:
            for comparison, wrong in zip(waiting, pool.map(self._compare, waiting), strict=True):
                comparison.run.wrong = "; ".join(filter(None, (comparison.fault, wrong)))
                runtime = comparison.run.runtime
                if comparison.keep:
                    self.kept = runtime
                elif not comparison.run.wrong and runtime != self.kept:
                    shutil.rmtree(runtime, ignore_errors=True)

    def _compare(self, comparison: _Comparison) -> str:
        ids = comparison.ids or self.ids
        command = [str(self.python), "-m", "benchmarks.verify", str(ids), str(comparison.run.runtime)]
        command += [comparison.url] if comparison.url else []
        command += ["--truth", str(ids.with_suffix(".truth"))] + ([] if comparison.view else ["--no-view"])
        ended = subprocess.run(command, cwd=self.root, capture_output=True, text=True, timeout=300, check=False)
        said = ended.stdout.strip().splitlines()[-1:] or [
            ended.stderr.strip().splitlines()[-1][:300] or "nothing was said"
        ]
        return "" if said == ["right"] and ended.returncode == 0 else said[0]

    # --- runs ---------------------------------------------------------------------------------------------------

    def backfill(
        self,
        name: str,
        more: Mapping[str, str],
        *,
        keep: bool = False,
        pss: bool = False,
        url: str | None = None,
        ids: Path | None = None,
        server: Server | None = None,
        arguments: Sequence[str] = (),
        runtime: Path | None = None,
        timeout: float = 300,
    ) -> Run:
        """``payout-pipeline backfill`` in an empty runtime directory, or in one of an earlier run."""
        runtime = runtime or self._fresh(name)
        since = time.time()
        measured = measure.run(
            [str(self.bin / "payout-pipeline"), "backfill", *arguments],
            env=self._env(runtime, more, ids, server),
            cwd=self.place,
            log=runtime.with_suffix(".log"),
            pss=pss,
            timeout=timeout,
        )
        run = Run(measured, (server or self.server).report(), runtime, *_span_of(runtime, since, measured))
        self._to_compare.append(_Comparison(run, _fault_of(measured), ids, url, keep=keep))
        return run

    def killed_and_resumed(self, more: Mapping[str, str], at: int) -> tuple[Run, Run]:
        """Kill the command and its workers when ``at`` batches were answered, then run it again to its end."""
        runtime = self._fresh("killed")

        def kill(running: measure.Running) -> None:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                now = time.time()
                if sum(1 for entry in self.server.report().batches if entry[1] <= now) >= at:
                    break
                time.sleep(0.1)
            running.kill()

        measured = measure.run(
            [str(self.bin / "payout-pipeline"), "backfill"],
            env=self._env(runtime, more),
            cwd=self.place,
            log=runtime.with_suffix(".killed.log"),
            meanwhile=kill,
        )
        killed = Run(measured, self.server.report(), runtime)
        before = len(killed.report.log)
        again = self.backfill("killed", more, runtime=runtime)
        again.report = Report(again.report.log[before:], again.report.most)
        return killed, again

    def materialize(self, partition: str, more: Mapping[str, str]) -> Run:
        """One partition by ``dagster asset materialize``. What was stored is the chunk's part of the truth."""
        runtime = self._fresh("one-worker")
        since = time.time()
        chunk = self.place / "ids-chunk.txt"
        if not chunk.exists():
            ids = data.read_ids(self.ids)
            chunk.write_text("\n".join(ids[: -(-len(ids) // 4)]) + "\n", encoding="ascii")
            self._with_truth(chunk)
        select = "goldsky_payouts,resolutions_external_ingest"
        measured = measure.run(
            [
                str(self.bin / "dagster"),
                "asset",
                "materialize",
                "-m",
                "payout_pipeline.definitions",
                "--select",
                select,
                "--partition",
                partition,
            ],
            env=self._env(runtime, more),
            cwd=self.place,
            log=runtime.with_suffix(".log"),
        )
        run = Run(measured, self.server.report(), runtime, *_span_of(runtime, since, measured))
        self._to_compare.append(_Comparison(run, _fault_of(measured), chunk, view=False))
        return run

    def trivial(self) -> float:
        """Seconds of ``dagster asset materialize`` of an asset that does nothing, on new storage as the pipeline's."""
        runtime = self._fresh("trivial")
        measured = measure.run(
            [str(self.bin / "dagster"), "asset", "materialize", "-m", "benchmarks.trivial", "--select", "trivial"],
            env=self._env(runtime, {}),
            cwd=self.place,
            log=runtime.with_suffix(".log"),
        )
        if measured.exit_code != 0:
            raise RuntimeError(f"the trivial asset failed:\n{measured.output[-2000:]}")
        shutil.rmtree(runtime, ignore_errors=True)
        return measured.wall

    def bare_loop(self) -> dict[str, float]:
        """The yardstick's own measurement."""
        ended = subprocess.run(
            [str(self.python), "-m", "benchmarks.bare_loop", self.server.endpoint, str(self.ids)],
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        found: dict[str, float] = json.loads(ended.stdout)
        expected = data.statuses(data.read_ids(self.ids))
        if found["rows"] != expected["resolved"] + expected["unresolved"]:
            raise RuntimeError(f"the bare loop got {found['rows']} rows, not {expected}")
        return found

    def work(self) -> Work:
        """The work alone, in one process that has loaded everything; judged by the stored rows like a backfill."""
        runtime = self._fresh("work")
        ended = subprocess.run(
            [str(self.python), "-m", "benchmarks.work"],
            env=self._env(runtime, {}),
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if ended.returncode != 0:
            raise RuntimeError(f"benchmarks.work failed:\n{ended.stderr[-2000:]}")
        found = json.loads(ended.stdout)
        work = Work(found["wall"], found["cpu"], found["parts"], runtime)
        self._to_compare.append(_Comparison(work, ", ".join(found["failed"])))
        return work

    def seconds(self, command: Sequence[str]) -> float:
        """Wall seconds of a command that has to succeed."""
        started = time.perf_counter()
        subprocess.run(list(command), env=self._env(self.place, {}), cwd=self.place, capture_output=True, check=True)
        return time.perf_counter() - started

    def command(self, arguments: Sequence[str], runtime: Path | None) -> Measured:
        """A command of the pipeline over a kept runtime directory."""
        place = runtime or self.place
        return measure.run(
            [str(self.bin / "payout-pipeline"), *arguments],
            env=self._env(place, {}),
            cwd=self.place,
            log=place.with_suffix(f".{arguments[0]}.log"),
        )

    # --- from the UI --------------------------------------------------------------------------------------------

    def ui_noop(self) -> tuple[float, str]:
        """Seconds of four no-op partitions and a no-op view, and how they ended."""
        runtime = self._fresh("ui-noop")
        env = self._env(runtime, {})
        with ui.dagster_dev(self.python, "benchmarks.trivial", env, self.place, runtime.with_suffix(".log")) as port:
            time.sleep(5)  # the daemon has had its first round, as it has when a user clicks
            return ui.backfill(port, ("four", "loaded", "view"), _partitions(), 300)

    def ui_backfill(self, more: Mapping[str, str]) -> tuple[Run, str]:
        """The pipeline's backfill launched as the UI does; ``measured.wall`` is from the launch to its final status."""
        runtime = self._fresh("ui")
        env = self._env(runtime, more)
        since = time.time()
        log = runtime.with_suffix(".log")
        with ui.dagster_dev(self.python, "payout_pipeline.definitions", env, self.place, log) as port:
            time.sleep(5)
            seconds, status = ui.backfill(port, _ASSETS, _partitions(), 420)
        run = Run(Measured(seconds, 0.0, 0, since, "", 0, 0), self.server.report(), runtime)
        self._to_compare.append(_Comparison(run))
        return run, status

    # --- dlt ----------------------------------------------------------------------------------------------------

    def make_dlt(self) -> bool:
        """An environment with dlt of its own; False where it cannot be had."""
        venv = self.root / ".venv-dlt"
        if (venv / "bin" / "python").exists() and (venv / ".installed").exists():
            return True
        commands = (
            [str(self.python), "-m", "venv", str(venv)],
            [str(venv / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", "dlt[parquet]>=1.31,<2"],
        )
        for command in commands:
            if subprocess.run(command, capture_output=True, timeout=300, check=False).returncode != 0:
                return False
        (venv / ".installed").touch()
        return True

    def dlt(self, name: str, server: Server) -> tuple[Measured, str]:
        """One run of the dlt pipeline; what it delivered, in words."""
        import pyarrow.dataset

        place = self._fresh(name)
        python = self.root / ".venv-dlt" / "bin" / "python"
        measured = measure.run(
            [str(python), "-m", "benchmarks.dlt_pipeline", server.endpoint, str(self.ids), str(place)],
            env={**self._env(place, {}), "RUNTIME__DLTHUB_TELEMETRY": "false"},
            cwd=self.root,
            log=place.with_suffix(".log"),
        )
        out = place / "out" / "payouts" / "conditions"
        if not out.exists():
            return measured, "nothing delivered"
        rows = pyarrow.dataset.dataset(out, format="parquet").to_table(columns=["id", "payouts"]).to_pylist()
        right = 0
        for row in rows:
            known = data.outcome(row["id"][2:])
            right += (
                known.known
                and (known.payouts is None) == (row["payouts"] is None)
                and (known.payouts is None or tuple(json.loads(row["payouts"])) == known.payouts)
            )
        return measured, f"{len(rows):,} rows delivered, {right:,} of them right"


def _partitions() -> list[str]:
    return [f"worker_{number}_of_4" for number in range(1, 5)]


def _fault_of(measured: Measured) -> str:
    """What a command that failed said; empty where it did not."""
    if measured.exit_code == 0:
        return ""
    lines = [line.strip() for line in measured.output.splitlines() if "FAILED" in line or "rror" in line]
    return f"exit code {measured.exit_code}: {' | '.join(lines)[:300]}"


def _span_of(runtime: Path, since: float, measured: Measured) -> tuple[float, float]:
    first, last = _work_between(runtime, since)
    if first is None or last is None:
        return 0.0, 0.0
    return last - first, measured.cpu_before(last) - measured.cpu_before(first)


def _work_between(runtime: Path, since: float) -> tuple[float | None, float | None]:
    """When the first step started and the last run ended, from Dagster's event log."""
    starts, ends = [], []
    for path in (runtime / "dagster").rglob("*.db"):
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            try:
                found = database.execute("SELECT dagster_event_type, event FROM event_logs").fetchall()
            except sqlite3.OperationalError:
                continue  # another of Dagster's databases
        for kind, event in found:
            moment = json.loads(event)["timestamp"]
            if moment < since:
                continue
            if kind == "STEP_START":
                starts.append(moment)
            elif kind in ("PIPELINE_SUCCESS", "PIPELINE_FAILURE"):
                ends.append(moment)
    return min(starts, default=None), max(ends, default=None)
