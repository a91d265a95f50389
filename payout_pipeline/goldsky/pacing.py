"""Waiting for the shared rate limit: every request of every process gets a place in the window, or waits for one.

The rules are in :mod:`.rate_limit`. What is shared is kept in a file of this machine, or in the Redis or PostgreSQL of
``PAYOUT_LIMITER_URL`` for several machines. Where that cannot be reached, nothing is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import secrets
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from payout_pipeline.errors import StorageError
from payout_pipeline.goldsky import rate_limit
from payout_pipeline.goldsky.classify import capped_wait
from payout_pipeline.goldsky.rate_limit import Budget, Refusal, SharedBudget
from payout_pipeline.shared_store import StoreBusyError, T, open_shared_store
from payout_pipeline.shared_store.file_store import FileStore

if TYPE_CHECKING:
    from payout_pipeline.settings import RateLimit

logger = logging.getLogger(__name__)

_FILE = "goldsky-rate.sqlite"
_BUSY_SECONDS = 30.0  # a store that cannot be reached for so long is broken
_LEASE_MARGIN_SECONDS = 1.0  # a request ends at most this long after its time-out
_LONGEST_SLEEP = 1.0  # a place may become free early: another process dies or gives one back


class StoppedError(Exception):
    """The stop signal came: what was waiting or in flight has ended without a result."""


async def sleep_or_stop(seconds: float, stop: asyncio.Event | None) -> None:
    """Sleep for ``seconds``; raises StoppedError as soon as ``stop`` is set."""
    if stop is None:
        await asyncio.sleep(seconds)
        return
    if not stop.is_set():
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(stop.wait(), seconds)
    if stop.is_set():
        raise StoppedError("stopped")


def limiter_file(runtime_dir: str | Path, *, make: bool = False) -> Path:
    """Where the limit of this machine is kept; StorageError where that directory is somebody else's.

    A remote runtime directory cannot hold a file that processes share: a directory of this user's own stands in for
    it, which is created if ``make`` is set.
    """
    text = str(runtime_dir)
    if text.startswith("file://"):
        return Path(unquote(urlsplit(text).path)) / _FILE
    if "://" not in text:
        return Path(text) / _FILE
    directory = Path(tempfile.gettempdir()) / f"payout-pipeline-{os.getuid()}"
    if make:
        directory.mkdir(mode=0o700, exist_ok=True)
    if directory.is_symlink() or (directory.exists() and directory.stat().st_uid != os.getuid()):
        raise StorageError(
            f"{directory} belongs to somebody else; set TMPDIR, or PAYOUT_LIMITER_URL to Redis or PostgreSQL"
        )
    return directory / _FILE


def open_store(
    endpoint: str, limit: RateLimit, *, runtime_dir: str | Path, limiter_url: str | None = None
) -> SharedBudget:
    """The budget of ``endpoint``: in Redis or PostgreSQL where ``limiter_url`` names one, else in a file."""
    store = open_shared_store(limiter_url) if limiter_url else FileStore(limiter_file(runtime_dir, make=True))
    return SharedBudget(store, endpoint, limit)


def is_kept(*, runtime_dir: str | Path, limiter_url: object | None) -> bool:
    """Whether there is a budget to look at already; with ``PAYOUT_LIMITER_URL`` there always is one."""
    try:
        return limiter_url is not None or limiter_file(runtime_dir).is_file()
    except StorageError:
        return False


def shared_status(store: SharedBudget) -> dict[str, Any]:
    """The state of a budget for people, JSON-able; raises StorageError where it cannot be read within moments."""
    patient_until = time.monotonic() + 0.2
    while True:
        try:
            return store.change(rate_limit.describe)
        except StoreBusyError as busy:
            if time.monotonic() > patient_until:
                raise StorageError(f"the rate limit cannot be read: {busy}") from busy
        time.sleep(0.005)


@dataclass
class PacerStats:
    """Of this process. The seconds are those of the first waiter; the others stand behind it in the queue."""

    waits: int = 0
    wait_seconds: float = 0.0
    answers_429: int = 0


class Pacer:
    """Places in the shared window for the requests of this process, first come, first served.

    ``async with pacer.slot(): send()`` waits for a place and keeps it until one window after the request has ended.
    ``on_wait(reason, seconds)`` is called before every wait that is longer than a tenth of a second.
    """

    def __init__(
        self,
        store: SharedBudget,
        *,
        request_timeout: float,
        max_retry_after: float = 60.0,
        stop: asyncio.Event | None = None,
        on_wait: Callable[[str, float], None] | None = None,
    ) -> None:
        self.store, self.stop, self.on_wait = store, stop, on_wait
        self.max_retry_after = max_retry_after
        self.stats = PacerStats()
        self._lease_ms = int((request_timeout + _LEASE_MARGIN_SECONDS) * 1000)
        self._queue = asyncio.Lock()

    @classmethod
    def open(
        cls,
        endpoint: str,
        limit: RateLimit,
        *,
        runtime_dir: str | Path,
        request_timeout: float,
        limiter_url: str | None = None,
        max_retry_after: float = 60.0,
        stop: asyncio.Event | None = None,
        on_wait: Callable[[str, float], None] | None = None,
    ) -> Pacer:
        """A pacer on the store that the settings name; ``request_timeout`` and ``max_retry_after`` in seconds.

        Opens nothing before the first request.
        """
        store = open_store(endpoint, limit, runtime_dir=runtime_dir, limiter_url=limiter_url)
        return cls(
            store, request_timeout=request_timeout, max_retry_after=max_retry_after, stop=stop, on_wait=on_wait
        )  # fmt: skip

    def slot(self, *, is_probe: bool = False) -> Slot:
        """A place for one request, as a context manager; a probe does not queue behind this process's requests.

        Entering raises StoppedError, or StorageError where the store cannot be reached.
        """
        return Slot(self, is_probe)

    async def rate_limited(self, retry_after: float | None) -> str:
        """A 429 came: nobody sends anything for a while. ``retry_after`` in seconds. Returns the reason."""
        wait = capped_wait(retry_after, cap=self.max_retry_after, window=self.store.limit.window / 1000)
        seconds = wait.seconds * random.uniform(1.0, 1.02) + 0.05  # never early, and not all machines at one moment
        self.stats.answers_429 += 1
        total = await self._change(lambda budget, now: rate_limit.hold(budget, now, seconds, wait.reason))
        logger.warning(
            "%s; nobody asks before that. Answers of 429 on record: %d.%s",
            wait.reason,
            total,
            " If this goes on, lower GOLDSKY_RATE_LIMIT: somebody shares it, or the server allows less."
            if total > 2
            else "",
        )
        return wait.reason

    async def report_outage(self, message: str) -> None:
        """Note for ``payout-pipeline status`` that the subgraph does not answer; an empty message: it does again."""
        await self._change(lambda budget, now: rate_limit.report_outage(budget, now, message))

    async def close(self) -> None:
        """Close the store's connections."""
        await asyncio.to_thread(self.store.close)

    async def _change(self, action: Callable[[Budget, int], T], stop: asyncio.Event | None = None) -> T:
        """Change the budget; a busy store is tried again."""
        patient_until = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                return await asyncio.to_thread(self.store.change, action)
            except StoreBusyError as busy:
                if time.monotonic() > patient_until:
                    raise StorageError(
                        f"the rate limit's store {self.store.where} was not free for {_BUSY_SECONDS:g} s: {busy}"
                    ) from busy
            await sleep_or_stop(random.uniform(0.001, 0.01), stop)

    async def _acquire(self, lease: str) -> None:
        """Wait until the request may be sent."""

        def admit(budget: Budget, now: int) -> Refusal | None:
            return rate_limit.admit(budget, now, self.store.limit, lease, self._lease_ms)

        waited = False
        while True:
            await sleep_or_stop(0, self.stop)
            asking = asyncio.ensure_future(self._change(admit, self.stop))
            try:
                refusal = await asyncio.shield(asking)
            except asyncio.CancelledError:
                # The thread goes on. What it gets meanwhile is given back.
                await asyncio.gather(asking, return_exceptions=True)
                await self._change(lambda budget, _now: rate_limit.give_back(budget, lease))
                raise
            if refusal is None:
                return
            self.stats.waits += not waited
            waited = True
            await self._wait(refusal)

    async def _wait(self, refusal: Refusal) -> None:
        if self.on_wait is not None and refusal.wait_seconds > 0.1:
            self.on_wait(refusal.reason, refusal.wait_seconds)
        started = time.monotonic()
        await sleep_or_stop(min(refusal.wait_seconds, _LONGEST_SLEEP) + random.uniform(0.0, 0.002), self.stop)
        self.stats.wait_seconds += time.monotonic() - started


class Slot:
    """One place in the window, from admission to the end of the request. Set ``unused`` if nothing was sent."""

    def __init__(self, pacer: Pacer, is_probe: bool) -> None:
        self._pacer, self._is_probe = pacer, is_probe
        self._lease = rate_limit.owner() + secrets.token_hex(8)
        self.unused = False

    async def __aenter__(self) -> Slot:
        async with contextlib.nullcontext() if self._is_probe else self._pacer._queue:
            await self._pacer._acquire(self._lease)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        def end(budget: Budget, now: int) -> None:
            if self.unused:
                rate_limit.give_back(budget, self._lease)
            else:
                rate_limit.finish(budget, now, self._pacer.store.limit, self._lease)

        await asyncio.shield(asyncio.ensure_future(self._pacer._change(end)))
