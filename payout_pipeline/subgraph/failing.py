"""What is sent in the place of an answer where a fault takes or cuts it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import orjson
from aiohttp import web

from payout_pipeline.errors import ConfigurationError
from payout_pipeline.subgraph.engine import error_body
from payout_pipeline.subgraph.faults import Fault

_JSON = "application/json"
_HTML = "<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"


def json_response(payload: Any, status: int = 200) -> web.Response:
    """A body of JSON."""
    return web.Response(body=orjson.dumps(payload), content_type=_JSON, status=status)


def status_page(status: int, text: str | None = None, *, retry_after: str | None = None) -> web.Response:
    """A status with a page as gateways have it."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    page = f"<html><body><h1>{status}</h1></body></html>" if text is None else text
    return web.Response(status=status, text=page, content_type="text/html", headers=headers)


async def fail(
    fault: Fault, request: web.Request, payload: dict[str, Any], asked: dict[str, Sequence[str]]
) -> web.StreamResponse | None:
    """What is sent; None where the connection has to be closed.

    ``payload``: the true answer. ``asked``: response key of each list → ids that it names. Raises
    :class:`~payout_pipeline.errors.ConfigurationError` for options that the fault does not have.
    """
    options, kind = fault.options, fault.kind
    if kind == "outage":
        kind = options.get("mode", "status")
    elif kind == "poison":
        kind = "status" if "status" in options else "errors"
    echo = _echo(request) if options.get("echo") else ""
    if kind == "hang":
        await asyncio.sleep(options.get("seconds", 86_400.0))
    if kind in ("hang", "drop"):
        return None
    if kind == "reset":
        await _send_half(request, orjson.dumps(payload))
        return None
    if kind == "status":
        text = echo or options.get("text")
        return status_page(options.get("status", 503), text, retry_after=options.get("retry_after"))
    if kind == "statement_timeout":
        binds = ", ".join(identity for ids in asked.values() for identity in ids)
        reason = "Failed to get entities from store: canceling statement due to statement timeout"
        return json_response(error_body(f"{reason}, query = select … -- binds: [{binds}]"))
    if kind == "errors":
        return json_response(_errors(options, echo, payload, list(asked)))
    if kind == "body":
        return _odd_body(options, payload, list(asked))
    raise ConfigurationError(f"the fault {fault.kind} has no mode {kind!r}")


def _errors(options: dict[str, Any], echo: str, payload: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """An error, and the data beside it where that is wanted."""
    error: dict[str, Any] = {"message": options.get("message", "Store error: database unavailable") + echo}
    data = payload.get("data") if options.get("with_data") else None
    if "alias" in options:
        key = keys[options["alias"]]
        error["path"] = [key]
        data = data and {**data, key: None}
    return {"errors": [error]} if data is None else {"data": data, "errors": [error]}


def _odd_body(options: dict[str, Any], payload: dict[str, Any], keys: list[str]) -> web.Response:
    form = options["form"]
    if form == "html":
        return web.Response(text=_HTML, content_type="text/html")
    bodies = {
        "empty": b"",
        "object": b"{}",
        "message": b'{"message":"Not found"}',
        "null_data": b'{"data":null}',
        "text": options.get("text", "").encode(),
        "truncated": _truncated(payload, keys, options.get("alias")),
    }
    if form not in bodies:
        raise ConfigurationError(f"no body of the form {form!r}; the forms are html, {', '.join(bodies)}")
    return web.Response(body=bodies[form], content_type=_JSON)


def _truncated(payload: dict[str, Any], keys: list[str], alias: int | None) -> bytes:
    """Half of the body, or what comes before the end of the list ``alias``."""
    data = payload.get("data")
    if alias is None or not data:
        whole = orjson.dumps(payload)
        return whole[: len(whole) // 2]
    return orjson.dumps({"data": {key: data[key] for key in keys[: alias + 1]}})[: -len(b"}}")]


async def _send_half(request: web.Request, body: bytes) -> None:
    response = web.StreamResponse(headers={"Content-Length": str(max(2, len(body))), "Content-Type": _JSON})
    with contextlib.suppress(ConnectionError):
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        await asyncio.sleep(0.05)


def _echo(request: web.Request) -> str:
    """What a careless gateway repeats: the URL and all headers, secrets included."""
    headers = "; ".join(f"{name}: {value}" for name, value in request.headers.items())
    return f" (request: {request.method} {request.url}; {headers})"
