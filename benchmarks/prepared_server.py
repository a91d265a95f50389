"""A subgraph that answers prepared bytes, so that the server is never what a benchmark measures.

``python -m benchmarks.prepared_server --ids FILE`` prints ``listening on http://…`` and serves until SIGTERM.

- HTTP/1.1 with keep-alive on a bare asyncio protocol. The answer to a list of ids is rendered once, before the first
  request (``--prepare WORKERSxBATCH``) or when the list is first seen, and found again by the digest of the list.
- Only the question that a plan was made for takes that path: operation, arguments and fields are parsed once for each
  text. Every other query is executed by graphql-core over the same truth, or refused; none is guessed at.
- ``POST /_control/configure`` ``{"latency": s, "jitter": s, "requests": n, "seconds": s}`` sets latency and a sliding
  rate limit (429 with Retry-After; 0 is none) and empties the log; ``GET /_control/log`` tells what arrived when.

It is no conformance stand-in: one schema (``payouts``), one block height, no faults. ``payout-pipeline subgraph`` is.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hashlib
import json
import math
import random
import re
import resource
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from graphql import (
    DocumentNode,
    FieldNode,
    GraphQLSchema,
    IntValueNode,
    ObjectValueNode,
    OperationDefinitionNode,
    VariableNode,
    build_schema,
    graphql_sync,
    parse,
)

from benchmarks import data
from benchmarks.data import HEAD

DEPLOYMENT = "QmPreparedBytes"
_SDL = """
scalar BigDecimal
scalar Bytes
type Condition { id: ID!  payouts: [BigDecimal!] }
input Block_height { hash: Bytes  number: Int  number_gte: Int }
input Condition_filter { id_in: [ID!] }
type _Block_ { hash: Bytes  number: Int!  timestamp: Int  parentHash: Bytes }
type _Meta_ { block: _Block_!  deployment: String!  hasIndexingErrors: Boolean! }
type Query {
  conditions(first: Int = 100, where: Condition_filter!, block: Block_height): [Condition!]!
  _meta(block: Block_height): _Meta_
}
"""
_IDS = re.compile(rb'"ids":\s*\[')
_QUERY = re.compile(rb'"query":\s*("(?:[^"\\]|\\.)*")')


@dataclass(frozen=True, slots=True)
class Plan:
    """A query text that is the question for a list of ids: its limit, and the end of its answer."""

    first: int
    tail: bytes


def rows_of(ids: list[str]) -> list[bytes]:
    """The rows of an answer, ascending by id as graph-node gives them."""
    rows = []
    for identifier in sorted(set(ids)):
        known = data.outcome(identifier)
        if known.known:
            payouts = "null" if known.payouts is None else '["' + '","'.join(known.payouts) + '"]'
            rows.append(f'{{"id":"0x{identifier}","payouts":{payouts}}}'.encode())
    return rows


class Truth:
    """Answers: prepared, learnt, or executed."""

    def __init__(self, ids: list[str]) -> None:
        self.ids = frozenset(ids)
        self.prepared: dict[bytes, tuple[bytes, int]] = {}
        self.plans: dict[bytes, Plan | None] = {}
        self.learnt = 0
        self._schema = self._build()

    def prepare(self, ids: list[str], workers: int, size: int) -> None:
        """Render the answers to the lists that so many workers ask for."""
        for batch in data.batches(ids, workers, size):
            listed = ('"0x' + '","0x'.join(batch) + '"').encode()
            self._render(hashlib.blake2b(listed, digest_size=16).digest(), batch)

    def _render(self, key: bytes, batch: list[str]) -> tuple[bytes, int]:
        rows = rows_of([identifier for identifier in batch if identifier in self.ids])
        self.prepared[key] = entry = (b'{"data":{"conditions":[' + b",".join(rows), len(rows))
        return entry

    def answer(self, body: bytes) -> tuple[bytes, int]:
        """The answer to a request's body, and how many ids it listed."""
        query = _QUERY.search(body, 0, 20_000)
        if query is None:
            raise ValueError("no query within the first 20,000 bytes")
        text = query.group(1)
        plan = self.plans.get(text)
        if plan is None and text not in self.plans:
            plan = self.plans[text] = plan_of(parse(json.loads(text)))
        if plan is not None and (start := _IDS.search(body, query.end())) is not None:
            end = body.index(b"]", start.end())
            listed = body[start.end() : end]
            if b'", "' in listed[:200]:
                listed = listed.replace(b'", "', b'","')
            many = listed.count(b",") + 1
            key = hashlib.blake2b(listed, digest_size=16).digest()
            entry = self.prepared.get(key)
            if entry is None:
                entry = self._render(key, [text[2:] for text in json.loads(b"[" + listed + b"]")])
                self.learnt += 1
            rows, count = entry
            if count <= plan.first:
                return rows + plan.tail, many
        return self._execute(body)

    def _execute(self, body: bytes) -> tuple[bytes, int]:
        request = orjson.loads(body)
        variables = request.get("variables") or {}
        result = graphql_sync(self._schema, request["query"], variable_values=variables)
        said: dict[str, Any] = {}
        if result.data is not None:
            said["data"] = result.data
        if result.errors:
            said = {"errors": [{"message": error.message} for error in result.errors]}
        ids = variables.get("ids")
        return orjson.dumps(said), len(ids) if isinstance(ids, list) else 0

    def _build(self) -> GraphQLSchema:
        schema = build_schema(_SDL)
        query = schema.query_type
        assert query is not None  # noqa: S101 - the SDL above has it

        def number(block: dict[str, Any] | None) -> int:
            asked = (block or {}).get("number", HEAD)
            if asked > HEAD:
                raise ValueError(f"block {asked} is beyond the head {HEAD}")
            return int(asked)

        def conditions(
            _root: object, _info: object, first: int, where: dict[str, Any], block: dict[str, Any] | None = None
        ) -> list[Any]:
            number(block)
            asked = [identifier.removeprefix("0x") for identifier in where["id_in"]]
            rows = rows_of([identifier for identifier in asked if identifier in self.ids])
            return [orjson.loads(row) for row in rows][:first]

        def meta(_root: object, _info: object, block: dict[str, Any] | None = None) -> dict[str, Any]:
            at = number(block)
            # The head is always fresh; older blocks are two seconds apart.
            stamp = int(time.time()) - 2 * (HEAD - at)
            height = {"number": at, "hash": "0x" + hashlib.sha256(b"%d" % at).hexdigest(), "timestamp": stamp}
            return {"block": height, "deployment": DEPLOYMENT, "hasIndexingErrors": False}

        query.fields["conditions"].resolve = conditions
        query.fields["_meta"].resolve = meta
        return schema


