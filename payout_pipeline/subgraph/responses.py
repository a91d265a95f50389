"""The bodies that faults send in the place of an answer."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import orjson
from aiohttp import web

from payout_pipeline.errors import ConfigurationError

_JSON = "application/json"
_HTML = "<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"


def json_response(payload: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A body of JSON."""
    return web.Response(body=orjson.dumps(payload), content_type=_JSON, status=status, headers=headers)


def abort(request: web.Request) -> web.Response:
    """Closes the connection; the response that is returned goes nowhere."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500, headers={"x-aborted": "1"})


def status_answer(request: web.Request, options: dict[str, Any]) -> web.Response:
    """A status with a page as gateways have it."""
    status = int(options.get("status", 503))
    headers = {} if options.get("retry_after") is None else {"Retry-After": str(options["retry_after"])}
    text = str(options.get("text", f"<html><body><h1>{status}</h1></body></html>"))
    if options.get("echo"):
        text += _echo(request)
    return web.Response(
        status=status, text=text, content_type=str(options.get("content_type", "text/html")), headers=headers
    )


def errors_payload(
    request: web.Request, options: dict[str, Any], data: dict[str, Any] | None, keys: Sequence[str]
) -> dict[str, Any]:
    """``errors``, and ``data`` beside them where there is some. ``keys``: response keys of the lists."""
    messages = options.get("messages") or [options.get("message", "Store error: database unavailable")]
    if options.get("echo"):
        messages = [f"{message} {_echo(request)}" for message in messages]
    errors: list[dict[str, Any]] = [{"message": message} for message in messages]
    if "alias" in options and keys:
        key = keys[options["alias"]]
        errors = [{**error, "path": [key]} for error in errors]
        data = data and {**data, key: None}
    return {"errors": errors} if data is None else {"data": data, "errors": errors}


async def odd_body(options: dict[str, Any], payload: dict[str, Any], keys: Sequence[str]) -> web.Response:
    """A body that is no answer. Raises :class:`~payout_pipeline.errors.ConfigurationError` for an unknown form."""
    form, status = str(options.get("form", "html")), int(options.get("status", 200))
    if form == "gzip_bomb":
        body = await asyncio.to_thread(_gzip_bomb, int(options.get("bytes", 400_000_000)))
        return web.Response(body=body, content_type=_JSON, status=status, headers={"Content-Encoding": "gzip"})
    bodies: dict[str, tuple[bytes, str]] = {
        "html": (_HTML.encode(), "text/html"),
        "empty": (b"", _JSON),
        "truncated": (_truncated(payload, keys, options.get("alias")), _JSON),
        "object": (b"{}", _JSON),
        "message": (orjson.dumps({"message": options.get("text", "Not found")}), _JSON),
        "null_data": (b'{"data":null}', _JSON),
        "text": (str(options.get("text", "")).encode(), str(options.get("content_type", _JSON))),
    }
    if form not in bodies:
        raise ConfigurationError(f"no body of the form {form!r}; the forms are gzip_bomb, {', '.join(bodies)}")
    body, content_type = bodies[form]
    return web.Response(body=body, content_type=content_type, status=status)


async def reset(request: web.Request, body: bytes, fraction: float) -> web.StreamResponse:
    """Sends a part of the body and resets the connection."""
    response = web.StreamResponse(headers={"content-length": str(max(2, len(body))), "content-type": _JSON})
    with contextlib.suppress(ConnectionError):
        await response.prepare(request)
        await response.write(body[: int(len(body) * fraction)])
        await asyncio.sleep(0.05)
    response.headers["x-aborted"] = "1"
    if request.transport is not None:
        request.transport.abort()
    return response


def _echo(request: web.Request) -> str:
    """What a careless gateway repeats: the URL and all headers, secrets included."""
    headers = "; ".join(f"{name}: {value}" for name, value in request.headers.items())
    return f"(request: {request.method} {request.url}; {headers})"


def _truncated(payload: dict[str, Any], keys: Sequence[str], alias: int | None) -> bytes:
    """Half of the body, or what comes before the end of the list ``alias``."""
    data = payload.get("data")
    if alias is None or not data:
        whole = orjson.dumps(payload)
        return whole[: len(whole) // 2]
    kept = {key: data[key] for key in keys[: alias + 1] if key in data}
    return orjson.dumps({"data": kept})[: -len(b"}}")]


@cache
def _gzip_bomb(size: int) -> bytes:
    """A gzip stream of blanks within JSON that is ``size`` bytes long when unpacked."""
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    parts, blanks = [packer.compress(b'{"data":{"conditions":[')], b" " * 1_000_000
    parts += [packer.compress(blanks) for _ in range(size // len(blanks))]
    return b"".join([*parts, packer.compress(b"]}}"), packer.flush()])
