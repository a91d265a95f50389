"""The HTTP side of the local subgraph: paths, rate limit, token, faults and the control of them."""

from __future__ import annotations

import asyncio
import email.utils
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import orjson
from aiohttp import web

from payout_pipeline.errors import ConfigurationError
from payout_pipeline.subgraph.config import RateLimit, SubgraphConfig
from payout_pipeline.subgraph.engine import Answer, Engine, Limits, Query, QueryError
from payout_pipeline.subgraph.faults import Asked, Fault, FaultBoard, timeout_message
from payout_pipeline.subgraph.log import LoggedRequest, RequestLog
from payout_pipeline.subgraph.responses import abort, errors_payload, json_response, odd_body, reset, status_answer

_LIMITS = frozenset(Limits.__dataclass_fields__)
_SETTABLE = frozenset({"rate_limit", "retry_after", "latency", "jitter", "token", "log_ids", "max_body_bytes"})


class Service:
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
        self.max_body_bytes = config.max_body_bytes
        self._admitted: deque[float] = deque()

    # -- routes -----------------------------------------------------------------------------------------------------

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answers any request."""
        path = request.path
        if path.startswith("/_control"):
            return await self._control(request, path)
        parts = path.strip("/").split("/")
        config = self.config
        if parts[0] == "api":
            known = (
                len(parts) == 7 and parts[1] in ("public", "private") and (parts[3], parts[6]) == ("subgraphs", "gn")
            )
            if not known or parts[4] not in config.names or parts[5] not in config.versions or request.method != "POST":
                return web.Response(status=404, text="Not Found")
            return await self._query(request, needs_token=parts[1] == "private")
        if len(parts) != 3 or parts[0] != "subgraphs" or parts[1] not in ("name", "id") or request.method != "POST":
            return json_response({"message": "Not found"})
        if parts[2] not in (config.names if parts[1] == "name" else (self.engine.deployment,)):
            return json_response({"errors": [{"message": f"deployment `{parts[2]}` does not exist"}]})
        return await self._query(request, needs_token=False)

    # -- one query --------------------------------------------------------------------------------------------------

    async def _query(self, request: web.Request, *, needs_token: bool) -> web.StreamResponse:
        arrived = time.monotonic()
        authorization = request.headers.get("Authorization")
        entry = self.log.open(arrived, time.time(), request.path, authorized=authorization is not None)
        wait = self._seconds_until_admitted(arrived)
        try:
            body = await request.read()
            response = await self._respond(request, entry, body, wait, needs_token=needs_token)
        finally:
            entry.seconds = time.monotonic() - arrived
        entry.status = response.status if not response.headers.get("x-aborted") else 0
        return response

    async def _respond(
        self, request: web.Request, entry: LoggedRequest, body: bytes, wait: float, *, needs_token: bool
    ) -> web.StreamResponse:
        read = self._read(body)
        aliases, ids = 1, list[str]()
        if isinstance(read, Query):
            aliases, ids = len(read.asked), read.ids
            entry.operation, entry.kinds, entry.block = read.operation_name, read.kinds, read.block
            entry.aliases, entry.id_count = aliases, len(ids)
            entry.ids = tuple(ids) if self.log_ids else ()
        if wait > 0:
            entry.faults = ("rate_limit",)
            return self._too_many(wait)
        if len(body) > self.max_body_bytes:
            entry.faults = ("max_body_bytes",)
            return status_answer(request, {"status": 413})
        if (self.token or needs_token) and request.headers.get("Authorization") != f"Bearer {self.token}":
            return json_response({"message": "Unauthorized"}, status=401)
        if aliases > (self.engine.limits.max_aliases or math.inf):
            entry.faults = ("max_aliases",)
            return abort(request)
        verdict = self.faults.judge(Asked(entry.number, entry.kinds, ids, aliases))
        entry.faults = verdict.names
        delay = self.latency + verdict.delay
        if self.jitter:
            delay += self.jitter * (2 * self.faults.random() - 1)
        if delay > 0:
            await asyncio.sleep(delay)
        if verdict.terminal is not None:
            return await self._fail(request, entry, read, verdict.terminal, verdict.spoils)
        if isinstance(read, web.Response):
            return read
        head = orjson.dumps(self.engine.head_pointer(verdict.spoils)).decode()
        answer = self._answer(entry, read, verdict.spoils)
        return json_response(answer.payload(), headers={"graph-attestable": "true", "graph-indexed": head})

    def _answer(self, entry: LoggedRequest, read: Query | Answer | web.Response, spoils: Sequence[Fault]) -> Answer:
        if isinstance(read, web.Response):
            return Answer(None)
        answer = self.engine.answer(read, spoils) if isinstance(read, Query) else read
        entry.rows = answer.rows
        return answer

    def _read(self, body: bytes) -> Query | Answer | web.Response:
        """The query, or what is answered instead of one."""
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
        except QueryError as error:
            return Answer(None, tuple({"message": message} for message in error.messages))

    # -- the rate limit ---------------------------------------------------------------------------------------------

    def _seconds_until_admitted(self, now: float) -> float:
        """0 for a request that is let in, which counts from now on; else how long until there is room."""
        limit = self.rate_limit
        if limit is None:
            return 0.0
        while self._admitted and now - self._admitted[0] >= limit.seconds:
            self._admitted.popleft()
        if len(self._admitted) < limit.requests:
            self._admitted.append(now)
            return 0.0
        return limit.seconds - (now - self._admitted[0])

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
        read: Query | Answer | web.Response,
        fault: Fault,
        spoils: Sequence[Fault],
    ) -> web.StreamResponse:
        options = fault.options
        kind: str = fault.kind
        if kind == "outage":
            kind = str(options.get("mode", "status"))
        if kind == "poison":
            kind = "status" if "status" in options else "errors"
        if kind == "hang":
            await asyncio.sleep(float(options.get("seconds", 86_400.0)))
        if kind in ("hang", "drop"):
            return abort(request)
        if kind == "status":
            return status_answer(request, options)
        if kind == "redirect":
            return web.Response(status=int(options.get("status", 307)), headers={"location": str(options["location"])})
        asked = dict(read.asked) if isinstance(read, Query) else {}
        if kind == "statement_timeout":
            named = [identity for ids in asked.values() for identity in ids]
            return json_response({"errors": [{"message": timeout_message(named)}]})
        if kind == "errors":
            answer = self._answer(entry, read, spoils) if options.get("with_data") else Answer(None)
            return json_response(errors_payload(request, options, answer.data, list(asked)))
        payload = self._answer(entry, read, spoils).payload()
        if kind == "body":
            return await odd_body(options, payload, list(asked))
        if kind == "reset":
            return await reset(request, orjson.dumps(payload), float(options.get("fraction", 0.5)))
        raise ConfigurationError(f"the fault {fault.kind} has no mode {kind!r}")

    # -- control ----------------------------------------------------------------------------------------------------

    async def _control(self, request: web.Request, path: str) -> web.Response:
        if path == "/_control/log" and request.method == "GET":
            since = int(request.query.get("since", "0"))
            with_ids = request.query.get("ids", "1") != "0"
            entries = [entry.as_json(ids=with_ids) for entry in self.log.entries if entry.number > since]
            window = self.rate_limit.seconds if self.rate_limit else 10.0
            return json_response(
                {"requests": entries, "window_seconds": window, "max_in_window": self.log.max_in_window(window)}
            )
        if path != "/_control" or request.method not in ("GET", "POST"):
            return json_response({"message": "Not found"}, status=404)
        if request.method == "POST":
            try:
                self.configure(orjson.loads(await request.read()))
            except (ConfigurationError, orjson.JSONDecodeError, TypeError, ValueError, AttributeError) as error:
                return json_response({"error": str(error)}, status=400)
        return json_response(self.state())

    def configure(self, changes: dict[str, Any]) -> None:
        """Applies ``{"clear": true, "clear_log": true, "faults": [{"kind": …, …}], "rate_limit": …, "latency": …}``.

        Further keys: ``jitter``, ``retry_after``, ``token``, ``log_ids``, ``seed``, ``max_body_bytes`` and the fields
        of :class:`~payout_pipeline.subgraph.engine.Limits`. ``faults`` adds to what is on.
        """
        unknown = changes.keys() - _SETTABLE - _LIMITS - {"clear", "clear_log", "faults", "seed"}
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
            self.rate_limit = RateLimit.parse(changes["rate_limit"]) if changes["rate_limit"] else None
        for name in _SETTABLE & changes.keys() - {"rate_limit"}:
            setattr(self, name, changes[name])
        limits = {name: changes[name] for name in _LIMITS & changes.keys()}
        self.engine.limits = replace(self.engine.limits, **limits)
        for fault in changes.get("faults", ()):
            self.faults.add(**fault)

    def state(self) -> dict[str, Any]:
        """What ``GET /_control`` shows."""
        limit = self.rate_limit
        return {
            "requests": len(self.log),
            "faults": self.faults.describe(),
            "rate_limit": f"{limit.requests}/{limit.seconds:g}s" if limit else None,
            **{name: getattr(self, name) for name in ("retry_after", "latency", "jitter", "max_body_bytes")},
            **asdict(self.engine.limits),
            "head": self.engine.chain.head(),
            "deployment": self.engine.deployment,
            "conditions": len(self.engine.store),
        }


def _client_error(reason: str) -> web.Response:
    return json_response({"error": f"GraphQL server error (client error): {reason}"}, status=400)
