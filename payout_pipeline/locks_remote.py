"""Locks that hold across machines, in the Redis or PostgreSQL that also keeps the shared rate limit.

One holder per (scope, name), where the scope is the runtime location: two pipelines that share a Redis but not a
runtime directory do not see each other. Used instead of file locks where ``PAYOUT_LIMITER_URL`` is set.

- **Redis**: ``SET NX PX`` with an owner token, renewed by a thread every sixth of its life-time. A holder that dies is
  gone when the life-time ends (30 s). One that cannot renew knows so before anybody else can have the lock.
- **PostgreSQL**: a session advisory lock on a connection of its own. A holder whose process dies loses it at once, one
  whose machine vanishes after the keep-alive time (about 25 s). Needs a direct connection: a pooler in transaction mode
  would hand the session to somebody else.

What a lock across machines cannot promise is that a holder notices its loss in the same instant (a process may be
stopped for longer than the life-time). :attr:`Lease.lost` is set, ``on_lost`` is called and
:meth:`Lease.ensure` raises as soon as it is known; ``fence`` grows with every holder. Everything that is written
under these locks is idempotent by content (a batch file holds what its ids were answered at a pinned block, a load
compares before it inserts), so that a late write of a former holder repeats a value and does not spoil one.
"""

from __future__ import annotations

import base64
import hashlib
import os
import random
import re
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from payout_pipeline.errors import ConfigurationError, LockHeldError, TransientError
from payout_pipeline.locks import Holder, Locks, register_locks
from payout_pipeline.scrub import excerpt, register_secret, scrub
from payout_pipeline.storage import LogLine

if TYPE_CHECKING:
    import psycopg

LIFETIME_SECONDS = 30.0
_CONNECT_SECONDS = 5.0
_SAID = "payout-pipeline holder "
_UNNAMED = "a process that has not said its name"


class LockServiceError(TransientError):
    """The Redis or PostgreSQL that keeps the locks does not answer; nothing was started under a lock."""

    retry_above = True


class LockLostError(LockHeldError):
    """The lock went to somebody else, or its service could not be reached for its life-time; stop writing."""


class Lease:
    """A lock in hand. ``fence`` is larger than that of every earlier holder of the same name."""

    def __init__(self, name: str, fence: int, on_lost: Callable[[str], None] | None) -> None:
        self.name = name
        self.fence = fence
        self.lost = threading.Event()
        self.reason = ""
        self._on_lost = on_lost

    def ensure(self) -> None:
        """Raise LockLostError where the lock is known to be lost; to be called before a durable write."""
        if self.lost.is_set():
            raise LockLostError(
                f"the lock {self.name!r} was lost: {self.reason}. What was finished is kept; start the worker again, "
                "it resumes."
            )

    def _lose(self, reason: str) -> None:
        if self.lost.is_set():
            return
        self.reason = reason
        self.lost.set()
        if self._on_lost is not None:
            self._on_lost(f"lost the lock {self.name!r}: {reason}")


class _Held(Protocol):
    """One acquired lock in its service."""

    fence: int
    taken_over: Holder | None

    def renew(self) -> str | None:
        """None while the lock is held, else why it is not any more. Raises LockServiceError where that is unknown."""

    def release(self) -> None:
        """Give the lock back; never takes it from a later holder."""


class LockService(Protocol):
    """Redis or PostgreSQL, seen as locks."""

    def try_acquire(self, key: str, holder: Holder) -> _Held | None:
        """The lock, or None while somebody else has it."""

    def holder(self, key: str) -> Holder | None:
        """Who has the lock now."""

    def close(self) -> None:
        """Give back what the service itself holds open."""


# KEYS: lock, fence counter, last holder. ARGV: token, holder, life-time in ms.
_ACQUIRE = """
if not redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2], 'NX', 'PX', ARGV[3]) then return false end
local last = redis.call('GET', KEYS[3])
redis.call('SET', KEYS[3], ARGV[2])
return {redis.call('INCR', KEYS[2]), last or ''}
"""
_RENEW = """
local value = redis.call('GET', KEYS[1])
if value and string.sub(value, 1, #ARGV[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return value or ''
"""
# The record of the last holder stays where a holder died, and goes where one released in order.
_RELEASE = """
local value = redis.call('GET', KEYS[1])
if value and string.sub(value, 1, #ARGV[1]) == ARGV[1] then redis.call('DEL', KEYS[1], KEYS[2]) end
return 1
"""


