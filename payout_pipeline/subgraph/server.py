"""A local subgraph: a real HTTP server that answers for ``Condition`` as graph-node behind Goldsky's gateway does.

Paths: ``/subgraphs/name/<name>`` as graph-node has it, and ``/api/public/<project>/subgraphs/<name>/<version>/gn``
(``/api/private/…`` with a bearer token) as Goldsky has it. ``GET /_control/log`` gives the requests so far, ``POST
/_control`` switches faults, limits and latency.

``make test-graph-node`` compares it with a real graph-node: equal data, and errors that mean the same to a client. What
a client of ``Condition`` does not meet is left out; GraphQL validation is on (graph-node's default is off); a query is
answered as a whole or not at all; there are no forks, overloads and databases that are away but as faults. The rate
limit is a sliding window counted at arrival, where refused requests do not count; Goldsky's counting is not published.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

from aiohttp import web

from payout_pipeline.errors import ConfigurationError
from payout_pipeline.subgraph.service import RateLimit, Service, SubgraphConfig

__all__ = ["RateLimit", "SubgraphConfig", "SubgraphServer", "serve_forever"]


class SubgraphServer:
    """The server in a thread of its own, for tests and the demo.

    ``with SubgraphServer(SubgraphConfig(…)) as server: … server.url … server.log … server.faults.add("status", …)``
    """

    def __init__(self, config: SubgraphConfig) -> None:
        self.config = config
        self.engine = config.engine()
        self._service = Service(config, self.engine)
        self.log = self._service.log
        self.faults = self._service.faults
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="local-subgraph", daemon=True)

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
        return f"{self.base_url}/api/public/project_local/subgraphs/{self.config.names[0]}/{self.config.versions[0]}/gn"

    def configure(self, **changes: Any) -> None:
        """As ``POST /_control``: ``rate_limit="50/10s"``, ``latency=0.3``, ``retry_after=None``, ``clear=True`` …"""
        self._service.configure(changes)

    def __enter__(self) -> SubgraphServer:
        return self.start()

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def start(self) -> SubgraphServer:
        """Binds the port. Raises :class:`~payout_pipeline.errors.ConfigurationError` where it is taken."""
        self._listener = _listen(self.config)
        self.port = self._listener.getsockname()[1]
        self._thread.start()
        return self

    def stop(self) -> None:
        """Closes all connections and ends the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(60.0)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        runner = web.AppRunner(_application(self._service), **_RUNNING)
        await runner.setup()
        await web.SockSite(runner, self._listener).start()
        await self._stop.wait()
        await runner.cleanup()


def serve_forever(config: SubgraphConfig, announce: Callable[[str], None]) -> None:
    """Serves in this thread until SIGTERM or SIGINT. ``announce`` gets the endpoint's URL once it answers."""
    service = Service(config, config.engine())
    listener = _listen(config)
    url = f"http://{config.host}:{listener.getsockname()[1]}/subgraphs/name/{config.names[0]}"
    web.run_app(_application(service), sock=listener, print=lambda *_texts: announce(url), **_RUNNING)


# A fault may hold a request for a day: stopping does not wait for it.
_RUNNING: dict[str, Any] = {"access_log": None, "handler_cancellation": True, "shutdown_timeout": 0.1}


def _application(service: Service) -> web.Application:
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_route("*", "/{path:.*}", service.handle)
    return app


def _listen(config: SubgraphConfig) -> socket.socket:
    try:
        return socket.create_server((config.host, config.port), backlog=256)
    except OSError as error:
        raise ConfigurationError(
            f"the local subgraph cannot listen on {config.host}:{config.port} ({error}); choose another --port, or 0 "
            "for a free one"
        ) from error
