"""The budget of requests shared between machines, in Redis or PostgreSQL, on the clock of that server.

The rules are those of :mod:`.pacing`; only the keeping differs. pyrate-limiter's own buckets for these servers count
nothing that is stamped in the future, so they cannot hold the place of a request in flight; its sliding-window log is
used on the rows themselves instead.

Neither server may be the cause of an overrun: a transaction that meets another one is repeated, and where the server is
away nothing is sent.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from pyrate_limiter import Rate
from pyrate_limiter.abstracts.algorithm import SlidingWindowLog

from payout_pipeline.errors import ConfigurationError
from payout_pipeline.goldsky.pacing import LimiterStore, Rules, SharedState, StoreBusyError, Transaction
from payout_pipeline.scrub import excerpt, scrub

_LOG = SlidingWindowLog()
_PREFIX = "payout_pipeline:rate"
_CONNECT_SECONDS = 5
_KEEP_MS = 60_000


def open_remote_store(url: str, key: str, rules: Rules) -> LimiterStore:
    """The store of ``PAYOUT_LIMITER_URL``. Connects at the first use."""
    scheme = urlsplit(url).scheme
    if scheme in ("redis", "rediss"):
        return RedisStore(url, key, rules)
    if scheme in ("postgresql", "postgres"):
        return PostgresStore(url, key, rules)
    raise ConfigurationError(f"PAYOUT_LIMITER_URL: expected redis://, rediss:// or postgresql://, not {scheme}://")


def _missing(package: str) -> ConfigurationError:
    return ConfigurationError(
        f"PAYOUT_LIMITER_URL needs the package {package}; install it with: pip install 'payout-pipeline[cluster]'"
    )


class _RedisTransaction:
    """Reads what is there under WATCH; writes together at the end, or not at all if somebody else wrote meanwhile."""

    def __init__(self, pipe: Any, key: str, rules: Rules) -> None:
        self._pipe, self._rules = pipe, rules
        self._stamps, self._state_key = f"{_PREFIX}:{{{key}}}:stamps", f"{_PREFIX}:{{{key}}}:state"
        pipe.watch(self._stamps, self._state_key)
        seconds, microseconds = pipe.time()
        self._now = int(seconds) * 1000 + int(microseconds) // 1000
        stored = pipe.get(self._state_key)
        self.state = SharedState.from_json(stored.decode("utf-8", "replace") if stored else None)
        self._writes: list[tuple[str, tuple[Any, ...]]] = []

    def now(self) -> int:
        return self._now

    def put(self, name: str, now: int, lease_ms: int) -> int | None:
        rate = Rate(self._rules.requests, self._rules.interval)
        count = int(self._pipe.zcount(self._stamps, _LOG.window_start(rate, now), "+inf"))

        def peek(offset: int) -> int | None:
            rows = self._pipe.zrange(self._stamps, -1 - offset, -1 - offset, withscores=True)
            return int(rows[0][1]) if rows else None

        decision = _LOG.decide([rate], [count], 1, now, peek)
        if not decision.allowed:
            return max(1, min(decision.retry_after_ms or 1, rate.interval + 1))
        self._writes.append(("zadd", (self._stamps, {name: now + lease_ms})))
        self._writes.append(("zremrangebyscore", (self._stamps, "-inf", f"({now - 2 * rate.interval - _KEEP_MS}")))
        return None

    def restamp(self, name: str, stamp: int) -> None:
        if self._pipe.zscore(self._stamps, name) is not None:
            self._writes.append(("zadd", (self._stamps, {name: stamp})))

    def remove(self, name: str) -> None:
        self._writes.append(("zrem", (self._stamps, name)))

    def in_flight(self, now: int) -> list[str]:
        return [row.decode() for row in self._pipe.zrangebyscore(self._stamps, f"({now}", "+inf")]

    def used(self, now: int) -> int:
        return int(self._pipe.zcount(self._stamps, now - self._rules.interval, "+inf"))

    def save(self) -> None:
        self._writes.append(("set", (self._state_key, self.state.to_json())))

    def commit(self) -> None:
        if not self._writes:
            return
        self._pipe.multi()
        for command, arguments in self._writes:
            getattr(self._pipe, command)(*arguments)
        for key in (self._stamps, self._state_key):
            self._pipe.pexpire(key, 4 * self._rules.interval + 2 * _KEEP_MS + 3_600_000)
        self._pipe.execute()


class RedisStore:
    """A budget in Redis: a sorted set of stamps and one value of state, changed together (WATCH, MULTI, EXEC)."""

    blocking = True

    def __init__(self, url: str, key: str, rules: Rules) -> None:
        self._url, self._key, self._rules = url, key, rules
        self.where = scrub(url)
        self._client: Any = None
        self._lock = threading.Lock()

    def _connect(self) -> Any:
        with self._lock:
            if self._client is None:
                try:
                    import redis
                except ImportError:
                    raise _missing("redis") from None
                self._client = redis.Redis.from_url(
                    self._url, socket_connect_timeout=_CONNECT_SECONDS, socket_timeout=_CONNECT_SECONDS
                )
            return self._client

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A group of reads and writes that happens as one; StoreBusyError where it did not happen."""
        client = self._connect()
        import redis

        try:
            with client.pipeline() as pipe:
                tx = _RedisTransaction(pipe, self._key, self._rules)
                yield tx
                tx.commit()
        except redis.AuthenticationError as error:
            raise ConfigurationError(f"PAYOUT_LIMITER_URL: Redis refused the password: {excerpt(str(error))}") from None
        except redis.RedisError as error:  # WatchError: somebody was quicker; ConnectionError: away
            raise StoreBusyError(excerpt(str(error))) from error

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()