class RedisLocks:
    """Locks in Redis. Raises LockServiceError where it does not answer, ConfigurationError where it refuses."""

    def __init__(self, url: str, lifetime_seconds: float = LIFETIME_SECONDS) -> None:
        try:
            import redis
            import redis.backoff
            import redis.retry
        except ImportError:
            raise _missing("redis") from None
        self._redis = redis
        self.lifetime = lifetime_seconds
        patience = _patience(lifetime_seconds)
        self._client: Any = redis.Redis.from_url(
            url,
            socket_timeout=patience,
            socket_connect_timeout=patience,
            # An acquisition whose answer was lost must not be sent again: it would find its own lock and wait for it.
            retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
        )

    @contextmanager
    def _faults(self) -> Iterator[None]:
        errors = self._redis.exceptions
        try:
            yield
        except (errors.AuthenticationError, errors.NoPermissionError) as error:
            raise ConfigurationError(_refused("Redis", error)) from None
        except (errors.RedisError, OSError) as error:
            raise LockServiceError(_unreachable("Redis", error)) from None

    def try_acquire(self, key: str, holder: Holder) -> _RedisHeld | None:
        """See :class:`LockService`."""
        token = uuid.uuid4().hex
        with self._faults():
            answer = self._client.eval(
                _ACQUIRE,
                3,
                key,
                f"{key}:fence",
                f"{key}:last",
                token,
                holder.to_json(),
                round(self.lifetime * 1000),
            )
        if not answer:
            return None
        return _RedisHeld(self, key, token, int(answer[0]), Holder.from_json(answer[1]))

    def holder(self, key: str) -> Holder | None:
        """See :class:`LockService`."""
        with self._faults():
            value = self._client.get(key)
        return Holder.from_json(value.partition(b" ")[2]) if value else None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class _RedisHeld:
    def __init__(self, service: RedisLocks, key: str, token: str, fence: int, taken_over: Holder | None) -> None:
        self._service, self._key, self._token = service, key, token
        self.fence, self.taken_over = fence, taken_over

    def renew(self) -> str | None:
        with self._service._faults():
            answer = self._service._client.eval(_RENEW, 1, self._key, self._token, round(self._service.lifetime * 1000))
        if answer == 1:
            return None
        other = Holder.from_json(bytes(answer).partition(b" ")[2]) if answer else None
        return f"it expired and is now held by {other}" if other else "it expired"

    def release(self) -> None:
        with self._service._faults():
            self._service._client.eval(_RELEASE, 2, self._key, f"{self._key}:last", self._token)


class PostgresLocks:
    """Session advisory locks in PostgreSQL; needs no table and no right but CONNECT."""

    def __init__(self, url: str, lifetime_seconds: float = LIFETIME_SECONDS) -> None:
        try:
            import psycopg
        except ImportError:
            raise _missing("psycopg") from None
        self._psycopg = psycopg
        self._url = url
        self.lifetime = lifetime_seconds

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except self._psycopg.OperationalError as error:
            # libpq gives no SQLSTATE for a refused login, so the text is all there is.
            state, text = error.sqlstate or "", str(error)
            if state[:2] in ("28", "3D") or "authentication failed" in text or "does not exist" in text:
                raise ConfigurationError(_refused("PostgreSQL", error)) from None
            raise LockServiceError(_unreachable("PostgreSQL", error)) from None
        except self._psycopg.Error as error:
            raise ConfigurationError(_refused("PostgreSQL", error)) from None

    def _connect(self) -> psycopg.Connection[Any]:
        """A connection whose death is noticed by both sides within about 25 seconds."""
        connection = self._psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=round(_CONNECT_SECONDS),
            application_name="payout-pipeline locks",
            keepalives=1,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
        )
        # Over a Unix socket the server ignores its keep-alive settings; there it sees a death at once anyway.
        connection.execute(
            "SELECT set_config('tcp_keepalives_idle', '10', false), set_config('tcp_keepalives_interval', '5', false),"
            " set_config('tcp_keepalives_count', '3', false), set_config('statement_timeout', '10s', false),"
            " set_config('idle_session_timeout', '0', false)"
        )
        return connection

    def try_acquire(self, key: str, holder: Holder) -> _PostgresHeld | None:
        """See :class:`LockService`."""
        # pg_stat_activity shows each session's last statement to the others of the same user: no table is needed to
        # say who holds the lock. Base64, so that nothing in a name can end the comment.
        said = f"/* {_SAID}{base64.b64encode(holder.to_json().encode()).decode()} */"
        with self._faults():
            connection = self._connect()
            try:
                # The transaction number grows with every one of the whole server: a fence without a table.
                row = connection.execute(
                    f"{said} SELECT pg_try_advisory_lock(%s), pg_current_xact_id()::text",
                    (_advisory_key(key),),
                ).fetchone()
            except BaseException:
                connection.close()
                raise
        if row is None or not row[0]:
            connection.close()
            return None
        return _PostgresHeld(self, connection, said, int(row[1]))

    def holder(self, key: str) -> Holder | None:
        """See :class:`LockService`."""
        with self._faults(), self._connect() as connection:
            row = connection.execute(
                "SELECT a.query FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
                " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
                " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
                " AND ((l.classid::bigint << 32) | l.objid::bigint) = %s",
                (_advisory_key(key),),
            ).fetchone()
        return _said_by(str(row[0])) if row else None

    def close(self) -> None:
        """Nothing is held open between the calls."""


