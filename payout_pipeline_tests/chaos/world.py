"""A place for one case: generated ids, a faulty subgraph, ClickHouse (embedded or over HTTP), and the commands around them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from payout_pipeline.subgraph.generate import expected_vectors, generate
from payout_pipeline.subgraph.server import SubgraphConfig, SubgraphServer
from payout_pipeline_tests.chaos.processes import Nursery, Running
from payout_pipeline_tests.clickhouse_front import Front
from payout_pipeline_tests.oracle import Evidence, Truth, Violation, judge
from payout_pipeline_tests.running import dagster_home

#: Canaries: they must never be seen again outside the environment and the requests.
TOKEN = "canary-Tok3n/with+odd=chars&7Qz9"
PASSWORD = "wr1ter-pass"  # of the front's user `writer`
DEADLINE = 120.0


@dataclass
class World:
    """Everything around the backfill of one case. ``env`` is the whole environment of its processes."""

    root: Path
    ids: list[str]
    truth: Truth
    server: SubgraphServer
    nursery: Nursery
    env: dict[str, str]
    front: Front | None = None
    workers: int = 2
    limit: tuple[int, float] | None = None
    runs: list[Running] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)

    @property
    def runtime(self) -> Path:
        """The runtime directory."""
        return self.root / "runtime"

    @property
    def ids_file(self) -> Path:
        """The input file."""
        return self.root / "data" / "condition_ids.txt"

    def start(self, *argv: str, cold: bool = False, **env: str) -> Running:
        """Start a command; ``backfill`` unless named."""
        out = self.root / f"out-{len(self.runs):02d}.txt"
        running = self.nursery.start(argv or ("backfill",), {**self.env, **env}, self.root, out, cold=cold)
        self.runs.append(running)
        return running

    def run(self, *argv: str, seconds: float = DEADLINE, **env: str) -> Running:
        """Start a command and wait for its end; a backfill's exit code is remembered for the oracle."""
        running = self.start(*argv, **env)
        code = running.wait(seconds)
        if not argv or argv[0] == "backfill":
            self.exits.append(code)
        return running

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """Rows as a user reads them: through ``payout-pipeline sql``, from a server straight over HTTP."""
        if self.front is not None:
            answer = ask_front(self.front, sql + " FORMAT JSONEachRow").decode()
            return [json.loads(line) for line in answer.splitlines()]
        done = self.run("sql", "--format", "JSONEachRow", sql)
        assert done.code == 0, done.text()
        return [json.loads(line) for line in done.text().splitlines() if line.startswith("{")]

    def command(self, sql: str) -> None:
        """A statement without a result, as a user would run it."""
        if self.front is not None:
            ask_front(self.front, sql)
            return
        done = self.run("sql", sql)
        assert done.code == 0, done.text()

    def evidence(self, **changes: Any) -> Evidence:
        """All that the case left behind."""
        facts: dict[str, Any] = {
            "runtime": self.runtime,
            "truth": self.truth,
            "workers": self.workers,
            "rows": self.rows,
            "requests": self.server.log.entries,
            "limit": self.limit,
            "exits": list(self.exits),
            "outputs": [run.out for run in self.runs],
            "secrets": (TOKEN, PASSWORD),
        }
        return Evidence(**{**facts, **changes})

    def judge(self, **changes: Any) -> list[Violation]:
        """The oracle's verdict."""
        return judge(self.evidence(**changes))

    def assert_right(self, **changes: Any) -> None:
        """Fail with every broken promise."""
        found = self.judge(**changes)
        assert not found, "\n".join(map(str, found)) + "\n" + self.last_words()

    def last_words(self) -> str:
        """The end of what the last command printed, for messages."""
        return self.runs[-1].text()[-3000:] if self.runs else ""


