"""The HTTP side of the local subgraph: paths, rate limit, token, limits, faults and the control of all that."""

from __future__ import annotations

import asyncio
import email.utils
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from payout_pipeline.errors import ConfigurationError
from payout_pipeline.subgraph.chain import Chain
from payout_pipeline.subgraph.engine import DEFAULT_DEPLOYMENT, Engine, Query, error_body
from payout_pipeline.subgraph.faults import Fault, FaultBoard, timeout_message
from payout_pipeline.subgraph.log import LoggedRequest, RequestLog
from payout_pipeline.subgraph.responses import abort, errors_payload, json_response, odd_body, reset, status_answer
from payout_pipeline.subgraph.schema import SchemaName
from payout_pipeline.subgraph.store import ConditionStore


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most ``requests`` in any window of ``seconds``."""

    requests: int
    seconds: float

    @classmethod
    def parse(cls, text: str) -> RateLimit:
        """``50/10s``. Raises :class:`~payout_pipeline.errors.ConfigurationError`."""
        count, _, window = text.strip().partition("/")
        try:
            limit = cls(int(count), float(window.strip().removesuffix("s")))
        except ValueError:
            limit = cls(0, 0.0)
        if limit.requests < 1 or not (0 < limit.seconds < math.inf):
            raise ConfigurationError(f"a rate limit is written like 50/10s, not {text!r}")
        return limit


@dataclass(slots=True)
class SubgraphConfig:
    """What to serve and how.

    ``conditions``/``unresolved``: files (see :meth:`ConditionStore.from_files`), or ``store`` made by hand. ``chain``:
    head and block times, by default those of Polygon up to now, with ``advancing`` growing on. ``earliest_block``: what
    was before is pruned. ``log_ids``: whether the log keeps the ids of every request, about 115 bytes each.

    ``rate_limit``: ``50/10s`` or None; ``retry_after`` of a 429: ``seconds`` (until there is room), ``date`` (the same
    as an HTTP date), None (no header) or any text, sent as it is. ``latency``/``jitter``: seconds; the jitter is spread
    evenly around the latency. ``token``: bearer token that every request must have.

    Limits of one request, None for none: ``max_complexity``, the sum of the literal ``first`` of all lists (100 where it
    is a variable or missing); ``max_body_bytes``, above which it is answered 413; ``max_aliases``, lists above which the
    connection is closed without an answer; ``alias_timeout``, lists above which the query times out.
    """

    conditions: Path | None = None
    unresolved: Path | None = None
    store: ConditionStore | None = None
    schema: SchemaName = "payouts"
    host: str = "127.0.0.1"
    port: int = 0
    names: tuple[str, ...] = ("positions", "positions-subgraph", "pnl", "pnl-subgraph")
    versions: tuple[str, ...] = ("0.0.7", "0.0.14", "prod")
    chain: Chain | None = None
    advancing: bool = False
    earliest_block: int = 0
    deployment: str = DEFAULT_DEPLOYMENT
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
        store = self.store
        if store is None:
            if self.conditions is None:
                raise ConfigurationError("the local subgraph needs a CSV of condition_id,payouts,resolved_at")
            store = ConditionStore.from_files(self.conditions, self.unresolved, chain)
        return Engine(store, chain, self.schema, self.deployment, self.earliest_block)


_SETTABLE = (
    *("rate_limit", "retry_after", "latency", "jitter", "token", "log_ids"),
    *("max_complexity", "max_body_bytes", "max_aliases", "alias_timeout"),
)


class Service:
    """The handler and its state; lives in one event loop, is looked at from other threads."""

    def __init__(self, config: SubgraphConfig, engine: Engine) -> None:
        self.config = replace(config)
        self.engine = engine
        self.faults = FaultBoard(config.seed)
        self.log = RequestLog()
        self._admitted: deque[float] = deque()
        self.configure({"rate_limit": config.rate_limit})

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answers any request."""
        path, config = request.path, self.config
        if path.startswith("/_control"):
            return await self._control(request, path)
        parts = path.strip("/").split("/")
        if parts[0] == "api":
            known = (
                len(parts) == 7 and parts[1] in ("public", "private") and (parts[3], parts[6]) == ("subgraphs", "gn")
            )
            if not known or parts[4] not in config.names or parts[5] not in config.versions or request.method != "POST":
                return web.Response(status=404, text="Not Found")
            return await self._query(request, needs_token=parts[1] == "private")
        if len(parts) != 3 or parts[:2] != ["subgraphs", "name"] or request.method != "POST":
            return json_response({"message": "Not found"})
        if parts[2] not in config.names:
            return json_response(error_body([f"deployment `{parts[2]}` does not exist"]))
        return await self._query(request, needs_token=False)

    # -- one query --------------------------------------------------------------------------------------------------

    async def _query(self, request: web.Request, *, needs_token: bool) -> web.StreamResponse:
        arrived, authorization = time.monotonic(), request.headers.get("Authorization")
        entry = self.log.open(arrived, request.path, authorized=authorization is not None)
        wait = self._seconds_until_admitted(arrived)
        try:
            body = await request.read()
            read = self._read(body)
            if isinstance(read, Query):
                entry.operation, entry.kinds, entry.block = read.operation_name, read.kinds, read.block
                entry.aliases, entry.id_count = len(read.asked), len(read.ids)
                entry.ids = tuple(read.ids) if self.config.log_ids else ()
            refused = self._refused(request, entry, len(body), wait, needs_token=needs_token)
            response = refused or await self._respond(request, entry, read)
        finally:
            entry.seconds = time.monotonic() - arrived
        entry.status = response.status if not response.headers.get("x-aborted") else 0
        return response

    def _refused(
        self, request: web.Request, entry: LoggedRequest, size: int, wait: float, *, needs_token: bool
    ) -> web.Response | None:
        """What the gateway answers to a request that it does not let through."""
        config = self.config
        if wait > 0:
            entry.faults = ("rate_limit",)
            return self._too_many(wait)
        if config.max_body_bytes is not None and size > config.max_body_bytes:
            entry.faults = ("max_body_bytes",)
            return status_answer(request, {"status": 413})
        if (config.token or needs_token) and request.headers.get("Authorization") != f"Bearer {config.token}":
            return json_response({"message": "Unauthorized"}, status=401)
        if config.max_aliases is not None and entry.aliases > config.max_aliases:
            entry.faults = ("max_aliases",)
            return abort(request)
        return None

    async def _respond(
        self, request: web.Request, entry: LoggedRequest, read: Query | web.Response
    ) -> web.StreamResponse:
        struck = self.faults.judge(entry, read.ids if isinstance(read, Query) else ())
        entry.faults = tuple(fault.kind for fault in struck)
        delay = sum(float(fault.options.get("seconds", 1.0)) for fault in struck if fault.kind == "slow")
        jitter = self.config.jitter * (2 * self.faults.dice.random() - 1) if self.config.jitter else 0.0
        await asyncio.sleep(max(0.0, self.config.latency + delay + jitter))
        for fault in struck:
            if fault.ends:
                return await self._fail(request, entry, read, fault, struck)
        return read if isinstance(read, web.Response) else json_response(self._answer(entry, read, struck))

    def _answer(self, entry: LoggedRequest, read: Query | web.Response, spoils: Sequence[Fault]) -> dict[str, Any]:
        if isinstance(read, web.Response):
            return {}
        limit = self.config.alias_timeout
        if limit is not None and entry.aliases > limit:
            return error_body(["Query timed out"])
        payload, entry.rows = self.engine.answer(read, spoils)
        return payload

    def _read(self, body: bytes) -> Query | web.Response:
        """The query, or what is answered instead of one."""
        try:
            payload = orjson.loads(body)
            text, variables = payload["query"], payload.get("variables") or {}
            if not isinstance(text, str) or not isinstance(variables, dict):
                raise TypeError("the query is no text, or its variables are no object")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return json_response({"error": f"GraphQL server error (client error): {error!r}"}, status=400)
        query = self.engine.read(text, variables)
        if isinstance(query, dict):
            return json_response(query)
        limit = self.config.max_complexity
        if limit is not None and query.complexity > limit:
            message = (
                f"query potentially returns `{query.complexity}` entities or more and thereby exceeds the limit of "
                f"`{limit}` entities. Possible solutions are reducing the depth of the query, querying fewer "
                "relationships or using `first` to return smaller collections"
            )
            return json_response(error_body([message]))
        return query

    # -- the rate limit ---------------------------------------------------------------------------------------------

    def _seconds_until_admitted(self, now: float) -> float:
        """0 for a request that is let in, which counts from now on; else how long until there is room."""
        limit = self._rate_limit
        if limit is None:
            return 0.0
        while self._admitted and now - self._admitted[0] >= limit.seconds:
            self._admitted.popleft()
        if len(self._admitted) < limit.requests:
            self._admitted.append(now)
            return 0.0
        return limit.seconds - (now - self._admitted[0])

    def _too_many(self, wait: float) -> web.Response:
        value = self.config.retry_after
        if value == "seconds":
            value = str(math.ceil(wait))
        elif value == "date":
            value = email.utils.formatdate(time.time() + math.ceil(wait) + 1, usegmt=True)
        headers = {} if value is None else {"Retry-After": value}
        return web.Response(status=429, text="Too Many Requests", headers=headers)

    # -- faults -----------------------------------------------------------------------------------------------------

    async def _fail(
        self,
        request: web.Request,
        entry: LoggedRequest,
        read: Query | web.Response,
        fault: Fault,
        spoils: Sequence[Fault],
    ) -> web.StreamResponse:
        options, kind = fault.options, fault.kind
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
        if kind == "statement_timeout":
            return json_response(error_body([timeout_message(read.ids if isinstance(read, Query) else ())]))
        keys = list(read.asked) if isinstance(read, Query) else []
        if kind == "errors":
            data = self._answer(entry, read, spoils).get("data") if options.get("with_data") else None
            return json_response(errors_payload(request, options, data, keys))
        payload = self._answer(entry, read, spoils)
        if kind == "body":
            return await odd_body(options, payload, keys)
        if kind == "reset":
            return await reset(request, orjson.dumps(payload), float(options.get("fraction", 0.5)))
        raise ConfigurationError(f"the fault {fault.kind} has no mode {kind!r}")

    # -- control ----------------------------------------------------------------------------------------------------

    async def _control(self, request: web.Request, path: str) -> web.Response:
        if path == "/_control/log":
            since, window = int(request.query.get("since", "0")), self._rate_limit.seconds if self._rate_limit else 10.0
            entries = [asdict(entry) for entry in self.log.entries if entry.number > since]
            if request.query.get("ids") == "0":
                entries = [{name: value for name, value in entry.items() if name != "ids"} for entry in entries]
            most = self.log.max_in_window(window)
            return json_response({"requests": entries, "window_seconds": window, "max_in_window": most})
        if request.method == "POST":
            try:
                self.configure(orjson.loads(await request.read()))
            except (ConfigurationError, TypeError, ValueError, AttributeError) as error:
                return json_response({"error": str(error)}, status=400)
        return json_response(
            {
                "requests": len(self.log),
                "faults": self.faults.describe(),
                **{name: getattr(self.config, name) for name in _SETTABLE if name != "token"},
                "head": self.engine.chain.head(),
                "deployment": self.engine.deployment,
                "conditions": len(self.engine.store),
            }
        )

    def configure(self, changes: dict[str, Any]) -> None:
        """Applies ``{"clear": true, "clear_log": true, "faults": [{"kind": …, …}], "rate_limit": …, "latency": …}``.

        Further keys: ``seed``, and ``jitter``, ``retry_after``, ``token``, ``log_ids`` and the limits as in
        :class:`SubgraphConfig`. ``faults`` adds to what is on.
        """
        unknown = changes.keys() - {*_SETTABLE, "clear", "clear_log", "faults", "seed"}
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
            self._rate_limit = RateLimit.parse(changes["rate_limit"]) if changes["rate_limit"] else None
        self.config = replace(self.config, **{name: changes[name] for name in _SETTABLE if name in changes})
        for fault in changes.get("faults", ()):
            self.faults.add(**fault)