class _PostgresHeld:
    taken_over: Holder | None = None  # a dead session leaves nothing behind, so there is nobody to name

    def __init__(self, service: PostgresLocks, connection: psycopg.Connection[Any], said: str, fence: int) -> None:
        self._service, self._connection, self._said, self.fence = service, connection, said, fence

    def renew(self) -> str | None:
        # A lost session has lost its locks; there is nothing to come back to.
        try:
            self._connection.execute(f"{self._said} SELECT 1")
        except self._service._psycopg.Error as error:
            return f"the session that held it ended ({excerpt(str(error))})"
        return None

    def release(self) -> None:
        self._connection.close()


class RemoteLocks:
    """The :class:`~payout_pipeline.locks.Locks` of one runtime location, in a Redis or PostgreSQL.

    ``scope`` is the runtime location; ``on_lost`` is called once, from the renewing thread, where a lock is lost while
    it is held. Its default asks this process to stop in order, as SIGTERM does: whoever has lost the lock must not go
    on for long beside the next holder.
    """

    def __init__(self, service: LockService, scope: str, on_lost: Callable[[str], None] | None = None) -> None:
        self.service = service
        self.scope = scope
        self._on_lost = on_lost or _stop_this_process

    def key(self, name: str) -> str:
        """The key of ``name`` at the service; the scope goes in as a hash."""
        return f"payout-pipeline:lock:{hashlib.sha256(self.scope.rstrip('/').encode()).hexdigest()[:16]}:{name}"

    def holder(self, name: str) -> Holder | None:
        """Who holds ``name`` now; None where nobody does or it cannot be told. For display, which no outage may end."""
        try:
            return self.service.holder(self.key(name))
        except LockServiceError:
            return None

    @contextmanager
    def hold(
        self,
        name: str,
        *,
        purpose: str,
        run_id: str = "",
        wait_seconds: float = 0.0,
        log: LogLine | None = None,
    ) -> Iterator[Holder]:
        """See :meth:`payout_pipeline.locks.Locks.hold`.

        Raises besides: LockServiceError where the service does not answer within the waiting time, LockLostError at
        the end of a block that ran through although the lock was lost meanwhile.
        """
        mine = Holder.here(scrub(purpose)[:200], run_id)
        with self.lease(name, mine, wait_seconds=wait_seconds, log=log) as lease:
            yield mine
            lease.ensure()

    @contextmanager
    def lease(
        self, name: str, mine: Holder, *, wait_seconds: float = 0.0, log: LogLine | None = None
    ) -> Iterator[Lease]:
        """As :meth:`hold`, for those who ask ``ensure()`` themselves; ends without asking it."""
        held, sent = self._acquire(name, mine, wait_seconds, log)
        if held.taken_over is not None and log is not None:
            log(f"took over {name} from {held.taken_over}, which ended without giving it back")
        lease = Lease(name, held.fence, self._on_lost)
        done = threading.Event()
        keeper = threading.Thread(
            target=_keep, args=(lease, held, _lifetime(self.service), sent, done), name=f"lock {name}", daemon=True
        )
        keeper.start()
        try:
            yield lease
        finally:
            done.set()
            keeper.join(2 * _CONNECT_SECONDS + 1)
            # Not given back, the lock ends by itself within its life-time; the work under it is done either way.
            with suppress(LockServiceError, ConfigurationError):
                held.release()

    def _acquire(self, name: str, mine: Holder, wait_seconds: float, log: LogLine | None) -> tuple[_Held, float]:
        """The lock and the monotonic time from which its life-time counts: before the acquisition was sent."""
        started = time.monotonic()
        said = ""
        while True:
            fault: LockServiceError | None = None
            sent = time.monotonic()
            try:
                held = self.service.try_acquire(self.key(name), mine)
                if held is not None:
                    return held, sent
                holder = self.service.holder(self.key(name))
                line = f"waiting for {name}, held by {holder or _UNNAMED}"
            except LockServiceError as error:
                fault, holder, line = error, None, str(error)
            left = wait_seconds - (time.monotonic() - started)
            if left <= 0 and fault is not None:
                raise fault
            if left <= 0:
                waited = f" after {wait_seconds:g} s of waiting" if wait_seconds > 0 else ""
                raise LockHeldError(
                    f"{name} is held by {holder or _UNNAMED}{waited}; wait until it ends, or stop that process, and "
                    f"run again (its lock is free within {_lifetime(self.service):g} s of its death)"
                )
            if line != said and log is not None:
                log(line)
                said = line
            time.sleep(min(left, random.uniform(0.2, 0.8)))


