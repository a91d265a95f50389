"""gql's aiohttp transport, with what gql leaves out: the text of errors, a limit of the answer's size, no redirects.

gql drops the body of an HTTP error, prints the query's syntax tree anew for every request, and reads an answer of any
size. Here each document is printed once, the first characters of an error survive (scrubbed), and every failure is one
:class:`AnswerFault` with its class.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ssl
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson
from gql.transport.aiohttp import AIOHTTPTransport
from gql.transport.exceptions import TransportClosed
from graphql import ExecutionResult, print_ast

from payout_pipeline.goldsky.answers import AnswerFault
from payout_pipeline.goldsky.classify import (
    Fault,
    FaultKind,
    classify_body,
    classify_errors,
    classify_exception,
    classify_http,
    parse_retry_after,
)
from payout_pipeline.scrub import register_secret

if TYPE_CHECKING:
    from gql import GraphQLRequest
    from graphql import DocumentNode

MAX_ANSWER_BYTES = 64 * 1024 * 1024  # a thousand conditions of 257 outcomes are a fifth of it
_USER_AGENT = "payout-pipeline (gql, aiohttp)"


def proxy_of_environment(url: str) -> str | None:
    """The proxy that HTTP_PROXY, HTTPS_PROXY and NO_PROXY name for ``url``.

    aiohttp can find it as well, but looks it up for every request, in a thread, and reads ``~/.netrc`` besides, whose
    password would go to the subgraph.
    """
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if not proxy or not parts.hostname or proxy_bypass(parts.netloc):
        return None
    register_secret(urlsplit(proxy).password)
    return proxy


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage collection inside. Thousands of new objects, none of them garbage, would set it off several times for
    each answer, and it takes longer than reading the answer does."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Answer(ExecutionResult):
    """An execution result together with the bytes that it was read from."""

    __slots__ = ("body",)

    def __init__(self, data: Any, errors: Any, body: bytes) -> None:
        super().__init__(data=data, errors=errors)
        self.body = body


class GoldskyTransport(AIOHTTPTransport):
    """POST to one endpoint. ``timeout_seconds``: from the start of connecting to the last byte of the answer."""

    def __init__(
        self, url: str, *, token: str | None, timeout_seconds: float, max_answer_bytes: int = MAX_ANSWER_BYTES,
        tls: ssl.SSLContext | None = None,
    ) -> None:  # fmt: skip
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": _USER_AGENT}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        super().__init__(url=url, headers=headers, ssl=tls if tls is not None else True, ssl_close_timeout=1)
        self.timeout_seconds = timeout_seconds
        self.max_answer_bytes = max_answer_bytes
        self._proxy: str | None = None
        self._queries: dict[int, tuple[DocumentNode, bytes]] = {}

    async def connect(self) -> None:
        """Open the session. No connection is made before the first request."""
        self.client_session_args = {
            "trust_env": False,  # see _proxy
            "cookie_jar": aiohttp.DummyCookieJar(),
            "connector": aiohttp.TCPConnector(limit=0, keepalive_timeout=60),  # the callers' number is the limit
            # aiohttp rounds longer deadlines up to whole seconds unless told otherwise.
            "timeout": aiohttp.ClientTimeout(total=self.timeout_seconds, ceil_threshold=1e9),
            "cookies": None,
        }
        self._proxy = proxy_of_environment(self.url)
        await super().connect()

    def _serialise(self, request: GraphQLRequest) -> bytes:
        cached = self._queries.get(id(request.document))
        if cached is None or cached[0] is not request.document:
            if len(self._queries) >= 512:
                self._queries.clear()
            cached = (request.document, b'{"query":' + orjson.dumps(print_ast(request.document)))
            self._queries[id(request.document)] = cached
        if not request.variable_values:
            return cached[1] + b"}"
        return cached[1] + b',"variables":' + orjson.dumps(request.variable_values) + b"}"

    async def execute(
        self, request: GraphQLRequest, *, extra_args: dict[str, Any] | None = None, upload_files: bool = False
    ) -> ExecutionResult:
        """One request, one :class:`Answer` without errors; anything else raises AnswerFault.

        ``indexing_error`` beside data is handed through: the caller decides what may be used of it.
        """
        if self.session is None:
            raise TransportClosed("the transport is not connected")
        body = self._serialise(request)
        try:
            async with self.session.post(
                self.url, data=body, ssl=self.ssl, proxy=self._proxy, allow_redirects=False
            ) as response:
                status = response.status
                content = await self._read(response, 4000 if status != 200 and status != 400 else self.max_answer_bytes)
                headers = response.headers
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise AnswerFault(classify_exception(error, self.timeout_seconds)) from error
        if status != 200:
            raise AnswerFault(self._http_fault(status, content, headers))
        try:
            with collector_paused():
                answer = orjson.loads(content)
        except orjson.JSONDecodeError:
            raise AnswerFault(classify_body(content, None)) from None
        if not isinstance(answer, dict) or ("errors" not in answer and answer.get("data") is None):
            if isinstance(answer, dict) and "data" in answer:
                raise AnswerFault(Fault(FaultKind.TRANSIENT, 'HTTP 200 with {"data": null} and no errors', 200))
            raise AnswerFault(classify_body(content, answer))
        return Answer(answer.get("data"), answer.get("errors") or None, content)

    async def _read(self, response: aiohttp.ClientResponse, limit: int) -> bytes:
        """The body, or its first ``limit`` bytes where it is only shown; an answer beyond the limit is refused."""
        parts: list[bytes] = []
        size = 0
        async for chunk in response.content.iter_any():
            parts.append(chunk)
            size += len(chunk)
            if size > limit:
                if limit >= self.max_answer_bytes:
                    raise AnswerFault(
                        Fault(FaultKind.SPLIT, f"the answer is larger than {limit:,} bytes and was not read to its end")
                    )
                response.close()
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @staticmethod
    def _http_fault(status: int, content: bytes, headers: Mapping[str, str]) -> Fault:
        now = datetime.now(timezone.utc)
        text = content[:4000].decode("utf-8", "replace")
        fault = classify_http(
            status,
            text,
            retry_after=parse_retry_after(headers.get("Retry-After"), now),
            location=headers.get("Location"),
        )
        if fault.kind is FaultKind.PERMANENT and status == 400:
            # Some gateways answer GraphQL errors with status 400.
            try:
                errors = orjson.loads(content).get("errors")
            except (orjson.JSONDecodeError, AttributeError):
                return fault
            if isinstance(errors, list) and errors:
                inner = classify_errors(errors, status)
                if inner.kind is not FaultKind.TRANSIENT:
                    return inner
        return fault