_CREATE = (
    "CREATE TABLE IF NOT EXISTS payout_pipeline_rate_stamps "
    "(key text NOT NULL, name text NOT NULL, stamp bigint NOT NULL, PRIMARY KEY (key, name))",
    "CREATE INDEX IF NOT EXISTS payout_pipeline_rate_stamps_by_time ON payout_pipeline_rate_stamps (key, stamp)",
    "CREATE TABLE IF NOT EXISTS payout_pipeline_rate_state (key text PRIMARY KEY, value text NOT NULL)",
)


class _PostgresTransaction:
    def __init__(self, conn: Any, key: str, rules: Rules) -> None:
        self._conn, self._key, self._rules = conn, key, rules
        row = conn.execute(
            "SELECT (SELECT value FROM payout_pipeline_rate_state WHERE key = %s), "
            "(extract(epoch FROM clock_timestamp()) * 1000)::bigint",
            (key,),
        ).fetchone()
        self.state, self._now = SharedState.from_json(row[0]), int(row[1])

    def now(self) -> int:
        return self._now

    def put(self, name: str, now: int, lease_ms: int) -> int | None:
        rate = Rate(self._rules.requests, self._rules.interval)
        start = _LOG.window_start(rate, now)

        def peek(offset: int) -> int | None:
            row = self._conn.execute(
                "SELECT stamp FROM payout_pipeline_rate_stamps WHERE key = %s ORDER BY stamp DESC LIMIT 1 OFFSET %s",
                (self._key, offset),
            ).fetchone()
            return int(row[0]) if row else None

        decision = _LOG.decide([rate], [self._count(start)], 1, now, peek)
        if not decision.allowed:
            return max(1, min(decision.retry_after_ms or 1, rate.interval + 1))
        self._conn.execute(
            "INSERT INTO payout_pipeline_rate_stamps (key, name, stamp) VALUES (%s, %s, %s)",
            (self._key, name, now + lease_ms),
        )
        self._conn.execute(
            "DELETE FROM payout_pipeline_rate_stamps WHERE key = %s AND stamp < %s",
            (self._key, now - 2 * rate.interval - _KEEP_MS),
        )
        return None

    def _count(self, start: int) -> int:
        row = self._conn.execute(
            "SELECT count(*) FROM payout_pipeline_rate_stamps WHERE key = %s AND stamp >= %s", (self._key, start)
        ).fetchone()
        return int(row[0])

    def restamp(self, name: str, stamp: int) -> None:
        self._conn.execute(
            "UPDATE payout_pipeline_rate_stamps SET stamp = %s WHERE key = %s AND name = %s", (stamp, self._key, name)
        )

    def remove(self, name: str) -> None:
        self._conn.execute("DELETE FROM payout_pipeline_rate_stamps WHERE key = %s AND name = %s", (self._key, name))

    def in_flight(self, now: int) -> list[str]:
        rows = self._conn.execute(
            "SELECT name FROM payout_pipeline_rate_stamps WHERE key = %s AND stamp > %s", (self._key, now)
        ).fetchall()
        return [str(row[0]) for row in rows]

    def used(self, now: int) -> int:
        return self._count(now - self._rules.interval)

    def save(self) -> None:
        self._conn.execute(
            "INSERT INTO payout_pipeline_rate_state (key, value) VALUES (%s, %s) "
            "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (self._key, self.state.to_json()),
        )


class PostgresStore:
    """A budget in two small tables of PostgreSQL, created where they are missing; one transaction at a time."""

    blocking = True

    def __init__(self, url: str, key: str, rules: Rules) -> None:
        self._url, self._key, self._rules = url, key, rules
        self.where = scrub(url)
        self._conn: Any = None
        self._lock = threading.Lock()  # one connection, used from several threads in turn

    def _connect(self) -> Any:
        if self._conn is not None and not self._conn.closed:
            return self._conn
        try:
            import psycopg
        except ImportError:
            raise _missing("psycopg") from None
        conn = psycopg.connect(
            self._url,
            connect_timeout=_CONNECT_SECONDS,
            options="-c statement_timeout=5000 -c lock_timeout=2000 -c idle_in_transaction_session_timeout=5000",
        )
        with conn.transaction():
            conn.execute("SELECT pg_advisory_xact_lock(hashtext('payout_pipeline_rate'))")
            for statement in _CREATE:
                conn.execute(statement)
        self._conn = conn
        return conn

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """One transaction under the budget's advisory lock; StoreBusyError where it did not happen."""
        with self._lock:
            try:
                conn = self._connect()
                import psycopg
            except ConfigurationError:
                raise
            except Exception as error:
                raise self._translated(error) from error
            try:
                with conn.transaction():
                    conn.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (f"{_PREFIX}:{self._key}",))
                    yield _PostgresTransaction(conn, self._key, self._rules)
            except psycopg.Error as error:
                if conn.broken or conn.closed:
                    self._conn = None
                raise self._translated(error) from error

    def _translated(self, error: Exception) -> Exception:
        """Wrong password, database or rights: for good. Anything else: try again, until the pacer's patience ends."""
        text, state = excerpt(str(error)), getattr(error, "sqlstate", None) or ""
        if state.startswith("28") or state in ("3D000", "42501") or "password authentication failed" in text:
            return ConfigurationError(f"PAYOUT_LIMITER_URL: PostgreSQL refused: {text}")
        time.sleep(0.01)
        return StoreBusyError(text)

    def close(self) -> None:
        with self._lock:
            conn, self._conn = self._conn, None
            if conn is not None:
                conn.close()
