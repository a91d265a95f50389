"""gql's aiohttp transport, with what gql leaves out: the text of errors, a limit of the answer's size, no redirects.

gql drops the body of an HTTP error and reads an answer of any size. Here the first characters of an error survive
(scrubbed), an answer is unpacked up to a limit, and every failure is one :class:`AnswerFault` with its class.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import zlib
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from gql.transport.aiohttp import AIOHTTPTransport
from gql.transport.exceptions import TransportClosed
from graphql import ExecutionResult

from payout_pipeline.goldsky.answers import AnswerFault, read_exactly, refuse
from payout_pipeline.goldsky.classify import (
    Fault,
    FaultKind,
    classify_body,
    classify_errors,
    classify_exception,
    classify_http,
    parse_retry_after,
)
from payout_pipeline.scrub import excerpt, keys_of, register_secret

if TYPE_CHECKING:
    from gql import GraphQLRequest

MAX_ANSWER_BYTES = 64 * 1024 * 1024  # unpacked; a thousand conditions of 257 outcomes are a fifth of it
_LARGE_BYTES = 8 * 1024 * 1024  # answers above it are read one at a time, so that many of them take no more memory
_SHOWN_BYTES = 4000
_VALUES_PER_ROW = 600  # a condition has at most 257 outcomes; twice that, as numerators and for other fields
_PIECE_BYTES = 256 * 1024
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


class GoldskyTransport(AIOHTTPTransport):
    """POST to one endpoint. ``timeout_seconds``: from the start of connecting to the last byte of the answer."""

    def __init__(
        self, url: str, *, token: str | None, timeout_seconds: float, max_answer_bytes: int = MAX_ANSWER_BYTES,
        tls: ssl.SSLContext | None = None,
    ) -> None:  # fmt: skip
        for key in keys_of(url):
            register_secret(key)
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": _USER_AGENT}
        headers["Accept-Encoding"] = "gzip"
        if token:
            headers["Authorization"] = f"Bearer {token}"
        super().__init__(url=url, headers=headers, ssl=tls if tls is not None else True, ssl_close_timeout=1)
        self.timeout_seconds = timeout_seconds
        self.max_answer_bytes = max_answer_bytes
        self._proxy: str | None = None
        self._large = asyncio.Lock()

    async def connect(self) -> None:
        """Open the session. No connection is made before the first request."""
        self.client_session_args = {
            "trust_env": False,  # see _proxy
            "cookie_jar": aiohttp.DummyCookieJar(),
            "connector": aiohttp.TCPConnector(limit=0, keepalive_timeout=60),  # the callers' number is the limit
            "timeout": aiohttp.ClientTimeout(total=None),  # see execute
            "auto_decompress": False,  # aiohttp unpacks whole chunks, and a kilobyte may hold a megabyte
            "cookies": None,
        }
        self._proxy = proxy_of_environment(self.url)
        await super().connect()

    async def execute(
        self, request: GraphQLRequest, *, extra_args: dict[str, Any] | None = None, upload_files: bool = False
    ) -> ExecutionResult:
        """One request, its data and errors as they came; anything else raises AnswerFault.

        ``extra_args``: ``most_rows``, above which an answer is refused before it is parsed.
        """
        if self.session is None:
            raise TransportClosed("the transport is not connected")
        body = json.dumps(request.payload, separators=(",", ":")).encode()
        most_rows: int = (extra_args or {}).get("most_rows", 0)
        try:
            status, headers, content = await asyncio.wait_for(self._post(self.session, body), self.timeout_seconds)
            if status != 200:
                raise AnswerFault(self._http_fault(status, content, headers))
            return _parse(content, most_rows)
        except AnswerFault as error:
            fault = error.fault
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            fault = classify_exception(error, self.timeout_seconds)
        content = bytearray()
        raise AnswerFault(fault)  # anew: what a traceback leads to stays in memory

    async def _post(self, session: aiohttp.ClientSession, body: bytes) -> tuple[int, Mapping[str, str], bytearray]:
        async with session.post(
            self.url, data=body, ssl=self.ssl, proxy=self._proxy, allow_redirects=False
        ) as response:
            whole = response.status in (200, 400)
            try:
                content = await self._read(response, whole=whole)
            except (AnswerFault, aiohttp.ClientError):
                if whole:
                    raise
                content = bytearray()  # unreadable, but the status alone says what to do (a 429 has to be waited for)
        return response.status, response.headers, content

    async def _read(self, response: aiohttp.ClientResponse, *, whole: bool) -> bytearray:
        """The unpacked body, or its first bytes where it is only shown; an answer beyond the limit is refused."""
        limit = self.max_answer_bytes if whole else _SHOWN_BYTES
        body = bytearray()
        alone = False
        async with contextlib.AsyncExitStack() as stack:
            try:
                async for piece in _unpacked(response):
                    body += piece
                    if len(body) > limit and whole:
                        message = f"the answer is larger than {limit:,} bytes and was not read whole"
                        raise AnswerFault(Fault(FaultKind.SPLIT, message))
                    if len(body) > limit:
                        response.close()
                        break
                    if len(body) > _LARGE_BYTES and not alone:
                        alone = True
                        await stack.enter_async_context(self._large)
            except BaseException:
                response.close()
                body.clear()  # the traceback holds it
                raise
        return body

    def _http_fault(self, status: int, content: bytes | bytearray, headers: Mapping[str, str]) -> Fault:
        now = datetime.now(timezone.utc)
        text = content[:4000].decode("utf-8", "replace")
        fault = classify_http(
            status,
            text,
            retry_after=parse_retry_after(headers.get("Retry-After"), now),
            location=headers.get("Location"),
            has_token="Authorization" in (self.headers or {}),
        )
        if fault.kind is FaultKind.PERMANENT and status == 400:
            # Some gateways answer GraphQL errors with status 400.
            try:
                errors = json.loads(content).get("errors")
            except (ValueError, RecursionError, AttributeError):
                return fault
            if isinstance(errors, list) and errors:
                inner = classify_errors(errors, status)
                if inner.kind is not FaultKind.TRANSIENT:
                    return inner
        return fault


async def _unpacked(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The body in pieces, none of which is larger than a quarter of a megabyte."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding in ("", "identity"):
        async for chunk in response.content.iter_chunked(_PIECE_BYTES):
            yield chunk
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise AnswerFault(
            Fault(FaultKind.TRANSIENT, f"the answer is packed as {excerpt(encoding)}; asked was for gzip")
        )
    unpacking = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        async for packed in response.content.iter_chunked(_PIECE_BYTES):
            piece = unpacking.decompress(packed, _PIECE_BYTES)
            while piece:
                yield piece
                piece = unpacking.decompress(unpacking.unconsumed_tail, _PIECE_BYTES)
            if unpacking.unused_data:  # zlib would collect it without limit
                raise AnswerFault(Fault(FaultKind.TRANSIENT, "data follows the end of the packed answer", heavy=True))
    except zlib.error as error:
        raise AnswerFault(Fault(FaultKind.TRANSIENT, f"the answer cannot be unpacked: {error}", heavy=True)) from None
    if not unpacking.eof:
        raise AnswerFault(Fault(FaultKind.TRANSIENT, "the packed answer is cut off", heavy=True))


def _parse(content: bytearray, most_rows: int) -> ExecutionResult:
    """The answer in a body with status 200. Raises AnswerFault where it is none."""
    rows = content.count(b'"id"')
    if rows > most_rows + 1000:  # a few too many get a better message later
        raise refuse(f"it has some {rows:,} rows, where at most {most_rows:,} were asked for")
    # Each value follows a comma or an opening bracket, and as an object takes many times its bytes.
    values = sum(content.count(sign) for sign in (b",", b"[", b"{"))
    if values > _VALUES_PER_ROW * most_rows + 250_000:
        raise refuse(f"it has some {values:,} values, too many for the {most_rows:,} rows that were asked for")
    try:
        answer = read_exactly(content)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise AnswerFault(classify_body(content, None)) from None
    except RecursionError:
        raise refuse("it is nested too deeply") from None
    except ValueError as error:
        raise refuse(f"it cannot be read exactly: {excerpt(str(error))}") from None
    if not isinstance(answer, dict) or ("errors" not in answer and answer.get("data") is None):
        if isinstance(answer, dict) and "data" in answer:
            raise AnswerFault(Fault(FaultKind.TRANSIENT, 'HTTP 200 with {"data": null} and no errors', 200))
        raise AnswerFault(classify_body(content, answer))
    return ExecutionResult(data=answer.get("data"), errors=answer.get("errors") or None)
