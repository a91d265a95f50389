"""Starts a real graph-node: a PostgreSQL cluster of its own, a fake chain, two built subgraphs and ``gnd dev``.

Everything listens on loopback at free ports and lives in one temporary directory. What has to be installed is what
``tools/graph_node_setup.sh`` installs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from payout_pipeline.subgraph.chain import Chain
from payout_pipeline.subgraph.decimals import integer_vector, normalised
from payout_pipeline.subgraph.store import ConditionRow
from payout_pipeline_tests.graph_node.fake_chain import FakeChain

SUBGRAPHS = ("positions", "pnl")
ROOM = Path(__file__).parents[2] / os.environ.get("GRAPH_NODE_DIR", "runtime/graph-node")
SOURCES = Path(__file__).parent
PASSWORD = "only-for-this-test"
START_SECONDS = 240.0


class GraphNode:
    """``with GraphNode(tmp_path, chain) as node: node.load("positions", rows); … node.url("positions")``"""

    def __init__(self, directory: Path, chain: Chain, *, statement_timeout: int | None = None) -> None:
        """``statement_timeout``: seconds after which PostgreSQL cancels a statement; None for never."""
        self.directory = directory
        self.statement_timeout = statement_timeout
        self.chain = chain
        self._stack = contextlib.ExitStack()
        self._database_port = free_port()
        self._start_database: Callable[[], None]
        self._stop_database: Callable[[], None]
        self._ports = {name: free_port() for name in ("http", "index-node", "admin", "metrics")}

    def url(self, name: str) -> str:
        """The endpoint of ``positions`` or ``pnl``."""
        return f"http://127.0.0.1:{self._ports['http']}/subgraphs/name/subgraph-{SUBGRAPHS.index(name)}"

    def __enter__(self) -> GraphNode:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._database())
            chain = stack.enter_context(FakeChain(self.chain))
            stack.enter_context(self._process(chain.url))
            for name in SUBGRAPHS:
                self._wait_for_head(name)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    # -- data ---------------------------------------------------------------------------------------------------------

    def load(self, name: str, rows: Iterable[ConditionRow]) -> None:
        """Puts rows into a subgraph's table, one for each of their versions. The subgraph has to be empty."""
        make = {"positions": _positions_values, "pnl": _pnl_values}[name]
        columns = {
            "positions": "id, payouts",
            "pnl": "id, position_ids, payout_numerators, payout_denominator",
        }[name]
        lines: list[str] = []
        for row in rows:
            for start, end, payouts in _versions(row):
                block_range = f"[{start},{end or ''})"
                lines.append("\t".join((str(len(lines) + 1), block_range, *make(row.id, payouts))))
        schema = f"sgd{self._schema_number(name)}"
        statement = f"copy {schema}.condition (vid, block_range, {columns}) from stdin"
        self.sql(statement, "\n".join(lines) + "\n")
        self.sql(f"analyze {schema}.condition")

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """A subgraph's table is locked by somebody else, so that every query for it waits."""
        statement = f"begin; lock table sgd{self._schema_number(name)}.condition in access exclusive mode; select 1;"
        command = ["psql", "-qAtX", "-d", self._database_url()]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            if process.stdin is None or process.stdout is None:
                raise RuntimeError("psql has no pipes")
            process.stdin.write(f"{statement}\n")
            process.stdin.flush()
            if process.stdout.readline().strip() != "1":
                raise RuntimeError("the table could not be locked")
            try:
                yield
            finally:
                process.stdin.close()
                process.wait(30)

    def sql(self, statement: str, rows: str = "") -> str:
        """Runs a statement in graph-node's database; ``rows`` is its standard input."""
        url = self._database_url()
        command = ["psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", statement]
        done = subprocess.run(command, input=rows, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            raise RuntimeError(f"psql: {done.stderr.strip()}")
        return done.stdout.strip()

    def _schema_number(self, name: str) -> int:
        number = self.sql(f"select id from deployment_schemas where subgraph like '%/{name}/build/%'")
        return int(number)

    # -- the parts ----------------------------------------------------------------------------------------------------

    def _database_url(self) -> str:
        return f"postgresql://postgres:{PASSWORD}@127.0.0.1:{self._database_port}/graph"

    @contextlib.contextmanager
    def _database(self) -> Iterator[None]:
        # A directory of its own, because pytest's are closed to the user that PostgreSQL runs as where we are root.
        home = Path(tempfile.mkdtemp(prefix="graph-node-database-"))
        password = home / "password"
        password.write_text(PASSWORD)
        if os.geteuid() == 0:
            shutil.chown(home, "postgres")
            shutil.chown(password, "postgres")
        data = str(home / "data")
        said = self.directory / "postgres.log"
        options = f"-p {self._database_port} -c listen_addresses=127.0.0.1 -k '' -c fsync=off"
        self._start_database = lambda: _postgres(
            said, "pg_ctl", "-D", data, "-w", "-t", "60", "-l", str(home / "log"), "-o", options, "start"
        )
        self._stop_database = lambda: _postgres(said, "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
        try:
            initdb = ("-D", data, "--locale=C", "-E", "UTF8", "-U", "postgres", "-A", "scram-sha-256")
            _postgres(said, "initdb", *initdb, f"--pwfile={password}")
            self._start_database()
            try:
                maintenance = self._database_url().replace("/graph", "/postgres")
                create = "create database graph template template0 encoding 'UTF8' lc_collate 'C' lc_ctype 'C'"
                subprocess.run(["psql", "-qX", "-d", maintenance, "-c", create], check=True, timeout=60)
                yield
            finally:
                self._stop_database()
        finally:
            shutil.rmtree(home, ignore_errors=True)

    @contextlib.contextmanager
    def without_database(self) -> Iterator[None]:
        """PostgreSQL is gone for a while."""
        self._stop_database()
        try:
            yield
        finally:
            self._start_database()

    @contextlib.contextmanager
    def _process(self, chain_url: str) -> Iterator[None]:
        binaries = [ROOM / "node_modules" / "@graphprotocol" / "gnd-linux-x64" / "bin", ROOM / "node_modules" / ".bin"]
        environment = {
            **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
            "PATH": os.pathsep.join([*map(str, binaries), os.environ["PATH"]]),
            "GRAPH_LOG": "info",
        }
        if self.statement_timeout is not None:
            environment["GRAPH_SQL_STATEMENT_TIMEOUT"] = str(self.statement_timeout)
        for name in SUBGRAPHS:
            place = self.directory / name
            shutil.copytree(SOURCES / name, place)
            (place / "node_modules").symlink_to(ROOM / "node_modules")
            for step in ("codegen", "build"):
                done = subprocess.run(
                    ["gnd", step], cwd=place, env=environment, capture_output=True, text=True, timeout=300, check=False
                )
                if done.returncode:
                    raise RuntimeError(f"gnd {step} of {name}: {done.stdout}{done.stderr}")
        command = ["gnd", "dev", "--manifests", ",".join(f"{name}/subgraph.yaml" for name in SUBGRAPHS)]
        command += ["--postgres-url", self._database_url(), "--ethereum-rpc", f"fake:{chain_url}", "--ipfs", chain_url]
        for name, port in self._ports.items():
            command += [f"--{name}-port", str(port)]
        with (self.directory / "gnd.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=self.directory,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)

    def _wait_for_head(self, name: str) -> None:
        head = self.chain.head()

        def reached() -> bool:
            answer = query(self.url(name), "{_meta{block{number}}}")
            return bool(answer.get("data", {}).get("_meta", {}).get("block", {}).get("number") == head)

        deadline = time.monotonic() + START_SECONDS
        while not _without_errors(reached):
            if time.monotonic() > deadline:
                tail = (self.directory / "gnd.log").read_text(errors="replace")[-3000:]
                raise RuntimeError(
                    f"{name} did not reach block {head} in {START_SECONDS:g} s; graph-node said:\n{tail}"
                )
            time.sleep(0.25)


def query(url: str, text: str, variables: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON body of one query."""
    body = json.dumps({"query": text, "variables": variables or {}}).encode()
    request = Request(url, body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=30) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def _without_errors(reached: Callable[[], bool]) -> bool:
    """False while the server is not there yet."""
    try:
        return reached()
    except (URLError, ConnectionError, TimeoutError):
        return False


def _postgres(said: Path, program: str, *arguments: str) -> None:
    """Runs one of PostgreSQL's server programs, as its own user where we are root. ``said``: where its output goes."""
    directory = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))[-1]
    command = [str(directory / program), *arguments]
    if os.geteuid() == 0:
        command = ["runuser", "-u", "postgres", "--", *command]
    # A file, because the server that pg_ctl starts would keep a pipe open for ever.
    with said.open("ab") as output:
        done = subprocess.run(command, cwd="/", stdout=output, stderr=output, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(f"{program} ended with {done.returncode}:\n{said.read_text()[-2000:]}")


def _versions(row: ConditionRow) -> Iterator[tuple[int, int | None, tuple[str, ...] | None]]:
    """(first block, block after the last or None, payouts) of each version of a condition."""
    if row.payouts is None:
        yield row.created_block, None, None
        return
    yield row.created_block, row.resolved_block, None
    yield row.resolved_block, None, row.payouts


def _array(values: Iterable[object]) -> str:
    return "{" + ",".join(map(str, values)) + "}"


def _positions_values(identity: str, payouts: tuple[str, ...] | None) -> tuple[str, ...]:
    return identity, "\\N" if payouts is None else _array(payouts)


def _pnl_values(identity: str, payouts: tuple[str, ...] | None) -> tuple[str, ...]:
    numerators, denominator = integer_vector([normalised(text) for text in payouts or ()])
    return identity, _array(_position_ids(identity)), _array(numerators), str(denominator)


def _position_ids(identity: str) -> list[int]:
    """Two numbers of up to 256 bits that stand for the ERC-1155 position ids of a condition."""
    return [int(hashlib.sha256(f"{identity}/{outcome}".encode()).hexdigest(), 16) for outcome in (0, 1)]
