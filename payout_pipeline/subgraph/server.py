"""A local subgraph: a real HTTP server that answers for ``Condition`` as graph-node behind Goldsky's gateway does.

Paths: ``/subgraphs/name/<name>`` and ``/subgraphs/id/<deployment>`` as graph-node has them, and
``/api/public/<project>/subgraphs/<name>/<version>/gn`` (``/api/private/…`` with a bearer token) as Goldsky has them.
``GET /_control/log`` gives the requests so far, ``POST /_control`` switches faults, rate limit and latency.

What it does not imitate (compared with graph-node 0.45.0 by ``make test-graph-node``)
- No entity but ``Condition``, no ``_logs``, no full-text search, no derived fields, no subscriptions.
- Parse errors have graph-node's form (HTTP 200, one location) but graphql-core's words, except for the commonest three.
- Introspection lists types in another order, with the types that describe a schema among them, without ``_logs`` and
  aggregations, and with fewer descriptions; the directives that graphql-core knows are listed too.
- The store's own form of a query is not appended to ``unsupported filter`` errors; an integer beyond 32 bits in a
  variable is shown wrapped like one in the query, not as a float.
- GraphQL validation is off, as is graph-node's default; there is no switch for it.
- A condition has at most two versions (created, resolved) and can be deleted; there are no forks. A reorganisation is
  only an error text (a fault), and a pinned number always shows the same rows.
- No load manager, no query cache, no PostgreSQL: their errors exist as faults only. ``graph-attestable`` is always
  true for data, ``content-type`` is sent once, and the limit of 32,766 ids in one list is not there.
- Goldsky's gateway is imitated as far as it is documented: a sliding window counted at arrival, where refused requests
  do not count; its real counting is not published.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import logging
import math
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson
from aiohttp import web

from payout_pipeline.errors import ConfigurationError
from payout_pipeline.subgraph.chain import Chain
from payout_pipeline.subgraph.engine import (
    DEFAULT_DEPLOYMENT,
    Answer,
    ConnectionDroppedError,
    EmptySelectionError,
    Engine,
    Limits,
    Query,
)
from payout_pipeline.subgraph.faults import HTML, Asked, Fault, FaultBoard, Verdict, timeout_message
from payout_pipeline.subgraph.log import LoggedRequest, RequestLog
from payout_pipeline.subgraph.schema import SchemaName
from payout_pipeline.subgraph.store import ConditionStore
from payout_pipeline.subgraph.values import QueryError, Value

NAMES = ("positions", "positions-subgraph", "pnl", "pnl-subgraph")
VERSIONS = ("0.0.7", "0.0.14", "prod")
PROJECT = "project_local"

_LARGEST_BODY = 64 * 1024 * 1024
_START_SECONDS = 60.0
_JSON = "application/json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most ``requests`` in any window of ``seconds``."""

    requests: int
    seconds: float

    @classmethod
    def parse(cls, text: str) -> RateLimit:
        """``50/10s``. Raises :class:`~payout_pipeline.errors.ConfigurationError`."""
        count, separator, window = text.strip().partition("/")
        try:
            limit = cls(int(count), float(window.strip().removesuffix("s")))
        except ValueError:
            separator = ""
            limit = cls(0, 0.0)
        if not separator or limit.requests < 1 or not (0 < limit.seconds < math.inf):
            raise ConfigurationError(f"a rate limit is written like 50/10s, not {text!r}")
        return limit


@dataclass(frozen=True, slots=True)
class SubgraphConfig:
    """What to serve and how.

    ``conditions``/``unresolved``: files (see :meth:`ConditionStore.from_files`), or ``store`` made by hand.
    ``rate_limit``: ``50/10s`` or None; ``retry_after`` of a 429: ``seconds`` (until there is room), ``date`` (the same
    as an HTTP date), None (no header) or any text, sent as it is. ``latency``/``jitter``: seconds; the jitter is spread
    evenly around the latency. ``token``: bearer token that every request must have. ``chain``: head and block times,
    by default those of Polygon up to now, with ``advancing`` growing on. ``earliest_block``: what was before is pruned.
    ``log_ids``: whether the log keeps the ids of every request, about 115 bytes each.
    """

    conditions: Path | None = None
    unresolved: Path | None = None
    store: ConditionStore | None = None
    schema: SchemaName = "payouts"
    host: str = "127.0.0.1"
    port: int = 0
    names: tuple[str, ...] = NAMES
    versions: tuple[str, ...] = VERSIONS
    rate_limit: str | None = None
    retry_after: str | None = "seconds"
    latency: float = 0.0
    jitter: float = 0.0
    token: str | None = None
    chain: Chain | None = None
    advancing: bool = False
    earliest_block: int = 0
    limits: Limits = field(default_factory=Limits)
    deployment: str = DEFAULT_DEPLOYMENT
    seed: int = 0
    log_ids: bool = True