@contextmanager
def world(
    root: Path,
    nursery: Nursery,
    *,
    ids: int = 1_000,
    seed: int = 1,
    workers: int = 2,
    front: bool = False,
    limit: str = "400/1s",
    server_limit: str | None = None,
    latency: float = 0.0,
    jitter: float = 0.0,
    config: dict[str, Any] | None = None,
    **env: str,
) -> Iterator[World]:
    """A fresh world under ``root``. ``env`` adds variables; ``config`` changes the subgraph's configuration."""
    data = generate(ids, seed, root / "data")
    truth = truth_of(data.ids, data.conditions)
    listed = data.ids.read_text().split()
    with ExitStack() as stack:
        options: dict[str, Any] = {
            "conditions": data.conditions, "latency": latency, "jitter": jitter, "seed": seed, "token": TOKEN,
            "rate_limit": server_limit, "advancing": True,
        }  # fmt: skip
        server = stack.enter_context(SubgraphServer(SubgraphConfig(**{**options, **(config or {})})))
        database: dict[str, str] = {}
        running_front = None
        if front:
            running_front = Front(root / "clickhouse").start()
            stack.callback(running_front.stop, kill=True)
            make_user_tables(running_front)
            host, _, port = running_front.url.removeprefix("http://").partition(":")
            database = {
                "CLICKHOUSE_HOST": host, "CLICKHOUSE_PORT": port, "CLICKHOUSE_USER": "writer",
                "CLICKHOUSE_PASSWORD": PASSWORD, "CLICKHOUSE_WAIT_SECONDS": "20",
            }  # fmt: skip
        made = World(
            root=root, ids=listed, truth=truth, server=server, nursery=nursery, front=running_front, workers=workers,
            env={
                **_clean_environment(root),
                "CONDITION_IDS_FILE": str(data.ids),
                "PAYOUT_RUNTIME_DIR": str(root / "runtime"),
                "PAYOUT_WORKERS": str(workers),
                "GOLDSKY_ENDPOINT": server.url,
                "GOLDSKY_API_TOKEN": TOKEN,
                "GOLDSKY_BATCH_SIZE": "200",
                "GOLDSKY_RATE_LIMIT": limit,
                "GOLDSKY_TIMEOUT_SECONDS": "3",
                "GOLDSKY_OUTAGE_BUDGET_SECONDS": "10",
                "PAYOUT_PNL_VIEW": "",
                **database,
                **env,
            },
        )  # fmt: skip
        requests, _, seconds = limit.partition("/")
        made.limit = int(requests), float(seconds.removesuffix("s"))
        stack.callback(_end_everything, made.runs)
        yield made


def ask_front(front: Front, sql: str) -> bytes:
    """A statement straight to ClickHouse over HTTP, past the pipeline."""
    request = Request(front.url + "/", data=sql.encode(), headers={"X-ClickHouse-User": "default"})
    with urlopen(request, timeout=30) as answer:
        return bytes(answer.read())


def make_user_tables(front: Front) -> None:
    """The tables that a user's server has before the first backfill."""
    ddl = (files("payout_pipeline.warehouse.sql") / "create_market_resolutions.sql").read_text()
    ask_front(front, "CREATE DATABASE IF NOT EXISTS cascadian_clean")
    ask_front(front, ddl.replace("${table}", "default.market_resolutions_final"))


def _end_everything(runs: Sequence[Running]) -> None:
    for run in runs:
        if run.code is None or run.members():
            run.kill_all()


def _clean_environment(root: Path) -> dict[str, str]:
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH")
    inherited = {name: os.environ[name] for name in kept if name in os.environ}
    return {**inherited, "DAGSTER_HOME": str(dagster_home(root)), "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}


def truth_of(ids: Path, conditions: Path) -> Truth:
    """The truth of generated data, from the shapes that it was made of."""
    resolved = {
        identity: (numerators, denominator) for identity, numerators, denominator in expected_vectors(conditions)
    }
    known = [line.split(",", 1)[0] for line in conditions.read_text().splitlines()[1:]]
    unresolved = frozenset(known) - resolved.keys()
    return Truth(resolved, unresolved, frozenset(ids.read_text().split()) - frozenset(known))
