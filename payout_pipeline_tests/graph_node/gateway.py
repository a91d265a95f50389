"""A gateway before a subgraph, as Goldsky has one: it passes requests on, counts them, and keeps the rate limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError
from urllib.request import Request, urlopen

_PASSED_ON = ("Content-Type", "Content-Encoding", "Accept", "Accept-Encoding")


@dataclass
class Gateway:
    """``arrivals`` are the times of all requests in seconds, ``refused`` the number of answers of 429."""

    url: str = ""
    refused: int = 0
    arrivals: list[float] = field(default_factory=list)

    @property
    def span(self) -> float:
        """Seconds from the first request to the last."""
        return self.arrivals[-1] - self.arrivals[0]


@contextmanager
def gateway(target: str, limit: int, window: float) -> Iterator[Gateway]:
    """A gateway on loopback before ``target``, which allows ``limit`` requests in ``window`` seconds."""
    seen, guard = Gateway(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with guard:
                now = time.monotonic()
                allowed = sum(now - arrival < window for arrival in seen.arrivals) < limit
                seen.arrivals.append(now)
                seen.refused += not allowed
            if not allowed:
                self._answer(429, {"Retry-After": str(int(window))}, b"Too Many Requests")
                return
            headers = {name: self.headers[name] for name in _PASSED_ON if name in self.headers}
            try:
                with urlopen(Request(target, body, headers), timeout=60) as answer:
                    self._answer(answer.status, dict(answer.headers), answer.read())
            except HTTPError as error:
                self._answer(error.code, dict(error.headers), error.read())

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() in ("content-type", "content-encoding", "retry-after"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Keep the output of the tests free of a line a request."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    seen.url = f"http://127.0.0.1:{server.server_address[1]}/"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
