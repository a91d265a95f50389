"""Waiting for the shared rate limit: every request of every process gets a place in the window, or waits for one.

The rules are in :mod:`.rate_limit`. What is shared is kept in files of this machine, or in the Redis or PostgreSQL of
``PAYOUT_LIMITER_URL`` for several machines. Where that cannot be reached, nothing is sent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
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

_DIRECTORY = "rate-limit"
_BUSY_SECONDS = 30.0  # a store that cannot be reached for so long is broken
_LEASE_MARGIN_SECONDS = 1.0  # a request ends at most this long after its time-out
_LONGEST_SLEEP = 1.0  # a place may become free early: another process dies or gives one back


def limiter_directory(runtime_dir: str | Path, *, make: bool = False) -> Path:
    """Where the limit of this machine is kept; StorageError where that directory is another user's.

    A remote runtime directory cannot hold files that processes share: a directory of this user's own takes its place,
    which is created if ``make`` is set.
    """
    text = str(runtime_dir)
    if text.startswith("file://"):
        return Path(unquote(urlsplit(text).path)) / _DIRECTORY
    if "://" not in text:
        return Path(text) / _DIRECTORY
    directory = Path(tempfile.gettempdir()) / f"payout-pipeline-{os.getuid()}"
    if make:
        directory.mkdir(mode=0o700, exist_ok=True)
    if directory.is_symlink() or (directory.exists() and directory.stat().st_uid != os.getuid()):
        raise StorageError(
            f"{directory} belongs to another user; set TMPDIR, or PAYOUT_LIMITER_URL to Redis or PostgreSQL"
        )
    return directory / _DIRECTORY


def open_store(
    endpoint: str, limit: RateLimit, *, runtime_dir: str | Path, limiter_url: str | None = None
) -> SharedBudget:
    """The budget of ``endpoint``: in Redis or PostgreSQL where ``limiter_url`` names one, else in a file."""
    store = open_shared_store(limiter_url) if limiter_url else FileStore(limiter_directory(runtime_dir, make=True))
    return SharedBudget(store, endpoint, limit)


def is_kept(*, runtime_dir: str | Path, limiter_url: object | None) -> bool:
    """Whether there is a budget to read already; with ``PAYOUT_LIMITER_URL`` there always is one."""
    try:
        return limiter_url is not None or limiter_directory(runtime_dir).is_dir()
    except StorageError:
        return False


def shared_status(store: SharedBudget) -> dict[str, Any]:
    """The state of a budget for people, JSON-able; raises StorageError where it cannot be read within moments."""
    deadline = time.monotonic() + 0.2
    while True:
        try:
            return store.change(rate_limit.describe)
        except StoreBusyError as busy:
            if time.monotonic() > deadline:
                raise StorageError(f"the rate limit cannot be read: {busy}") from busy
        time.sleep(0.005)


@dataclass
class PacerStats:
    """Of this process. The seconds are those of the first in the queue of waiting requests."""

    waits: int = 0
    wait_seconds: float = 0.0
    answers_429: int = 0


def _log_wait(reason: str, seconds: float) -> None:
    logger.log(logging.DEBUG if reason == "window" else logging.INFO, "waiting %.1f s: %s", seconds, reason)


class Pacer:
    """Places in the shared window for the requests of this process, first come, first served.

    ``on_wait(reason, seconds)`` is called before every wait that is longer than a tenth of a second; an exception that it
    raises ends the wait.
    """

    def __init__(
        self,
        store: SharedBudget,
        *,
        request_timeout: float,
        max_retry_after: float = 60.0,
        on_wait: Callable[[str, float], None] | None = None,
    ) -> None:
        self.store, self.on_wait, self.max_retry_after = store, on_wait or _log_wait, max_retry_after
        self.stats = PacerStats()
        self._lease_ms = int((request_timeout + _LEASE_MARGIN_SECONDS) * 1000)
        self._queue = asyncio.Lock()

    @classmethod
    def open(
        cls, endpoint: str, limit: RateLimit, *, runtime_dir: str | Path, limiter_url: str | None = None, **options: Any
    ) -> Pacer:
        """A pacer on the store that the settings name; nothing is opened before the first request."""
        return cls(open_store(endpoint, limit, runtime_dir=runtime_dir, limiter_url=limiter_url), **options)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a place in the window, and keep it until one window after the block has ended.

        Raises StorageError where the store cannot be reached.
        """
        lease = rate_limit.owner() + secrets.token_hex(8)
        async with self._queue:
            await self._acquire(lease)
        try:
            yield
        finally:
            limit = self.store.limit
            end = self._change(lambda budget, now: rate_limit.finish(budget, now, limit, lease))
            await asyncio.shield(asyncio.ensure_future(end))

    async def rate_limited(self, retry_after: float | None) -> None:
        """After a 429: no process sends anything for a while. ``retry_after`` in seconds."""
        least, reason = capped_wait(retry_after, cap=self.max_retry_after, window=self.store.limit.window / 1000)
        seconds = least * random.uniform(1.0, 1.02) + 0.05  # never early, and not all machines at one moment
        self.stats.answers_429 += 1
        total = await self._change(lambda budget, now: rate_limit.hold(budget, now, seconds, reason))
        advice = " If this goes on, lower GOLDSKY_RATE_LIMIT: others share it, or the server allows less."
        logger.warning(
            "%s; no worker sends before that. Answers of 429 on record: %d.%s", reason, total, advice * (total > 2)
        )

    async def report_outage(self, message: str) -> None:
        """Note for ``payout-pipeline status`` that the subgraph does not answer; an empty message: it does again."""
        await self._change(lambda budget, now: rate_limit.report_outage(budget, now, message))

    async def close(self) -> None:
        """Close the store's connections."""
        await asyncio.to_thread(self.store.close)

    async def _change(self, action: Callable[[Budget, int], T]) -> T:
        """Change the budget; a busy store is tried again."""
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                return await asyncio.to_thread(self.store.change, action)
            except StoreBusyError as busy:
                if time.monotonic() > deadline:
                    raise StorageError(
                        f"the rate limit's store {self.store.where} was not free for {_BUSY_SECONDS:g} s: {busy}"
                    ) from busy
            await asyncio.sleep(random.uniform(0.001, 0.01))

    async def _acquire(self, lease: str) -> None:
        """Wait until the request may be sent."""

        def admit(budget: Budget, now: int) -> Refusal | None:
            return rate_limit.admit(budget, now, self.store.limit, lease, self._lease_ms)

        waited = False
        while True:
            asking = asyncio.ensure_future(self._change(admit))
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
            if refusal.wait_seconds > 0.1:
                self.on_wait(refusal.reason, refusal.wait_seconds)
            started = time.monotonic()
            await asyncio.sleep(min(refusal.wait_seconds, _LONGEST_SLEEP) + random.uniform(0.0, 0.002))
            self.stats.wait_seconds += time.monotonic() - started
