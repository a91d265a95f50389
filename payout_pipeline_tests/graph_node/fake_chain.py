"""A chain of a few empty blocks and an IPFS that merely answers: all that graph-node needs in order to serve queries.

The blocks are those of :class:`payout_pipeline.subgraph.chain.Chain`, so hashes and times are the same on both sides.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from payout_pipeline.subgraph.chain import Chain

_EMPTY_BLOOM = "0x" + "0" * 512
_EMPTY_HASH = "0x" + "0" * 64
_CHAIN_ID = 1337


class FakeChain:
    """Ethereum JSON-RPC on ``/`` and IPFS below ``/ipfs`` and ``/api/v0``, on one loopback port."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="fake-chain", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FakeChain:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def block(self, number: int, *, full: bool) -> dict[str, Any] | None:
        """An empty block as ``eth_getBlockByNumber`` gives it; None beyond the head."""
        if not 0 <= number <= self.chain.head():
            return None
        return {
            "number": hex(number),
            "hash": self.chain.block_hash(number),
            "parentHash": self.chain.block_hash(number - 1) if number else _EMPTY_HASH,
            "timestamp": hex(self.chain.timestamp(number)),
            "nonce": "0x0000000000000000",
            "sha3Uncles": _EMPTY_HASH,
            "logsBloom": _EMPTY_BLOOM,
            "transactionsRoot": _EMPTY_HASH,
            "stateRoot": _EMPTY_HASH,
            "receiptsRoot": _EMPTY_HASH,
            "mixHash": _EMPTY_HASH,
            "miner": "0x" + "0" * 40,
            "difficulty": "0x1",
            "totalDifficulty": hex(number + 1),
            "extraData": "0x",
            "size": "0x200",
            "gasLimit": "0x1c9c380",
            "gasUsed": "0x0",
            "baseFeePerGas": "0x1",
            "transactions": [],
            "uncles": [],
        }

    def answer(self, method: str, params: list[Any]) -> Any:
        """The result of one JSON-RPC call."""
        self.asked.append(method)
        if method == "net_version":
            return str(_CHAIN_ID)
        if method == "eth_chainId":
            return hex(_CHAIN_ID)
        if method == "eth_blockNumber":
            return hex(self.chain.head())
        if method == "eth_getBlockByNumber":
            named = {
                "latest": self.chain.head(),
                "safe": self.chain.head(),
                "finalized": self.chain.head(),
                "earliest": 0,
            }
            number = named[params[0]] if params[0] in named else int(params[0], 16)
            return self.block(number, full=bool(params[1]))
        if method == "eth_getBlockByHash":
            numbers = range(self.chain.head() + 1)
            found = next((number for number in numbers if self.chain.block_hash(number) == params[0]), None)
            return None if found is None else self.block(found, full=bool(params[1]))
        if method in ("eth_getLogs", "eth_getBlockReceipts", "trace_filter"):
            return []
        if method == "web3_clientVersion":
            return "fake/1.0"
        raise LookupError(method)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_arguments: object) -> None:
                """Silence."""

            def do_HEAD(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_HEAD  # noqa: N815 - the name that http.server looks for

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                answer: Any = {}
                if not self.path.startswith(("/ipfs", "/api/v0")):
                    call = json.loads(body)
                    answer = [self.one(item) for item in call] if isinstance(call, list) else self.one(call)
                text = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            @staticmethod
            def one(call: dict[str, Any]) -> dict[str, Any]:
                head = {"jsonrpc": "2.0", "id": call["id"]}
                try:
                    return {**head, "result": fake.answer(call["method"], call.get("params") or [])}
                except LookupError as error:
                    return {**head, "error": {"code": -32601, "message": f"the method {error} does not exist"}}

        return Handler