def open_service(url: str, lifetime_seconds: float = LIFETIME_SECONDS) -> LockService:
    """The service behind ``PAYOUT_LIMITER_URL`` (redis://, rediss://, postgresql://). Does not connect yet.

    Raises ConfigurationError for another scheme, a URL that cannot be read or a missing package.
    """
    parts = urlsplit(url)
    register_secret(url)
    register_secret(parts.password)
    if parts.scheme in ("redis", "rediss"):
        try:
            return RedisLocks(url, lifetime_seconds)
        except ValueError as error:
            raise ConfigurationError(f"PAYOUT_LIMITER_URL: {excerpt(str(error))}") from None
    if parts.scheme in ("postgresql", "postgres"):
        return PostgresLocks(url, lifetime_seconds)
    raise ConfigurationError(
        f"PAYOUT_LIMITER_URL: expected a redis:// or postgresql:// URL, got {excerpt(parts.scheme, 20)!r}"
    )


def remote_locks(runtime_dir: str, limiter_url: str) -> RemoteLocks:
    """The locks of a runtime location at the service of ``PAYOUT_LIMITER_URL``; raises as :func:`open_service` does.

    A local ``runtime_dir`` counts as its absolute path, the same on every machine, so that two machines with a
    directory each still take turns at a worker.
    """
    scope = runtime_dir if "://" in runtime_dir else str(Path(runtime_dir).absolute())
    return RemoteLocks(open_service(limiter_url), scope)


def _stop_this_process(_message: str) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _keep(lock: Lease, held: _Held, lifetime: float, acquired: float, done: threading.Event) -> None:
    """Renew until ``done``. The lock counts as lost before it can expire at the service: its life-time is measured
    from before the last renewal was sent, and a tenth of it is kept back for clocks that run apart."""
    confirmed = acquired
    while not done.wait(lifetime / 6):
        sent = time.monotonic()
        try:
            reason = held.renew()
        except (LockServiceError, ConfigurationError) as error:
            if time.monotonic() - confirmed + _renewal_takes(lifetime) > lifetime * 0.9:
                lock._lose(f"it could not be renewed for {time.monotonic() - confirmed:.0f} s: {error}")
                return
            continue
        if done.is_set():
            return
        if reason is not None:
            lock._lose(reason)
            return
        confirmed = sent


def _patience(lifetime: float) -> float:
    """How long Redis may take to connect, and again to answer."""
    return min(_CONNECT_SECONDS, lifetime / 12)


def _renewal_takes(lifetime: float) -> float:
    """The longest from one failed renewal to the end of the next: the pause, connecting, answering."""
    return lifetime / 6 + 2 * _patience(lifetime)


def _lifetime(service: LockService) -> float:
    return float(getattr(service, "lifetime", LIFETIME_SECONDS))


def _advisory_key(key: str) -> int:
    """63 bits of the key's hash: advisory locks are numbers."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def _said_by(query: str) -> Holder | None:
    match = re.match(rf"/\* {_SAID}([A-Za-z0-9+/=]+) \*/", query)
    try:
        return Holder.from_json(base64.b64decode(match[1])) if match else None
    except ValueError:  # cut off by track_activity_query_size
        return None


def _missing(package: str) -> ConfigurationError:
    return ConfigurationError(
        f"PAYOUT_LIMITER_URL needs the package {package!r}, which is not installed here: "
        "pip install 'payout-pipeline[cluster]'"
    )


def _refused(service: str, error: Exception) -> str:
    return f"PAYOUT_LIMITER_URL: {service} refused: {excerpt(str(error))}. Correct the user, password or database."


def _unreachable(service: str, error: Exception) -> str:
    return f"PAYOUT_LIMITER_URL: {service} does not answer: {excerpt(str(error)) or type(error).__name__}"


def _register() -> None:
    """Known by its scheme alone, a service has one scope for all that use it: safe, if stricter than `remote_locks`."""

    def without_scope(url: str) -> Locks:
        return RemoteLocks(open_service(url), "")

    for scheme in ("redis", "rediss", "postgresql", "postgres"):
        register_locks(scheme, without_scope)


_register()
