"""ClickHouse's HTTP interface in front of the chDB engine, for tests: a process of its own, with users and faults.

Imitated, as far as clickhouse-connect uses it: ``GET /ping``; queries in the body, in the URL or in a form; bound
parameters (``param_*``); settings in the URL; ``database``; basic authentication; Native, Arrow and text formats;
request bodies compressed with lz4, zstd, gzip or deflate and answers likewise; data behind ``INSERT … FORMAT``;
external tables in multipart forms; errors as status, ``X-ClickHouse-Exception-Code`` and text; ``readonly`` users,
users without CREATE VIEW or ALTER DELETE, or with limits on settings; TLS. Not imitated: sessions, quotas,
progress headers, query cancellation, ``system.processes`` of other requests, and asynchronous inserts.

Faults are switched on through ``POST /_front`` with a JSON object of :class:`Faults` fields, and counted there
(``GET /_front``). Run as ``python -m payout_pipeline_tests.clickhouse_front --path DIR [--port P] [--tls CERT KEY]``.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import email.parser
import email.policy
import gzip
import json
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import parse_qsl, unquote, urlsplit
from urllib.request import Request, urlopen

USERS: dict[str, dict[str, Any]] = {
    "default": {"password": "", "deny": ()},
    "writer": {"password": "wr1ter-pass", "deny": ()},
    "reader": {
        "password": "reader-pass",
        "deny": ("INSERT", "CREATE", "ALTER", "DROP", "DELETE", "TRUNCATE"),
        "readonly": 1,
    },
    "o'dd üser": {"password": "p:ä/ß%25+&?#@ \\'\"", "deny": ()},
    # A profile that limits settings, by the server's own words.
    "limited": {
        "password": "limited-pass",
        "deny": (),
        "limits": {
            "max_execution_time": (452, "Setting max_execution_time shouldn't be greater than 60."),
            "mutations_sync": (452, "Setting mutations_sync should not be changed."),
            "max_insert_block_size": (452, "Setting max_insert_block_size shouldn't be greater than 1000."),
            "join_use_nulls": (164, "Cannot modify 'join_use_nulls' setting in readonly mode."),
        },
    },
    "ingester": {"password": "ingest-pass", "deny": ("CREATE VIEW", "CREATE OR REPLACE VIEW", "DELETE")},
}
_NAMES = {
    60: "UNKNOWN_TABLE", 81: "UNKNOWN_DATABASE", 159: "TIMEOUT_EXCEEDED", 164: "READONLY", 202: "TOO_MANY_SIMULTANEOUS_QUERIES",
    209: "SOCKET_TIMEOUT", 210: "NETWORK_ERROR", 241: "MEMORY_LIMIT_EXCEEDED", 252: "TOO_MANY_PARTS",
    452: "SETTING_CONSTRAINT_VIOLATION", 497: "ACCESS_DENIED",
    516: "AUTHENTICATION_FAILED", 701: "CLUSTER_DOESNT_EXIST", 999: "KEEPER_EXCEPTION",
}  # fmt: skip
_STATUS = {60: 404, 81: 404, 497: 403, 516: 403, 194: 401, 164: 500, 62: 400, 47: 400, 46: 404}
_INSERT_DATA = re.compile(rb"\A\s*(INSERT\s+INTO\s+.*?\bFORMAT\s+(\w+))[ \t]*(?:\r?\n|\Z)", re.IGNORECASE | re.DOTALL)
_TAG = "rumfyutuqkncbgau"
# Parameters of a request that are no settings of the engine.
_TRANSPORT = {
    "query", "database", "query_id", "session_id", "compress", "decompress", "wait_end_of_query", "buffer_size", "user",
    "password", "enable_http_compression", "client_protocol_version", "send_progress_in_http_headers", "quota_key", "role",
    "http_headers_progress_interval_ms", "cancel_http_readonly_queries_on_client_close", "default_format", "log_comment",
}  # fmt: skip


@dataclass
class Faults:
    """What goes wrong. ``matching`` (a regular expression on the statement) limits each to some statements.

    ``code``/``http_status`` answer the next ``times`` requests with an error (200 and a code: the error is in the headers
    only, as where progress was sent before); ``midstream`` sends the error of ``code`` behind half of a whole answer of
    status 200, "tagged" as servers do from 25.11 on or "plain" as before; ``half`` sends half of the answer;
    ``lose_answer`` executes the statement and closes the connection; ``hang`` accepts and never answers; ``reset``
    closes before executing; ``delay`` seconds pass before each answer; ``drop_rows`` stores nothing and says it did.
    """

    matching: str = ""
    times: int = 0
    code: int = 0
    message: str = ""
    http_status: int = 0
    location: str = ""
    midstream: str = ""
    half: bool = False
    lose_answer: bool = False
    hang: bool = False
    reset: bool = False
    drop_rows: bool = False
    delay: float = 0.0


@dataclass
class Counters:
    """What was asked, in order."""

    requests: int = 0
    connections_refused: int = 0
    statements: list[dict[str, Any]] = field(default_factory=list)


class Engine:
    """One chDB engine; a connection at a time for each database and set of settings, so that none leak into another."""

    def __init__(self, path: str) -> None:
        """``path`` may be followed by the engine's own arguments, ``?config-file=…``."""
        import chdb

        self._chdb = chdb
        self._path = path
        self._first = chdb.connect(path)
        self._idle: dict[tuple[str | None, tuple[tuple[str, str], ...]], list[Any]] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def _connection(self, database: str | None, settings: dict[str, str]) -> Iterator[Any]:
        key = (database, tuple(sorted(settings.items())))
        with self._lock:
            idle = self._idle.setdefault(key, [])
            connection = idle.pop() if idle else None
        if connection is None:
            connection = self._chdb.connect(self._path)
            if database:
                connection.query(f"USE `{database}`", "TabSeparated")
            for name, value in settings.items():
                escaped = value.replace("\\", "\\\\").replace("'", "\\'")
                connection.query(f"SET {name} = '{escaped}'", "TabSeparated")
        yield connection
        # Reached only where nothing went wrong; a token is used once.
        if "insert_deduplication_token" in settings:
            connection.close()
        else:
            with self._lock:
                self._idle[key].append(connection)

    def execute(
        self,
        sql: str,
        fmt: str,
        *,
        database: str | None,
        settings: dict[str, str],
        parameters: dict[str, str],
        data: bytes | None,
        tables: list[tuple[str, str, str, bytes]],
    ) -> bytes:
        files: list[str] = []
        try:
            with self._connection(database, settings) as connection:
                for name, structure, table_format, body in tables:
                    connection.query(f"CREATE TEMPORARY TABLE `{name}` ({structure}) ENGINE = Memory", "TabSeparated")
                    self._ingest(connection, f"INSERT INTO `{name}`", table_format, body, files)
                if data is not None:
                    match = re.search(r"\bFORMAT\s+(\w+)\s*\Z", sql, re.IGNORECASE)
                    assert match is not None, sql
                    self._ingest(connection, sql[: match.start()], match[1], data, files)
                    return b""
                result = bytes(connection.query(sql, fmt, params=parameters).bytes() or b"")
                for name, *_ in tables:
                    connection.query(f"DROP TEMPORARY TABLE `{name}`", "TabSeparated")
                return result
        finally:
            for path in files:
                Path(path).unlink()

    @staticmethod
    def _ingest(connection: Any, insert: str, fmt: str, body: bytes, files: list[str]) -> None:
        with tempfile.NamedTemporaryFile(suffix=".data", delete=False) as file:
            file.write(body)
        files.append(file.name)
        connection.query(f"{insert} FROM INFILE '{file.name}' FORMAT {fmt}", "TabSeparated")


