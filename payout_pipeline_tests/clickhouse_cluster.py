"""Two hosts of a ClickHouse cluster for tests: two HTTP fronts, each over a chDB engine of its own, with replicated tables.

Real, as the engine does it: macros, the cluster's definition, the parser, the tables' engines with their paths in Keeper
(the engine's in-process one), and whatever reads from them. Two things chDB cannot do, since only the server program
sets them up. It has no queue for distributed DDL (``ON CLUSTER``: code 392, "Replicated DDL queries are disabled"), and no
address at which other replicas could fetch parts ("Parameter 'interserver_http(s)_port' required for replication is not
specified", code 139), so that each replica stays read-only (code 242), with a ZooKeeper of its own as well. Imitated here:

- the queue: a statement ``ON CLUSTER`` is parsed as it is, then runs on each host without it, a new table with one UUID
  for all, and the answer has a row a host, or the first host's error;
- the way of written rows: a table is taken out of replication for the length of a write and put back, and the same write is
  sent to the other host. A path of the table's own becomes the default one by that.
"""

from __future__ import annotations

import contextlib
import re
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from payout_pipeline_tests.clickhouse_front import USERS, Engine, Front, RequestError

CLUSTER = "pair"
_CONFIG = """<clickhouse>
    <logger><level>none</level></logger>
    <zookeeper><implementation>testkeeper</implementation></zookeeper>
    <macros><cluster>{cluster}</cluster><shard>01</shard><replica>{replica}</replica></macros>
    <remote_servers><{cluster}><shard>
        <internal_replication>true</internal_replication>
        <replica><host>r1.test</host><port>9000</port></replica>
        <replica><host>r2.test</host><port>9000</port></replica>
    </shard></{cluster}></remote_servers>
</clickhouse>
"""
_ON_CLUSTER = re.compile(r"\bON\s+CLUSTER\s+'([^']+)'", re.IGNORECASE)
_NEW_TABLE = re.compile(r"\bCREATE\s+TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?[\w`.]+", re.IGNORECASE)
_WRITE = re.compile(r"\A\s*(?:--[^\n]*\n\s*)*(?:INSERT\s+INTO|DELETE\s+FROM)\s+`?(\w+)`?\.`?(\w+)`?", re.IGNORECASE)


class Host(Engine):
    """The engine of one host; ``peers`` are the URLs of the others."""

    def __init__(self, path: str, replica: str, peers: list[str]) -> None:
        config = Path(f"{path}.{replica}.xml")
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(_CONFIG.format(cluster=CLUSTER, replica=replica))
        super().__init__(f"{path}?config-file={config}")
        self._replica = replica
        self._peers = peers
        self._turn = threading.RLock()  # no reader while a table is out of replication

    def execute(self, sql: str, fmt: str, **request: Any) -> bytes:
        with self._turn:
            if (found := _ON_CLUSTER.search(sql)) is not None:
                return self._distributed(sql, found, fmt, request)
            written = _WRITE.match(sql)
            if written is not None and (path := self._keeper_path(written[1], written[2])):
                return self._written(sql, fmt, request, f"`{written[1]}`.`{written[2]}`", path)
            return super().execute(sql, fmt, **request)

    def _lines(self, sql: str, **parameters: str) -> list[list[str]]:
        text = super().execute(
            sql, "TabSeparated", database=None, settings={}, parameters=parameters, data=None, tables=[]
        )
        return [line.split("\t") for line in text.decode().splitlines()]

    def _keeper_path(self, database: str, table: str) -> str:
        sql = "SELECT zookeeper_path FROM system.replicas WHERE database = {d:String} AND table = {t:String}"
        return next((path for (path,) in self._lines(sql, d=database, t=table)), "")

    def _distributed(self, sql: str, found: re.Match[str], fmt: str, request: dict[str, Any]) -> bytes:
        super().execute(f"EXPLAIN AST {sql}", "TabSeparated", **request)
        name = found[1]
        if name.startswith("{"):
            (name,) = self._lines("SELECT substitution FROM system.macros WHERE macro = {m:String}", m=name[1:-1])[0]
        hosts = self._lines("SELECT host_name, port FROM system.clusters WHERE cluster = {c:String}", c=name)
        if not hosts:
            raise RequestError(701, f"Requested cluster '{name}' not found")
        local = sql[: found.start()] + sql[found.end() :]
        if (table := _NEW_TABLE.search(local)) is not None:
            local = f"{local[: table.end()]} UUID '{uuid.uuid4()}' {local[table.end() :]}"
        self.execute(local, fmt, **request)
        for peer, (host, port) in zip(self._peers, hosts[1:], strict=True):
            try:
                self._send(peer, local, request)
            except RequestError as error:
                raise RequestError(error.code, f"There was an error on [{host}:{port}]: {error}") from error
        rows = [f"{host}\t{port}\t0\t\t{len(hosts) - 1 - n}\t0" for n, (host, port) in enumerate(hosts)]
        return ("\n".join(rows) + "\n").encode()

    def _written(self, sql: str, fmt: str, request: dict[str, Any], table: str, path: str) -> bytes:
        self._lines(f"DETACH TABLE {table} SYNC")
        self._lines(f"ATTACH TABLE {table} AS NOT REPLICATED")
        try:
            with contextlib.suppress(Exception):  # what was written before is not in Keeper
                self._lines(f"SYSTEM DROP REPLICA '{self._replica}' FROM ZKPATH '{path}'")
            result = super().execute(sql, fmt, **request)
        finally:
            self._lines(f"DETACH TABLE {table} SYNC")
            self._lines(f"ATTACH TABLE {table} AS REPLICATED")
        for peer in self._peers:
            self._send(peer, sql, request)
        return result

    @staticmethod
    def _send(peer: str, sql: str, request: dict[str, Any]) -> None:
        url = {**request["settings"], **{f"param_{k}": v for k, v in request["parameters"].items()}, "query": sql}
        if request["database"]:
            url["database"] = request["database"]
        headers = {"X-ClickHouse-User": "writer", "X-ClickHouse-Key": USERS["writer"]["password"]}
        try:
            with urlopen(Request(f"{peer}/?{urlencode(url)}", request["data"] or b"", headers), timeout=60):
                pass
        except HTTPError as error:
            raise RequestError(int(error.headers["X-ClickHouse-Exception-Code"]), error.read().decode()) from error


@contextlib.contextmanager
def cluster(directory: Path) -> Iterator[tuple[Front, Front]]:
    """Both hosts, the one to talk to first."""
    second = Front(directory / "r2", replica="r2").start()
    try:
        first = Front(directory / "r1", replica="r1", peers=(second.url,)).start()
        try:
            yield first, second
        finally:
            first.stop()
    finally:
        second.stop()
