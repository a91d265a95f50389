"""Locks that hold across machines: leases in the Redis or PostgreSQL that also keeps the shared rate limit.

One holder per runtime location and name. The holder renews its lease several times in its lifetime; the lease of a
killed process expires. A holder that cannot renew in time, or finds that another process has the lock, is asked to stop, as by
SIGTERM, before another one can have it. (A process that was suspended for longer than the lifetime learns it late. What is
written under a lock is idempotent, so a late write repeats a value and does not spoil one.)
"""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from payout_pipeline.errors import ConfigurationError, LockHeldError
from payout_pipeline.locks import Holder, Locks
from payout_pipeline.shared_store import SharedStore, StoreBusyError

LIFETIME_SECONDS = 30.0


class LockLostError(LockHeldError):
    """The lock went to another process, or its server could not be reached for too long."""


class SharedLocks(Locks):
    """The locks of one runtime location in a shared store.

    Args:
        store: Redis or PostgreSQL.
        runtime_dir: the location. A local path counts as its absolute one, the same on every machine, so that machines
            with a directory each still exclude each other from a worker.
        lifetime: of a lease that is not renewed, in seconds.
        on_lost: called from another thread when a lock is lost while it is held; by default it sends SIGTERM to this
            process.
    """

    def __init__(
        self,
        store: SharedStore,
        runtime_dir: str,
        *,
        lifetime: float = LIFETIME_SECONDS,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        self._store, self._lifetime = store, lifetime
        self._scope = runtime_dir.rstrip("/") if "://" in runtime_dir else str(Path(runtime_dir).absolute())
        self._on_lost = on_lost or (lambda _message: os.kill(os.getpid(), signal.SIGTERM))
        self.poll_seconds = random.uniform(0.2, 0.8)

    def holder(self, name: str) -> Holder | None:
        """See `Locks.holder`; None too where the server does not answer."""

        def read(text: str | None, now: int) -> tuple[None, Holder | None]:
            lease = _Lease.read(text)
            return None, lease.holder if lease.until > now else None

        try:
            return self._store.edit(self._key(name), read)
        except StoreBusyError:
            return None
        finally:
            self._store.close()  # the caller may never ask again

    def _key(self, name: str) -> str:
        return f"lock:{hashlib.sha256(self._scope.encode()).hexdigest()[:16]}:{name}"

    def _place(self, name: str) -> str:
        return f"a stale owner's lease expires after {self._lifetime:g} s"

    def _take(
        self, name: str, mine: Holder, taken_over: Callable[[Holder], None]
    ) -> AbstractContextManager[None] | None:
        token, lifetime_ms = secrets.token_hex(16), round(self._lifetime * 1000)

        def take(text: str | None, now: int) -> tuple[str | None, _Lease | None]:
            former = _Lease.read(text)
            if former.until > now:
                return None, None
            lease = _Lease(token=token, until=now + lifetime_ms, holder=mine)
            return lease.model_dump_json(), former

        sent = time.monotonic()
        former = self._store.edit(self._key(name), take)
        if former is None:
            return None
        if former.holder is not None:
            taken_over(former.holder)
        return self._held(name, token, sent)

    @contextmanager
    def _held(self, name: str, token: str, acquired: float) -> Iterator[None]:
        done, lost = threading.Event(), list[str]()
        keeper = threading.Thread(
            target=self._keep, args=(name, token, acquired, done, lost), name=f"lock {name}", daemon=True
        )
        keeper.start()
        try:
            yield
        finally:
            done.set()
            keeper.join(self._lifetime)
            with suppress(StoreBusyError, ConfigurationError):  # it runs out by itself, and the work is done
                self._store.edit(
                    self._key(name), lambda text, _now: ("" if _Lease.read(text).token == token else None, None)
                )
            self._store.close()
        if lost:
            raise LockLostError(f"{lost[0]}. What was finished is kept; start the worker again, it resumes.")

    def _keep(self, name: str, token: str, acquired: float, done: threading.Event, lost: list[str]) -> None:
        """Renew the lease until ``done``. Its lifetime is measured from before the last renewal was sent."""
        confirmed, reason = acquired, ""
        while not reason:
            if done.wait(self._lifetime / 6):
                return
            sent = time.monotonic()
            try:
                reason = self._renew(name, token)
                confirmed = sent
            except (StoreBusyError, ConfigurationError) as error:
                # The next attempt would begin after another sixth, and may take some seconds.
                if time.monotonic() - confirmed > self._lifetime / 2:
                    reason = f"it could not be renewed for {time.monotonic() - confirmed:.0f} s: {error}"
        lost.append(f"lost the lock {name!r}: {reason}")
        if not done.is_set():
            self._on_lost(lost[0])

    def _renew(self, name: str, token: str) -> str:
        """Why the lock is lost; empty where it was renewed."""

        def renew(text: str | None, now: int) -> tuple[str | None, str]:
            lease = _Lease.read(text)
            if lease.token != token:
                return None, f"it is now held by {lease.holder}" if lease.holder else "it was taken away"
            until = now + round(self._lifetime * 1000)
            return lease.model_copy(update={"until": until}).model_dump_json(), ""

        return self._store.edit(self._key(name), renew)


class _Lease(BaseModel):
    """What is stored for a lock; without a token it is free. ``until``: milliseconds of the store's clock."""

    model_config = ConfigDict(frozen=True, strict=True)

    token: str = ""
    until: int = 0
    holder: Holder | None = None

    @classmethod
    def read(cls, text: str | None) -> _Lease:
        try:
            return cls.model_validate_json(text or "{}")
        except ValueError:
            return cls()
