"""A local subgraph: a real HTTP server that answers for ``Condition`` as graph-node behind Goldsky's gateway does.

Paths: ``/subgraphs/name/<name>`` and ``/subgraphs/id/<deployment>`` as graph-node has them, and
``/api/public/<project>/subgraphs/<name>/<version>/gn`` (``/api/private/…`` with a bearer token) as Goldsky has them.
``GET /_control/log`` gives the requests so far, ``POST /_control`` switches faults, limits and latency.

``make test-graph-node`` compares it with a real graph-node: equal data, and errors that mean the same to a client. What
a client of ``Condition`` does not meet is left out. Beyond that it differs in these points:

- GraphQL validation is on; graph-node's default is off, so it answers some queries that are refused here.
- A query is answered as a whole or not at all, also where its fields ask for different blocks.
- A condition has at most two versions (created, resolved) and can be deleted; there are no forks. A reorganisation, an
  overload and a database that is away exist as faults only.
- Goldsky's gateway is imitated as far as it is documented: a sliding window counted at arrival, where refused requests
  do not count; its real counting is not published.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from aiohttp import web

from payout_pipeline.errors import ConfigurationError
from payout_pipeline.subgraph.config import RateLimit, SubgraphConfig
from payout_pipeline.subgraph.faults import FaultBoard
from payout_pipeline.subgraph.log import RequestLog
from payout_pipeline.subgraph.service import Service

__all__ = ["RateLimit", "SubgraphConfig", "SubgraphServer", "serve_forever"]

_PROJECT = "project_local"
_LARGEST_BODY = 64 * 1024 * 1024
_START_SECONDS = 60.0


class SubgraphServer:
    """The server in a thread of its own, for tests and the demo.

    ``with SubgraphServer(SubgraphConfig(…)) as server: … server.url … server.log … server.faults.add("status", …)``
    """

    def __init__(self, config: SubgraphConfig) -> None:
        self.config = config
        self.engine = config.engine()
        self._service = Service(config, self.engine)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self.port = 0

    @property
    def log(self) -> RequestLog:
        """The requests so far."""
        return self._service.log

    @property
    def faults(self) -> FaultBoard:
        """The faults that are on."""
        return self._service.faults

    @property
    def base_url(self) -> str:
        """Scheme, host and port."""
        return f"http://{self.config.host}:{self.port}"

    @property
    def url(self) -> str:
        """The endpoint in graph-node's form."""
        return f"{self.base_url}/subgraphs/name/{self.config.names[0]}"

    @property
    def goldsky_url(self) -> str:
        """The endpoint in the form of a public one of Goldsky."""
        return f"{self.base_url}/api/public/{_PROJECT}/subgraphs/{self.config.names[0]}/{self.config.versions[0]}/gn"

    def configure(self, **changes: Any) -> None:
        """As ``POST /_control``: ``rate_limit="50/10s"``, ``latency=0.3``, ``retry_after=None``, ``clear=True`` …"""
        self._service.configure(changes)

    def start(self) -> SubgraphServer:
        """Binds the port and returns when requests are answered."""
        self._thread = threading.Thread(target=self._run, name="local-subgraph", daemon=True)
        self._thread.start()
        if not self._ready.wait(_START_SECONDS):
            raise ConfigurationError(f"the local subgraph was not ready after {_START_SECONDS:g} s")
        if self._failure is not None:
            raise self._failure
        return self

    def stop(self) -> None:
        """Closes all connections and ends the thread."""
        if self._loop is not None and self._stop is not None and self._loop.is_running():
            self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._thread.join(_START_SECONDS)

    def __enter__(self) -> SubgraphServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that called start()
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()

        def ready(port: int) -> None:
            self.port = port
            self._ready.set()

        await _serve(self._service, self._stop, ready)


def serve_forever(config: SubgraphConfig, announce: Callable[[str], None]) -> None:
    """Serves in this thread until SIGTERM or SIGINT. ``announce`` gets the endpoint's URL once it answers."""
    service = Service(config, config.engine())

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await _serve(
            service, stop, lambda port: announce(f"http://{config.host}:{port}/subgraphs/name/{config.names[0]}")
        )

    asyncio.run(main())


async def _serve(service: Service, stop: asyncio.Event, ready: Callable[[int], None]) -> None:
    config = service.config
    app = web.Application(client_max_size=_LARGEST_BODY)
    app.router.add_route("*", "/{path:.*}", service.handle)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    listener = _listen(config.host, config.port)
    try:
        await web.SockSite(runner, listener).start()
        ready(listener.getsockname()[1])
        await stop.wait()
    finally:
        await runner.cleanup()


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), backlog=256)
    except OSError as error:
        raise ConfigurationError(
            f"the local subgraph cannot listen on {host}:{port} ({error}); choose another --port, or 0 for a free one"
        ) from error