def plan_of(document: DocumentNode) -> Plan | None:
    """The plan for exactly ``conditions(first: n, where: {id_in: $ids}, block: {number: b}) {id payouts}`` beside
    ``_meta(block: {number: b})``; None for anything else."""
    if len(document.definitions) != 1 or not isinstance(document.definitions[0], OperationDefinitionNode):
        return None
    fields = {f.name.value: f for f in document.definitions[0].selection_set.selections if isinstance(f, FieldNode)}
    if not {"conditions"} <= set(fields) <= {"conditions", "_meta"}:
        return None
    conditions, meta = fields["conditions"], fields.get("_meta")
    arguments = {argument.name.value: argument.value for argument in conditions.arguments}
    where, first = arguments.get("where"), arguments.get("first")
    chosen = [f.name.value for f in conditions.selection_set.selections] if conditions.selection_set else []  # type: ignore[attr-defined]
    if (
        set(arguments) - {"block"} != {"first", "where"}
        or not isinstance(first, IntValueNode)
        or not isinstance(where, ObjectValueNode)
        or [(f.name.value, type(f.value)) for f in where.fields] != [("id_in", VariableNode)]
        or where.fields[0].value.name.value != "ids"  # type: ignore[attr-defined]
        or chosen != ["id", "payouts"]
        or any(field.alias or field.directives for field in fields.values())
    ):
        return None
    block = _block(arguments.get("block"))
    if block is None:
        return None
    if meta is None:
        return Plan(int(first.value), b"]}}")
    if _block({argument.name.value: argument.value for argument in meta.arguments}.get("block")) != block:
        return None
    told = {"deployment": DEPLOYMENT, "block": {"number": block}, "hasIndexingErrors": False}
    names = {f.name.value for f in meta.selection_set.selections} if meta.selection_set else set()  # type: ignore[attr-defined]
    if not names <= set(told):
        return None
    return Plan(int(first.value), b'],"_meta":' + orjson.dumps({name: told[name] for name in names}) + b"}}")


def _block(value: object) -> int | None:
    if value is None:
        return HEAD
    if isinstance(value, ObjectValueNode) and [f.name.value for f in value.fields] == ["number"]:
        number = value.fields[0].value
        if isinstance(number, IntValueNode) and int(number.value) <= HEAD:
            return int(number.value)
    return None