class _Service:
    """The handler and its state; lives in one event loop, is looked at from other threads."""

    def __init__(self, config: SubgraphConfig, engine: Engine) -> None:
        self.config = config
        self.engine = engine
        self.faults = FaultBoard(config.seed)
        self.log = RequestLog()
        self.rate_limit = RateLimit.parse(config.rate_limit) if config.rate_limit else None
        self.retry_after = config.retry_after
        self.latency = config.latency
        self.jitter = config.jitter
        self.token = config.token
        self.log_ids = config.log_ids
        self._admitted: deque[float] = deque()

    # -- routes -----------------------------------------------------------------------------------------------------

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path.startswith("/_control"):
            return await self._control(request, path)
        parts = path.strip("/").split("/")
        if len(parts) == 7 and parts[0] == "api" and parts[3] == "subgraphs" and parts[6] == "gn":
            return await self._goldsky(request, parts)
        if len(parts) >= 3 and parts[0] == "subgraphs" and parts[1] in ("name", "id"):
            return await self._graph_node(request, parts)
        if parts[0] == "api":
            return web.Response(status=404, text="Not Found")
        return _json_response({"message": "Not found"})

    async def _goldsky(self, request: web.Request, parts: list[str]) -> web.StreamResponse:
        private = parts[1] == "private"
        known = parts[1] in ("public", "private") and parts[4] in self.config.names and parts[5] in self.config.versions
        if not known or request.method != "POST":
            return web.Response(status=404, text="Not Found")
        return await self._query(request, needs_token=private)

    async def _graph_node(self, request: web.Request, parts: list[str]) -> web.StreamResponse:
        if request.method == "OPTIONS":
            return web.Response(status=200, headers={"access-control-allow-origin": "*"})
        if request.method == "GET":
            if parts[-1] == "graphql":
                return web.Response(text="<!DOCTYPE html><title>GraphiQL</title>", content_type="text/html")
            return web.Response(status=302, headers={"location": f"{request.path}/graphql"})
        if request.method != "POST" or len(parts) > 4:
            return _json_response({"message": "Not found"})
        name = "/".join(parts[2:])
        if not all(character.isalnum() or character in "-_/" for character in name):
            return _client_error(f"Invalid subgraph name `{request.rel_url.raw_path.split('/', 3)[-1]}`")
        known = self.config.names if parts[1] == "name" else (self.engine.deployment,)
        if name not in known:
            return _json_response({"errors": [{"message": f"deployment `{name}` does not exist"}]})
        return await self._query(request, needs_token=False)

    # -- one query --------------------------------------------------------------------------------------------------

    async def _query(self, request: web.Request, *, needs_token: bool) -> web.StreamResponse:
        arrived = time.monotonic()
        authorization = request.headers.get("Authorization")
        entry = self.log.open(arrived, time.time(), request.path, authorized=authorization is not None)
        admitted, wait = self._admit(arrived)
        try:
            body = await request.read()
            response = await self._respond(request, entry, body, admitted=admitted, wait=wait, needs_token=needs_token)
        finally:
            entry.seconds = time.monotonic() - arrived
        entry.status = response.status if not response.headers.get("x-aborted") else 0
        return response

    async def _respond(
        self,
        request: web.Request,
        entry: LoggedRequest,
        body: bytes,
        *,
        admitted: bool,
        wait: float,
        needs_token: bool,
    ) -> web.StreamResponse:
        read = self._read(request, body)
        if isinstance(read, Query):
            entry.operation, entry.kinds, entry.block = read.operation_name, tuple(read.kinds), read.pinned
            ids = read.ids
            entry.id_count = len(ids)
            if self.log_ids:
                entry.ids = tuple(ids)
        if not admitted:
            entry.faults = ("rate_limit",)
            return self._too_many(wait)
        if (self.token or needs_token) and request.headers.get("Authorization") != f"Bearer {self.token}":
            return _json_response({"message": "Unauthorized"}, status=401)
        asked = Asked(entry.number, entry.kinds, read.ids if isinstance(read, Query) else ())
        verdict = self.faults.judge(asked)
        entry.faults = verdict.names
        delay = self.latency + verdict.delay
        if self.jitter:
            delay += self.jitter * (2 * self.faults.random() - 1)
        if delay > 0:
            await asyncio.sleep(delay)
        if verdict.terminal is not None:
            return await self._fail(request, entry, verdict.terminal, verdict, read)
        return await self._answer(request, entry, read, verdict)

    async def _answer(
        self,
        request: web.Request,
        entry: LoggedRequest,
        read: Query | Answer | web.Response | ConnectionDroppedError,
        verdict: Verdict,
    ) -> web.StreamResponse:
        if isinstance(read, web.Response):
            return read
        if isinstance(read, ConnectionDroppedError):
            return _abort(request)
        answer = self.engine.answer(read, verdict.disguise) if isinstance(read, Query) else read
        entry.rows = answer.rows
        headers = {
            "graph-attestable": "true",
            "graph-indexed": orjson.dumps(self.engine.head_pointer(verdict.disguise)).decode(),
        }
        return web.Response(body=answer.body(), content_type=_JSON, headers=headers)

    def _read(self, request: web.Request, body: bytes) -> Query | Answer | web.Response | ConnectionDroppedError:
        """The query, or what is answered instead of one."""
        if "Content-Type" not in request.headers:
            return _json_response({"error": "Content-Type header is required"}, status=400)
        if not request.content_length:
            return _json_response({"error": "Body is required"}, status=400)
        try:
            payload = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            return _client_error(str(error))
        if not isinstance(payload, dict):
            return _client_error("Request data is not an object")
        if "query" not in payload:
            return _client_error('The "query" field is missing in request data')
        text, variables = payload["query"], payload.get("variables")
        if not isinstance(text, str):
            return _client_error('The "query" field is not a string')
        if variables is not None and not isinstance(variables, dict):
            return _client_error("Invalid query variables provided")
        try:
            return self.engine.read(text, variables or {})
        except QueryError as fault:
            return Answer(None, tuple(fault.errors))
        except EmptySelectionError:
            return Answer(None)
        except ConnectionDroppedError as dropped:
            return dropped

    # -- the rate limit ---------------------------------------------------------------------------------------------

    def _admit(self, now: float) -> tuple[bool, float]:
        """Whether a request that arrives now is let in, and else how long until there is room."""
        limit = self.rate_limit
        if limit is None:
            return True, 0.0
        while self._admitted and now - self._admitted[0] >= limit.seconds:
            self._admitted.popleft()
        if len(self._admitted) < limit.requests:
            self._admitted.append(now)
            return True, 0.0
        return False, limit.seconds - (now - self._admitted[0])

    def _too_many(self, wait: float) -> web.Response:
        headers: dict[str, str] = {}
        if self.retry_after == "seconds":
            headers["Retry-After"] = str(math.ceil(wait))
        elif self.retry_after == "date":
            headers["Retry-After"] = email.utils.formatdate(time.time() + math.ceil(wait) + 1, usegmt=True)
        elif self.retry_after is not None:
            headers["Retry-After"] = self.retry_after
        return web.Response(status=429, text="Too Many Requests", headers=headers)

    # -- faults -----------------------------------------------------------------------------------------------------

    async def _fail(
        self,
        request: web.Request,
        entry: LoggedRequest,
        fault: Fault,
        verdict: Verdict,
        read: Query | Answer | web.Response | ConnectionDroppedError,
    ) -> web.StreamResponse:
        options = fault.options
        kind: str = fault.kind
        if kind == "outage":
            kind = str(options.get("mode", "status"))
        if kind == "poison":
            kind = "status" if "status" in options else "errors"
        if kind in ("hang", "drop"):
            if kind == "hang":
                await asyncio.sleep(float(options.get("seconds", 86_400.0)))
            return _abort(request)
        if kind == "status":
            return _status(request, options)
        if kind == "redirect":
            return web.Response(status=int(options.get("status", 307)), headers={"location": str(options["location"])})
        if kind in ("errors", "statement_timeout"):
            messages = options.get("messages") or [options.get("message", "Store error: database unavailable")]
            if kind == "statement_timeout":
                messages = [timeout_message(read.ids if isinstance(read, Query) else ())]
            if options.get("echo"):
                messages = [f"{message} {_echo(request)}" for message in messages]
            data = None
            if options.get("with_data") and isinstance(read, Query):
                data = self.engine.answer(read, verdict.disguise).data
            answer = Answer(data, tuple({"message": message} for message in messages))
            return web.Response(body=answer.body(), content_type=_JSON)
        truth = await self._answer(request, entry, read, verdict)
        body = truth.body if isinstance(truth, web.Response) and isinstance(truth.body, bytes) else b""
        if kind == "body":
            return _odd_body(options, body)
        if kind == "reset":
            return await _reset(request, body, float(options.get("fraction", 0.5)))
        raise ConfigurationError(f"the fault {fault.kind} has no mode {kind!r}")

    # -- control ----------------------------------------------------------------------------------------------------

    async def _control(self, request: web.Request, path: str) -> web.Response:
        if path == "/_control/log" and request.method == "GET":
            since = int(request.query.get("since", "0"))
            with_ids = request.query.get("ids", "1") != "0"
            entries = [entry.as_json(ids=with_ids) for entry in self.log.entries if entry.number > since]
            limit = self.rate_limit
            window = limit.seconds if limit else 10.0
            return _json_response(
                {"requests": entries, "window_seconds": window, "max_in_window": self.log.max_in_window(window)}
            )
        if path != "/_control" or request.method not in ("GET", "POST"):
            return _json_response({"message": "Not found"}, status=404)
        if request.method == "POST":
            try:
                self.configure(orjson.loads(await request.read()))
            except (ConfigurationError, orjson.JSONDecodeError, TypeError, ValueError, AttributeError) as error:
                return _json_response({"error": str(error)}, status=400)
        return _json_response(self.state())

    def configure(self, changes: dict[str, Any]) -> None:
        """Applies ``{"clear": true, "clear_log": true, "faults": [{"kind": …, …}], "rate_limit": …, "latency": …}``.

        Further keys: ``jitter``, ``retry_after``, ``token``, ``log_ids``, ``seed``. ``faults`` adds to what is on.
        """
        settable = {"rate_limit", "retry_after", "latency", "jitter", "token", "log_ids"}
        unknown = changes.keys() - settable - {"clear", "clear_log", "faults", "seed"}
        if unknown:
            raise ConfigurationError(f"unknown keys: {', '.join(sorted(unknown))}")
        if changes.get("clear"):
            self.faults.clear()
        if changes.get("clear_log"):
            self.log.clear()
            self._admitted.clear()
        if "seed" in changes:
            self.faults.seed(int(changes["seed"]))
        if "rate_limit" in changes:
            text = changes["rate_limit"]
            self.rate_limit = RateLimit.parse(text) if text else None
        for name in settable & changes.keys() - {"rate_limit"}:
            setattr(self, name, changes[name])
        for fault in changes.get("faults", ()):
            self.faults.add(**fault)

    def state(self) -> dict[str, Any]:
        """What ``GET /_control`` shows."""
        limit = self.rate_limit
        return {
            "requests": len(self.log),
            "faults": self.faults.describe(),
            "rate_limit": f"{limit.requests}/{limit.seconds:g}s" if limit else None,
            "retry_after": self.retry_after,
            "latency": self.latency,
            "jitter": self.jitter,
            "head": self.engine.chain.head(),
            "deployment": self.engine.deployment,
            "conditions": len(self.engine.store),
        }


