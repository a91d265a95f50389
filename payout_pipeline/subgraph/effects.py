"""What faults do to an answer: rows and ``_meta`` changed, or something else sent in its place."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any

import orjson
from aiohttp import web

from payout_pipeline.subgraph.engine import error_body
from payout_pipeline.subgraph.faults import OF_ROWS, Fault

Row = dict[str, Any]

_JSON = "application/json"
_HTML = "<!DOCTYPE html><html><body><h1>{status}</h1></body></html>"


def json_response(payload: Any, status: int = 200) -> web.Response:
    """A body of JSON."""
    return web.Response(body=orjson.dumps(payload), content_type=_JSON, status=status)


def status_page(status: int, text: str | None = None, *, retry_after: str | None = None) -> web.Response:
    """A status with a page as gateways have it, or with another text."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    page = _HTML.format(status=status) if text is None else text
    return web.Response(status=status, text=page, content_type="text/html", headers=headers)


# -- changed answers ---------------------------------------------------------------------------------------------------


def altered(body: dict[str, Any], asked: Mapping[str, Sequence[str]], faults: Iterable[Fault]) -> dict[str, Any]:
    """The body that is served in the place of ``body``. ``asked``: response key of each list → ids that it names."""
    for fault in faults:
        data = body.get("data")
        if data is None:
            break
        _alter_meta(fault, data.get("_meta"))
        if fault.kind == "failed":
            shown = {key: data[key] for key in data if key in ("_meta", "__schema", "__type")}
            body = {**({"data": shown} if shown else {}), **error_body("indexing_error")}
        for number, (key, ids) in enumerate(asked.items()):
            if fault.options.get("alias", number) == number:
                if fault.kind == "missing_alias":
                    data.pop(key, None)
                elif fault.kind in OF_ROWS and key in data:
                    data[key] = _rows(fault, ids, data[key])
    return body


def _alter_meta(fault: Fault, meta: dict[str, Any] | None) -> None:
    if meta is None:
        return
    if fault.kind in ("failed", "indexing_errors"):
        meta["hasIndexingErrors"] = True
    elif fault.kind == "deployment":
        meta["deployment"] = fault.options["deployment"]
    elif fault.kind == "stale_head" and meta["block"].get("timestamp"):
        meta["block"]["timestamp"] -= fault.options.get("seconds", 86_400)


def _rows(fault: Fault, asked: Sequence[str], rows: list[Row]) -> list[Row]:
    """Of a list that was not ``asked`` for by ids, rows are capped and rewritten, but neither added nor left out."""
    if fault.kind == "page_cap":
        return rows[: fault.options.get("rows", 100)]
    if fault.kind == "raw":
        fields: Mapping[str, Row] = fault.options["fields"]
        return [{name: fields.get(row["id"], row).get(name, row[name]) for name in row} for row in rows]
    return _ROW_FAULTS[fault.kind](asked, rows) if asked and rows else rows


def _unasked(asked: Sequence[str]) -> str:
    """An id of the right form that is not among those asked for."""
    return next(identity for number in count() if (identity := f"0x{number:064x}") not in asked)


_ROW_FAULTS: dict[str, Callable[[Sequence[str], list[Row]], list[Row]]] = {
    "foreign_id": lambda asked, rows: [*rows[:-1], {**rows[-1], "id": _unasked(asked)}],
    "extra_id": lambda asked, rows: [*rows, {**rows[-1], "id": _unasked(asked)}],
    "duplicate_id": lambda _asked, rows: [rows[0], *rows],
    "upper_case_id": lambda _asked, rows: [{**rows[0], "id": "0x" + rows[0]["id"][2:].upper()}, *rows[1:]],
    "malformed_id": lambda _asked, rows: [{**rows[0], "id": "0xnot-an-id"}, *rows[1:]],
    "omit_id": lambda _asked, rows: rows[1:],
}


# -- something else in the place of an answer --------------------------------------------------------------------------


async def fail(
    fault: Fault, request: web.Request, payload: dict[str, Any], asked: dict[str, Sequence[str]]
) -> web.StreamResponse | None:
    """What is sent; None where the connection has to be closed.

    ``payload``: the true answer. ``asked``: response key of each list → ids that it names.
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
        status = options.get("status", 503)
        text = options.get("text", _HTML.format(status=status)) + echo
        return status_page(status, text, retry_after=options.get("retry_after"))
    if kind == "statement_timeout":
        binds = ", ".join(identity for ids in asked.values() for identity in ids)
        reason = "Failed to get entities from store: canceling statement due to statement timeout"
        return json_response(error_body(f"{reason}, query = select ... -- binds: [{binds}]"))
    if kind == "body":
        return _odd_body(options, payload, list(asked))
    return json_response(_errors(options, echo, payload, list(asked)))


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
        return status_page(200, _HTML.format(status=502))
    bodies = {
        "empty": b"",
        "object": b"{}",
        "message": b'{"message":"Not found"}',
        "null_data": b'{"data":null}',
        "text": options.get("text", "").encode(),
        "truncated": _truncated(payload, keys, options.get("alias")),
    }
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