class Service:
    """Latency, the rate limit and the log, for all connections."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.random = random.Random(0)
        self.configure({})

    def configure(self, options: dict[str, float]) -> None:
        """Set latency and limit, and forget what was."""
        self.latency, self.jitter = float(options.get("latency", 0)), float(options.get("jitter", 0))
        self.requests, self.seconds = int(options.get("requests", 0)), float(options.get("seconds", 10))
        self.window: deque[float] = deque()
        self.log: list[tuple[float, float, int, int]] = []
        self.most = 0
        self.truth.learnt = 0
        self.cpu = _cpu()

    def admit(self, now: float) -> float | None:
        """Seconds to stay away, None where the request is within the limit."""
        if not self.requests:
            return None
        while self.window and now - self.window[0] >= self.seconds:
            self.window.popleft()
        if len(self.window) >= self.requests:
            return self.window[0] + self.seconds - now
        self.window.append(now)
        self.most = max(self.most, len(self.window))
        return None

    def report(self) -> bytes:
        """The log: per request when it came, when its answer was ready to go, its status and how many ids it listed."""
        return orjson.dumps(
            {"log": self.log, "most_in_window": self.most, "learnt": self.truth.learnt, "cpu": _cpu() - self.cpu}
        )


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Connection(asyncio.Protocol):
    """One client: requests one after the other."""

    def __init__(self, service: Service, loop: asyncio.AbstractEventLoop) -> None:
        self.service, self.loop = service, loop
        self.parts: list[bytes] = []
        self.have, self.need = 0, 0
        self.head_end = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.transport.set_write_buffer_limits(high=4 << 20)

    def data_received(self, received: bytes) -> None:
        self.parts.append(received)
        self.have += len(received)
        if self.have < self.need:
            return
        buffer = b"".join(self.parts)
        if not self.need:
            self.head_end = buffer.find(b"\r\n\r\n")
            if self.head_end < 0:
                self.parts = [buffer]
                return
            length = re.search(rb"\r\ncontent-length:\s*(\d+)", buffer[: self.head_end], re.IGNORECASE)
            self.need = self.head_end + 4 + (int(length.group(1)) if length else 0)
            if self.have < self.need:
                self.parts = [buffer]
                return
        head, body = buffer[: self.head_end], buffer[self.head_end + 4 : self.need]
        self.parts = [buffer[self.need :]] if self.have > self.need else []
        self.have, self.need = self.have - self.need, 0
        self.handle(head, body)

    def handle(self, head: bytes, body: bytes) -> None:
        """Answer one request."""
        method, path, _ = head.split(b"\r\n", 1)[0].split(b" ", 2)
        service = self.service
        if path.startswith(b"/_control/"):
            if path == b"/_control/configure" and method == b"POST":
                service.configure(orjson.loads(body or b"{}"))
                self.send(b"{}")
            else:
                self.send(service.report())
            return
        now = time.time()
        away = service.admit(now)
        if away is not None:
            service.log.append((now, now, 429, 0))
            self.send(b"Too Many Requests", 429, f"Retry-After: {max(1, math.ceil(away))}\r\n".encode())
            return
        try:
            answer, ids = service.truth.answer(body)
            status = 200
        except (ValueError, KeyError, TypeError) as error:
            answer, ids, status = orjson.dumps({"error": f"{type(error).__name__}: {error}"}), 0, 400
        delay = service.latency + service.random.uniform(-service.jitter, service.jitter)
        service.log.append((now, now + max(delay, 0), status, ids))
        if delay > 0:
            self.loop.call_later(delay, self.send, answer, status)
        else:
            self.send(answer, status)

    def send(self, body: bytes, status: int = 200, more: bytes = b"") -> None:
        """Write one response."""
        if self.transport.is_closing():
            return
        self.transport.write(
            b"HTTP/1.1 %d %s\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n"
            % (status, b"OK" if status == 200 else b"Refused", more, len(body))
        )
        self.transport.write(body)


async def _serve(service: Service, port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(service, loop), "127.0.0.1", port, backlog=512)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    sys.stdout.write(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}/prepared/gn\n")
    sys.stdout.flush()
    await stop.wait()
    server.close()


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--ids", type=Path, required=True)
    parser.add_argument("--prepare", action="append", default=[], metavar="WORKERSxBATCH")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    ids = data.read_ids(options.ids)
    truth = Truth(ids)
    for form in options.prepare:
        workers, size = map(int, form.split("x"))
        truth.prepare(ids, workers, size)
    gc.collect()
    gc.freeze()
    gc.disable()  # nothing here makes cycles, and a collection would show as latency
    service = _serve(Service(truth), options.port)
    try:
        import uvloop
    except ImportError:
        asyncio.run(service)
    else:
        uvloop.run(service)


if __name__ == "__main__":
    main()