class SubgraphServer:
    """The server in a thread of its own, for tests and the demo.

    ``with SubgraphServer(SubgraphConfig(…)) as server: … server.url … server.log … server.faults.add("status", …)``
    """

    def __init__(self, config: SubgraphConfig) -> None:
        self.config = config
        self.engine = build_engine(config)
        self._service = _Service(config, self.engine)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self.port = 0

    @property
    def log(self) -> RequestLog:
        """The requests so far."""
        return self._service.log

    @property
    def faults(self) -> FaultBoard:
        """The faults that are on."""
        return self._service.faults

    @property
    def base_url(self) -> str:
        """Scheme, host and port."""
        return f"http://{self.config.host}:{self.port}"

    @property
    def url(self) -> str:
        """The endpoint in graph-node's form."""
        return f"{self.base_url}/subgraphs/name/{self.config.names[0]}"

    @property
    def goldsky_url(self) -> str:
        """The endpoint in the form of a public one of Goldsky."""
        return f"{self.base_url}/api/public/{PROJECT}/subgraphs/{self.config.names[0]}/{self.config.versions[0]}/gn"

    def configure(self, **changes: Value) -> None:
        """As ``POST /_control``: ``rate_limit="50/10s"``, ``latency=0.3``, ``retry_after=None``, ``clear=True`` …"""
        self._service.configure(changes)

    def start(self) -> SubgraphServer:
        """Binds the port and returns when requests are answered."""
        self._thread = threading.Thread(target=self._run, name="local-subgraph", daemon=True)
        self._thread.start()
        if not self._ready.wait(_START_SECONDS):
            raise ConfigurationError(f"the local subgraph was not ready after {_START_SECONDS:g} s")
        if self._failure is not None:
            raise self._failure
        return self

    def stop(self) -> None:
        """Closes all connections and ends the thread."""
        if self._loop is not None and self._stop is not None and self._loop.is_running():
            self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._thread.join(_START_SECONDS)

    def __enter__(self) -> SubgraphServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that called start()
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()

        def ready(port: int) -> None:
            self.port = port
            self._ready.set()

        await _serve(self._service, self._stop, ready)


