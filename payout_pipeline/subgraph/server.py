"""A local subgraph: a real HTTP server that answers for ``Condition`` as graph-node behind Goldsky's gateway does.

Paths: ``/subgraphs/name/positions`` as graph-node has it, and ``/api/public/<project>/subgraphs/positions/0.0.7/gn`` as
Goldsky has it. ``GET /_control/log`` gives the requests so far, ``DELETE`` forgets them.

``make test-graph-node`` compares it with a real graph-node: equal data, and errors that mean the same to a client. What
our client and the documents never ask is left out; GraphQL validation is on (graph-node's default is off); a query is
answered as a whole or not at all; there are no forks, overloads and databases that are away but as faults. The rate
limit is a sliding window counted at arrival, where refused requests do not count; Goldsky's counting is not published.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from aiohttp import web

from payout_pipeline.errors import ConfigurationError
from payout_pipeline.subgraph.service import NAME, VERSION, Service, SubgraphConfig

__all__ = ["SubgraphConfig", "SubgraphServer", "serve_forever"]

_HOST = "127.0.0.1"  # there is no login
# A fault may hold a request for a day: stopping does not wait for it.
_RUNNING: dict[str, Any] = {"access_log": None, "handler_cancellation": True, "shutdown_timeout": 0.1}


class SubgraphServer:
    """The server in a thread of its own, for tests.

    ``with SubgraphServer(SubgraphConfig(…)) as server: … server.url … server.log … server.faults.add("status", …)``
    """

    def __init__(self, config: SubgraphConfig) -> None:
        self._service = Service(config)
        self.log = self._service.log
        self.faults = self._service.faults
        self.base_url = ""
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="local-subgraph", daemon=True)

    @property
    def url(self) -> str:
        """The endpoint in graph-node's form."""
        return f"{self.base_url}/subgraphs/name/{NAME}"

    @property
    def goldsky_url(self) -> str:
        """The endpoint in the form of a public one of Goldsky."""
        return f"{self.base_url}/api/public/project_local/subgraphs/{NAME}/{VERSION}/gn"

    def configure(self, **changes: Any) -> None:
        """Changes the configuration: ``rate_limit="50/10s"``, ``latency=0.3``, ``token=None`` …"""
        self._service.configure(replace(self._service.config, **changes))

    def __enter__(self) -> SubgraphServer:
        """Binds the port. Raises :class:`~payout_pipeline.errors.ConfigurationError` where it is taken."""
        self._listener = _listen(self._service.config.port)
        self.base_url = f"http://{_HOST}:{self._listener.getsockname()[1]}"
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """Closes all connections and ends the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(60.0)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        runner = web.AppRunner(self._service.application(), **_RUNNING)
        await runner.setup()
        await web.SockSite(runner, self._listener).start()
        await self._stop.wait()
        await runner.cleanup()


def serve_forever(config: SubgraphConfig, announce: Callable[[str], None]) -> None:
    """Serves in this thread until SIGTERM or SIGINT. ``announce`` gets the endpoint's URL once it answers."""
    service = Service(config)
    listener = _listen(config.port)
    url = f"http://{_HOST}:{listener.getsockname()[1]}/subgraphs/name/{NAME}"
    web.run_app(service.application(), sock=listener, print=lambda *_texts: announce(url), **_RUNNING)


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server((_HOST, port), backlog=256)
    except OSError as error:
        raise ConfigurationError(
            f"the local subgraph cannot listen on {_HOST}:{port} ({error}); choose another --port, or 0 for a free one"
        ) from error