class RequestError(Exception):
    """An error of the front itself, as ClickHouse would report it."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {text} ({_NAMES.get(code, 'ERROR')}) (version 26.9.2.1)")
        self.code = code


class State:
    """What all requests of the front share."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.faults: list[Faults] = []
        self.counters = Counters()
        self.lock = threading.Lock()

    def next_fault(self, sql: str) -> Faults | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.matching, sql, re.IGNORECASE | re.DOTALL):
                    fault.times -= 1
                    return fault
        return None


def _exception(fault: Faults) -> str:
    name = _NAMES.get(fault.code, "INJECTED")
    return f"Code: {fault.code}. DB::Exception: {fault.message or 'injected'} ({name}) (version 26.9.2.1)"


def _decompress(body: bytes, encoding: str) -> bytes:
    if encoding in ("", "identity"):
        return body
    if encoding == "gzip":
        return gzip.decompress(body)
    if encoding == "deflate":
        return zlib.decompress(body)
    if encoding == "lz4":
        import lz4.frame

        return bytes(lz4.frame.decompress(body))
    if encoding == "zstd":
        import backports.zstd as zstd

        return bytes(zstd.decompress(body))
    raise RequestError(48, f"Unknown encoding {encoding}")


def _compress(body: bytes, accepted: str) -> tuple[bytes, str]:
    for encoding in (part.strip() for part in accepted.split(",")):
        if encoding == "lz4":
            import lz4.frame

            return bytes(lz4.frame.compress(body)), "lz4"
        if encoding == "zstd":
            import backports.zstd as zstd

            return bytes(zstd.compress(body)), "zstd"
        if encoding == "gzip":
            return gzip.compress(body, 1), "gzip"
        if encoding == "deflate":
            return zlib.compress(body, 1), "deflate"
    return body, ""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    state: State

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: what was asked is in the counters."""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/ping":
            self._answer(200, b"Ok.\n", {})
        elif path == "/_front":
            self._answer(200, json.dumps(asdict(self.state.counters)).encode(), {})
        else:
            self._query(b"")

    def do_POST(self) -> None:
        body = self._body()
        if urlsplit(self.path).path == "/_front":
            with self.state.lock:
                self.state.faults = [Faults(**one) for one in json.loads(body)]
            self._answer(200, b"{}", {})
            return
        self._query(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _drop(self) -> None:
        """Close the connection with a reset, as a dying server does."""
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.close()

    def _query(self, body: bytes) -> None:
        state = self.state
        try:
            request = self._parse(body)
        except RequestError as error:
            self._refuse(error.code, str(error))
            return
        sql = request["sql"]
        with state.lock:
            state.counters.requests += 1
            state.counters.statements.append(
                {
                    "sql": sql[:5000],
                    "user": request["user"],
                    "settings": request["settings"],
                    "log_comment": request["log_comment"],
                    "query_id": request["query_id"],
                    "session_id": request["session_id"],
                }
            )
        fault = state.next_fault(sql)
        if fault is not None:
            time.sleep(fault.delay)
            if fault.hang:
                time.sleep(600)
            if fault.reset:
                self._drop()
                return
            if fault.code and not fault.midstream:
                self._refuse(fault.code, _exception(fault), fault.http_status)
                return
            if fault.http_status:
                where = {"Location": fault.location} if fault.location else {}
                page = b"<html><body>Bad gateway</body></html>"
                self._answer(fault.http_status, page, {"Content-Type": "text/html", **where})
                return
        try:
            self._check_rights(request)
            dropped = fault is not None and fault.drop_rows and request["data"] is not None
            result = b"" if dropped else self._execute(request)
        except RequestError as error:
            self._refuse(error.code, str(error))
            return
        except Exception as error:
            text = str(error)
            code = int(found[1]) if (found := re.search(r"Code: (\d+)", text)) else 1000
            self._refuse(code, text[text.find("Code: ") :] if "Code: " in text else text)
            return
        if fault is not None and fault.lose_answer:
            self._drop()
            return
        headers = {
            "Content-Type": "application/octet-stream",
            "X-ClickHouse-Format": request["format"],
            "X-ClickHouse-Timezone": "UTC",
            "X-ClickHouse-Query-Id": request["query_id"] or "front",
        }
        if request["compress"]:
            result, encoding = _compress(result, self.headers.get("Accept-Encoding", ""))
            if encoding:
                headers["Content-Encoding"] = encoding
        if fault is not None and fault.midstream:
            error = _exception(fault)
            if fault.midstream == "tagged":
                error = f"\r\n__exception__\r\n{_TAG}\r\n{error}\n{len(error)} {_TAG}\r\n__exception__\r\n"
                headers["X-ClickHouse-Exception-Tag"] = _TAG
            self._answer(200, result[: len(result) // 2] + error.encode(), headers)
            return
        if fault is not None and fault.half:
            self.send_response(200)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(max(len(result), 2)))
            self.end_headers()
            self.wfile.write(result[: len(result) // 2])
            self.wfile.flush()
            self._drop()
            return
        self._answer(200, result, headers)

    def _refuse(self, code: int, text: str, status: int = 0) -> None:
        self._answer(
            status or _STATUS.get(code, 500),
            text.encode(),
            {"X-ClickHouse-Exception-Code": str(code), "Content-Type": "text/plain; charset=UTF-8"},
        )

    def _parse(self, body: bytes) -> dict[str, Any]:
        url = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        body = _decompress(body, self.headers.get("Content-Encoding", ""))
        tables: list[tuple[str, str, str, bytes]] = []
        content_type = self.headers.get("Content-Type", "")
        form: dict[str, str] = {}
        if content_type.startswith("multipart/form-data"):
            form, files = _multipart(content_type, body)
            for name, data in files.items():
                tables.append((name, url.pop(f"{name}_structure"), url.pop(f"{name}_format"), data))
            body = b""
        values = {**url, **form}
        user, password = self._credentials(values)
        known = USERS.get(user)
        if known is None or known["password"] != password:
            raise RequestError(
                516,
                f"{user}: Authentication failed: password is incorrect, or there is no user with such name.",
            )
        text = values.get("query", "").encode()
        data: bytes | None = None
        if text and body:
            if re.search(rb"\bFORMAT\s+\w+\s*\Z", text, re.IGNORECASE) and text.lstrip()[:6].upper() == b"INSERT":
                data = body
            else:
                text = text + b"\n" + body
        elif body:
            text = body
        if data is None and (match := _INSERT_DATA.match(text)) and match.end() < len(text):
            data, text = text[match.end() :], match[1]
        sql = text.decode(errors="surrogateescape").strip().rstrip(";")
        fmt = re.search(r"\bFORMAT\s+(\w+)\s*\Z", sql, re.IGNORECASE)
        return {
            "sql": sql,
            "data": data,
            "tables": tables,
            "user": user,
            "database": values.get("database"),
            "format": fmt[1] if fmt else "TabSeparated",
            "parameters": {k[6:]: v for k, v in values.items() if k.startswith("param_")},
            "settings": {k: v for k, v in url.items() if k not in _TRANSPORT and not k.startswith("param_")},
            "compress": values.get("enable_http_compression") == "1",
            "query_id": values.get("query_id", ""),
            "session_id": values.get("session_id", ""),
            "log_comment": values.get("log_comment", ""),
        }

    def _credentials(self, values: dict[str, str]) -> tuple[str, str]:
        header = self.headers.get("Authorization", "")
        if header.startswith("Basic "):
            user, _, password = base64.b64decode(header[6:]).decode().partition(":")
            return user, password
        name = self.headers.get("X-ClickHouse-User") or values.get("user") or "default"
        return name, self.headers.get("X-ClickHouse-Key") or values.get("password") or ""

    def _check_rights(self, request: dict[str, Any]) -> None:
        known = USERS[request["user"]]
        words = " ".join(re.sub(r"--[^\n]*", "", request["sql"]).split()).upper()
        for denied in known["deny"]:
            if words.startswith(denied):
                if known.get("readonly"):
                    raise RequestError(164, f"{request['user']}: Cannot execute query in readonly mode.")
                raise RequestError(
                    497,
                    f"{request['user']}: Not enough privileges. To execute this query, it's necessary to have "
                    f"the grant {denied} ON *.*.",
                )
        for name, refusal in known.get("limits", {}).items():
            if name in request["settings"]:
                raise RequestError(*refusal)
        if known.get("readonly") and request["settings"]:
            first = next(iter(request["settings"]))
            raise RequestError(164, f"Cannot modify '{first}' setting in readonly mode.")

    def _execute(self, request: dict[str, Any]) -> bytes:
        engine = self.state.engine
        sql = request["sql"]
        if USERS[request["user"]].get("readonly") and "system.settings" in sql:
            sql = sql.replace("readonly", "toUInt8(1) AS readonly")
        return engine.execute(
            sql,
            request["format"],
            database=request["database"],
            settings=request["settings"],
            parameters=request["parameters"],
            data=request["data"],
            tables=request["tables"],
        )


def _multipart(content_type: str, body: bytes) -> tuple[dict[str, str], dict[str, bytes]]:
    boundary = re.search(r'boundary="?([^";]+)"?', content_type)
    assert boundary is not None
    fields: dict[str, str] = {}
    files: dict[str, bytes] = {}
    for part in body.split(b"--" + boundary[1].encode()):
        if part in (b"", b"--", b"--\r\n"):
            continue
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        content = content.removesuffix(b"\r\n")
        headers = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + b"\r\n\r\n")
        disposition = headers["Content-Disposition"].params
        if "filename" in disposition:
            files[disposition["name"]] = content
        else:
            fields[disposition["name"]] = content.decode()
    return fields, files


def serve(engine: Engine, port: int, tls: tuple[str, str] | None) -> None:
    """Serve until SIGTERM; prints the URL once it listens."""
    state = State(engine)
    handler = type("BoundHandler", (Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    scheme = "http"
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        scheme = "https"
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    print(f"{scheme}://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever(poll_interval=0.05)


@dataclass
class Front:
    """A running front, for tests. ``stop``/``start`` keep path and port, so that clients see an outage.

    ``replica`` makes it a host of the cluster of ``clickhouse_cluster.py``, which sends on to ``peers``.
    """

    path: Path
    tls: tuple[str, str] | None = None
    replica: str = ""
    peers: tuple[str, ...] = ()
    port: int = 0
    url: str = ""
    _process: subprocess.Popen[str] | None = None

    def start(self) -> Front:
        command = [sys.executable, "-m", "payout_pipeline_tests.clickhouse_front", "--path", str(self.path)]
        command += ["--port", str(self.port)]
        if self.tls:
            command += ["--tls", *self.tls]
        if self.replica:
            command += ["--replica", self.replica, "--peers", *self.peers]
        root = Path(__file__).resolve().parent.parent
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
        killer = threading.Timer(60, self._process.kill)
        killer.start()
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        killer.cancel()
        if not self.url:
            raise RuntimeError("the front did not start")
        self.port = urlsplit(self.url).port or 0
        return self

    def stop(self, *, kill: bool = False) -> None:
        if self._process is not None:
            (self._process.kill if kill else self._process.terminate)()
            self._process.wait(20)
            if self._process.stdout:
                self._process.stdout.close()
            self._process = None

    def faults(self, *faults: Faults) -> None:
        """Replace the switched-on faults; none switches all off."""
        self._control(json.dumps([asdict(f) for f in faults]).encode())

    def counters(self) -> Counters:
        return Counters(**json.loads(self._control(None)))

    def _control(self, body: bytes | None) -> bytes:
        context = ssl._create_unverified_context() if self.tls else None  # noqa: S323 - our own process on loopback
        request = Request(f"{self.url}/_front", data=body)
        with urlopen(request, timeout=10, context=context) as answer:
            return bytes(answer.read())

    @property
    def alive(self) -> bool:
        try:
            self._control(None)
        except (URLError, OSError):
            return False
        return True


@contextlib.contextmanager
def running(path: Path, tls: tuple[str, str] | None = None) -> Iterator[Front]:
    """A front over the engine at ``path`` for the length of a ``with`` block."""
    front = Front(path, tls).start()
    try:
        yield front
    finally:
        front.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"))
    parser.add_argument("--replica", help="be this host of the cluster of clickhouse_cluster.py")
    parser.add_argument("--peers", nargs="*", default=[], metavar="URL")
    arguments = parser.parse_args()
    path = unquote(arguments.path)
    if arguments.replica:
        from payout_pipeline_tests.clickhouse_cluster import Host

        engine: Engine = Host(path, arguments.replica, arguments.peers)
    else:
        engine = Engine(path)
    serve(engine, arguments.port, tuple(arguments.tls) if arguments.tls else None)


if __name__ == "__main__":
    from payout_pipeline_tests.clickhouse_front import main  # the classes of the module, not those of __main__

    main()