def build_engine(config: SubgraphConfig) -> Engine:
    """Loads the data. Raises :class:`~payout_pipeline.errors.ConfigurationError` for what cannot be served."""
    chain = config.chain or Chain.until_now(advancing=config.advancing)
    store = config.store
    if store is None:
        if config.conditions is None:
            raise ConfigurationError("the local subgraph needs a CSV of condition_id,payouts,resolved_at")
        store = ConditionStore.from_files(config.conditions, config.unresolved, chain)
    return Engine(
        store,
        chain,
        config.schema,
        limits=config.limits,
        deployment=config.deployment,
        earliest_block=config.earliest_block,
    )


def serve_forever(config: SubgraphConfig, announce: Callable[[str], None]) -> None:
    """Serves in this thread until SIGTERM or SIGINT. ``announce`` gets the endpoint's URL once it answers."""
    service = _Service(config, build_engine(config))

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await _serve(
            service, stop, lambda port: announce(f"http://{config.host}:{port}/subgraphs/name/{config.names[0]}")
        )

    asyncio.run(main())


async def _serve(service: _Service, stop: asyncio.Event, ready: Callable[[int], None]) -> None:
    config = service.config
    app = web.Application(client_max_size=_LARGEST_BODY)
    app.router.add_route("*", "/{path:.*}", service.handle)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    listener = _listen(config.host, config.port)
    try:
        await web.SockSite(runner, listener).start()
        ready(listener.getsockname()[1])
        await stop.wait()
    finally:
        await runner.cleanup()


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), backlog=256)
    except OSError as error:
        raise ConfigurationError(
            f"the local subgraph cannot listen on {host}:{port} ({error}); choose another --port, or 0 for a free one"
        ) from error


