"""The HTTP side of the local subgraph: paths, rate limit, token, limits and faults."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from payout_pipeline.errors import ConfigurationError
from payout_pipeline.settings import RateLimit
from payout_pipeline.subgraph.chain import Chain
from payout_pipeline.subgraph.effects import altered, fail, json_response, status_page
from payout_pipeline.subgraph.engine import Answer, Engine, error_body
from payout_pipeline.subgraph.faults import REPLACES, Faults
from payout_pipeline.subgraph.log import LoggedRequest, RequestLog
from payout_pipeline.subgraph.schema import SchemaName
from payout_pipeline.subgraph.store import ConditionStore

NAME, VERSION = "positions", "0.0.7"


@dataclass(slots=True)
class SubgraphConfig:
    """What to serve and how.

    ``conditions``/``unresolved``: files (see :meth:`ConditionStore.from_files`), or ``conditions`` made by hand.
    ``chain``: head and block times, by default those of Polygon up to now, with ``advancing`` growing on.
    ``earliest_block``: what was before is pruned. ``log_ids``: whether the log keeps the ids of every request, each of
    them about 115 bytes.

    ``rate_limit``: ``50/10s`` or None; ``retry_after`` of a 429: ``seconds`` (until there is room), None (no header) or
    any text, sent as it is. ``latency``/``jitter``: seconds; the jitter is spread evenly around the latency. ``token``:
    bearer token that every request must have.

    Limits of one request, None for none: ``max_complexity``, the sum of the literal ``first`` of all lists (100 where it
    is a variable or missing); ``max_body_bytes``, above which it is answered 413; ``max_aliases``, lists above which the
    connection is closed without an answer; ``alias_timeout``, lists above which the query times out.
    """

    conditions: Path | ConditionStore
    unresolved: Path | None = None
    schema: SchemaName = "payouts"
    port: int = 0
    chain: Chain | None = None
    advancing: bool = False
    earliest_block: int = 0
    seed: int = 0
    log_ids: bool = True
    rate_limit: str | None = None
    retry_after: str | None = "seconds"
    latency: float = 0.0
    jitter: float = 0.0
    token: str | None = None
    max_complexity: int | None = None
    max_body_bytes: int | None = None
    max_aliases: int | None = None
    alias_timeout: int | None = None

    def engine(self) -> Engine:
        """Loads the data. Raises :class:`~payout_pipeline.errors.ConfigurationError` for what cannot be served."""
        chain = self.chain or Chain.until_now(advancing=self.advancing)
        store = self.conditions
        if isinstance(store, Path):
            store = ConditionStore.from_files(store, self.unresolved, chain)
        return Engine(store, chain, self.schema, self.earliest_block)


class Service:
    """The handlers and their state; lives in one event loop, is looked at from other threads."""

    def __init__(self, config: SubgraphConfig) -> None:
        self.engine = config.engine()
        self.faults = Faults(config.seed)
        self.log = RequestLog()
        self._limit: RateLimit | None = None
        self._admitted: deque[float] = deque()
        self.configure(config)

    def configure(self, config: SubgraphConfig) -> None:
        """From now on: limits, token, latency, jitter and ``retry_after``; the rest of ``config`` is not looked at again.

        With another rate limit its window is empty. Raises :class:`~payout_pipeline.errors.ConfigurationError`.
        """
        try:
            limit = RateLimit.parse(config.rate_limit) if config.rate_limit else None
        except ValueError as error:
            raise ConfigurationError(f"the rate limit of the local subgraph: {error}") from error
        if limit != self._limit:
            self._limit = limit
            self._admitted.clear()
        self.config = config

    def application(self) -> web.Application:
        """All paths. What is none of them is answered as graph-node or Goldsky's gateway answer it."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        router = app.router
        router.add_post(f"/subgraphs/name/{NAME}", self._query)
        router.add_post("/subgraphs/name/{name}", _no_deployment)
        router.add_post(f"/api/public/{{project}}/subgraphs/{NAME}/{VERSION}/gn", self._query)
        router.add_get("/_control/log", self._get_log)
        router.add_delete("/_control/log", self._clear_log)
        router.add_route("*", "/api/{path:.*}", _not_deployed)
        router.add_route("*", "/{path:.*}", _not_found)
        return app

    # -- one query --------------------------------------------------------------------------------------------------

    async def _query(self, request: web.Request) -> web.StreamResponse:
        entry = LoggedRequest(len(self.log) + 1)
        self.log.append(entry)
        try:
            response = await self._respond(request, entry)
        finally:
            entry.seconds = time.monotonic() - entry.arrived
        if response is None:
            if request.transport is not None:
                request.transport.abort()
            return web.Response()  # goes nowhere
        entry.status = response.status
        return response

    async def _respond(self, request: web.Request, entry: LoggedRequest) -> web.StreamResponse | None:
        """The response; None where the connection is to be closed."""
        config = self.config
        wait = self._seconds_until_admitted(entry.arrived)
        body = await request.read()
        try:
            text, variables = _read(body)
        except (ValueError, KeyError, TypeError) as error:
            return json_response({"error": f"GraphQL server error (client error): {error!r}"}, status=400)
        answer = self.engine.answer(text, variables)
        ids = answer.ids
        entry.operation, entry.aliases, entry.id_count = answer.operation, len(answer.asked), len(ids)
        entry.ids = tuple(ids) if config.log_ids else ()
        entry.block = dict(answer.block) if answer.block else None
        if wait > 0:
            value = config.retry_after
            retry_after = str(math.ceil(wait)) if value == "seconds" else value
            return status_page(429, "Too Many Requests", retry_after=retry_after)
        if config.max_body_bytes is not None and len(body) > config.max_body_bytes:
            return status_page(413)
        if config.token and request.headers.get("Authorization") != f"Bearer {config.token}":
            return json_response({"message": "Unauthorized"}, status=401)
        if config.max_aliases is not None and entry.aliases > config.max_aliases:
            return None
        struck = self.faults.striking(entry, ids)
        entry.faults = tuple(fault.kind for fault in struck)
        delay = sum(fault.options.get("seconds", 1.0) for fault in struck if fault.kind == "slow")
        jitter = config.jitter * (2 * self.faults.random.random() - 1) if config.jitter else 0.0
        await asyncio.sleep(max(0.0, config.latency + delay + jitter))
        payload = altered(self._limited(answer), answer.asked, struck)
        if replacing := [fault for fault in struck if fault.kind in REPLACES]:
            return await fail(replacing[0], request, payload, answer.asked)
        data = payload.get("data") or {}
        entry.rows = sum(len(data.get(key, ())) for key in answer.asked)
        return json_response(payload)

    def _limited(self, answer: Answer) -> dict[str, Any]:
        """The body of an answer, or the error of the limit that it exceeds."""
        most, most_lists = self.config.max_complexity, self.config.alias_timeout
        if most is not None and answer.complexity > most:
            return error_body(
                f"query potentially returns `{answer.complexity}` entities or more and thereby exceeds the limit of "
                f"`{most}` entities"
            )
        if most_lists is not None and len(answer.asked) > most_lists:
            return error_body("Query timed out")
        return answer.body

    # -- the rate limit ---------------------------------------------------------------------------------------------

    def _seconds_until_admitted(self, now: float) -> float:
        """0 for a request that is let in, which counts from now on; else how long until there is room."""
        limit = self._limit
        if limit is None:
            return 0.0
        while self._admitted and now - self._admitted[0] >= limit.seconds:
            self._admitted.popleft()
        if len(self._admitted) < limit.requests:
            self._admitted.append(now)
            return 0.0
        return limit.seconds - (now - self._admitted[0])

    # -- the log ----------------------------------------------------------------------------------------------------

    async def _get_log(self, _request: web.Request) -> web.Response:
        """All requests, and how many there were in the fullest window."""
        window = self._limit.seconds if self._limit else 10.0
        requests, most = [asdict(entry) for entry in self.log.entries], self.log.max_in_window(window)
        return json_response({"requests": requests, "window_seconds": window, "max_in_window": most})

    async def _clear_log(self, _request: web.Request) -> web.Response:
        self.log.clear()
        return web.Response(status=204)


def _read(body: bytes) -> tuple[str, dict[str, Any]]:
    """Query and variables. Raises ValueError, KeyError or TypeError for a body that has none."""
    payload = orjson.loads(body)
    text, variables = payload["query"], payload.get("variables") or {}
    if not isinstance(text, str) or not isinstance(variables, dict):
        raise TypeError("the query is no text, or its variables are no object")
    return text, variables


async def _no_deployment(request: web.Request) -> web.Response:
    return json_response(error_body(f"deployment `{request.match_info['name']}` does not exist"))


async def _not_deployed(_request: web.Request) -> web.Response:
    return web.Response(status=404, text="Not Found")


async def _not_found(_request: web.Request) -> web.Response:
    return json_response({"message": "Not found"})