def _json_response(payload: Value, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(payload), content_type=_JSON, status=status)


def _client_error(reason: str) -> web.Response:
    return _json_response({"error": f"GraphQL server error (client error): {reason}"}, status=400)


def _abort(request: web.Request) -> web.Response:
    """Closes the connection; the response that is returned goes nowhere."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500, headers={"x-aborted": "1"})


def _echo(request: web.Request) -> str:
    """What a careless gateway repeats: the URL and all headers, secrets included."""
    headers = "; ".join(f"{name}: {value}" for name, value in request.headers.items())
    return f"(request: {request.method} {request.url}; {headers})"


def _status(request: web.Request, options: dict[str, Any]) -> web.Response:
    status = int(options.get("status", 503))
    headers = {} if options.get("retry_after") is None else {"Retry-After": str(options["retry_after"])}
    text = str(options.get("text", f"<html><body><h1>{status}</h1></body></html>"))
    if options.get("echo"):
        text += _echo(request)
    return web.Response(
        status=status, text=text, content_type=str(options.get("content_type", "text/html")), headers=headers
    )


def _odd_body(options: dict[str, Any], truth: bytes) -> web.Response:
    form = str(options.get("form", "html"))
    bodies: dict[str, tuple[bytes, str]] = {
        "html": (HTML.encode(), "text/html"),
        "empty": (b"", _JSON),
        "truncated": (truth[: len(truth) // 2], _JSON),
        "object": (b"{}", _JSON),
        "message": (orjson.dumps({"message": options.get("text", "Not found")}), _JSON),
        "null_data": (b'{"data":null}', _JSON),
        "text": (str(options.get("text", "")).encode(), str(options.get("content_type", _JSON))),
    }
    if form not in bodies:
        raise ConfigurationError(f"no body of the form {form!r}; the forms are {', '.join(bodies)}")
    body, content_type = bodies[form]
    return web.Response(body=body, content_type=content_type, status=int(options.get("status", 200)))


async def _reset(request: web.Request, body: bytes, fraction: float) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-length": str(max(2, len(body))), "content-type": _JSON})
    with contextlib.suppress(ConnectionError):
        await response.prepare(request)
        await response.write(body[: int(len(body) * fraction)])
        await asyncio.sleep(0.05)
    response.headers["x-aborted"] = "1"
    if request.transport is not None:
        request.transport.abort()
    return response
