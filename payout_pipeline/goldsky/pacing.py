"""One budget of requests, shared by all workers and processes: never more than N in any window of S seconds.

The server counts a request at some moment between its sending and its answer, and only the server knows when. So a
request takes its place in the window from its admission on, keeps it while it is in flight, and keeps it for one whole
window after its answer came (its stamp is moved to that moment). Whatever the server's clock read when it counted, no
N+1 requests can then lie within S seconds of each other. Inside that rule the whole window is used: a burst of N, then
a pause, no smoothing.

Two exceptions spend the budget with more care:

* While nothing is known of the last window (the first request after a pause of two windows: somebody else behind the
  same address may have used the budget) and after a 429, admissions keep a small distance (an eighth of S/N), so that a
  429 stops everybody when at most two or three requests are under way.
* After a 429 nobody sends anything until the server's ``Retry-After`` (at least one window) has passed. Then one
  request goes alone; the others follow when it was answered.

A place is a row ``(name, stamp)`` in a bucket of pyrate-limiter; its sliding-window log decides. A request in flight is
stamped with the latest moment at which it can end, its lease. A process that was killed leaves such rows behind: the
next one on the same machine sees that the owner is dead and stamps them with the present; elsewhere the lease (timeout
of a request + 1 s) runs out. Either way they hold their place for at least one window after the last moment at which
the dead process can have sent anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import logging
import os
import random
import socket
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from pyrate_limiter import Rate, RateItem
from pyrate_limiter.buckets.sqlite_bucket import Queries, SQLiteBucket

from payout_pipeline.errors import StorageError
from payout_pipeline.scrub import scrub

logger = logging.getLogger(__name__)

GUARD_MS = 20  # for stamps in whole milliseconds, and for a server whose window is closed at both ends
_GAP_SHARE = 0.125  # of S/N: distance of admissions while the server's window is unknown
_LONGEST_GAP_MS = 100.0
_CIRCUIT_FORGOTTEN_MS = 120_000  # an outage that nobody has reported on for this long is no longer believed
_BUSY_SECONDS = 30.0  # a limiter that stays locked for this long is broken
_DEAD_CHECK_SECONDS = 0.5
_LOOK_SECONDS = 0.25  # how often is looked whether the file is still the same
_LONGEST_SLEEP = 1.0
_BEHIND_SECONDS = 0.004  # longer than the random part of a wait, shorter than a request's way
_MOST_BEHIND = 8
_FILE = "goldsky-rate.sqlite"
_T = TypeVar("_T")


class RateLimitLike(Protocol):
    """``requests`` in any window of ``seconds``; :class:`payout_pipeline.settings.RateLimit` is one."""

    @property
    def requests(self) -> int: ...

    @property
    def seconds(self) -> float: ...


@dataclass(slots=True)
class SharedState:
    """What all processes know together, besides the stamps. Times are milliseconds of the store's clock."""

    hold_until: int = 0  # nothing may be sent before
    hold_reason: str = ""
    careful_until: int = 0  # admissions keep a distance before
    last_admission: int = 0
    solo_pending: bool = False  # the next request goes alone
    solo_name: str = ""
    solo_until: int = 0
    answers_429: int = 0
    outage_since: int = 0  # 0: no outage
    outage_seen: int = 0  # last failure reported
    outage_message: str = ""
    next_probe: int = 0

    def to_json(self) -> str:
        return json.dumps({name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def from_json(cls, text: str | None) -> SharedState:
        """The stored state; fields of another version are left at their defaults."""
        state = cls()
        try:
            values = json.loads(text) if text else {}
        except ValueError:
            values = {}
        if isinstance(values, dict):
            for name, value in values.items():
                if name in cls.__slots__ and type(value) is type(getattr(state, name)):
                    setattr(state, name, value)
        return state


@dataclass(frozen=True, slots=True)
class Admission:
    """``name`` of the place where admitted, otherwise how long to wait before asking again, and why."""

    granted: bool
    wait_seconds: float = 0.0
    reason: str = ""
    solo: bool = False  # everybody else waits until this request is answered


class Transaction(Protocol):
    """Exclusive access to one budget: the stamps and the state, on one clock."""

    @property
    def state(self) -> SharedState: ...

    def now(self) -> int: ...

    def put(self, name: str, now: int, lease_ms: int) -> int | None:
        """Add a row stamped ``now + lease_ms`` if the window has room; otherwise the milliseconds until it may have."""

    def restamp(self, name: str, stamp: int) -> None: ...

    def remove(self, name: str) -> None: ...

    def in_flight(self, now: int) -> list[str]: ...

    def used(self, now: int) -> int: ...

    def save(self) -> None: ...


class LimiterStore(Protocol):
    """Where a budget is kept. ``blocking`` stores are used from a thread; the others are quick."""

    blocking: bool
    where: str

    def transaction(self) -> contextlib.AbstractContextManager[Transaction]: ...

    def close(self) -> None: ...


class StoreBusyError(Exception):
    """Another process holds the store at this moment; try again in some milliseconds."""


# --- who sends ----------------------------------------------------------------------------------------------------


def _process_start(pid: int) -> str:
    """A mark that tells a process from a later one with the same number; empty where the system does not say."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    if len(fields) < 20:
        return ""
    return "dead" if fields[0] in ("Z", "X") else fields[19]  # a zombie has no open connection any more


@lru_cache(maxsize=1)
def _machine() -> str:
    """This machine and process number space: only here can be seen whether a process lives."""
    try:
        namespace = str(os.stat("/proc/self/ns/pid").st_ino)  # noqa: PTH116 - a link of the kernel, not a file
    except OSError:
        namespace = ""
    return f"{socket.gethostname()}|{boot_id()}|{namespace}"


@lru_cache(maxsize=1)
def boot_id() -> str:
    """Changes with every start of the machine, as the monotonic clock does."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{sys.platform}:{round((time.time() - time.monotonic()) / 60)}"


def _owner(pid: int) -> str:
    machine = hashlib.sha256(_machine().encode()).hexdigest()[:12]
    return f"{machine}:{pid}:{_process_start(pid)}"


def owner_is_dead(name: str) -> bool:
    """Whether the process that took the place ``name`` is known to be gone. False where it cannot be known."""
    parts = name.split(":")
    if len(parts) != 4 or parts[0] != _owner(os.getpid()).split(":")[0] or not parts[1].isdigit():
        return False
    pid, start = int(parts[1]), parts[2]
    running = _process_start(pid)
    if start and running:
        return running != start
    try:  # no such process, or the system hides those of other users
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def budget_key(endpoint: str) -> str:
    """One budget per host and path, so that several endpoints or local servers do not share one."""
    parts = urlsplit(endpoint)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return hashlib.sha256(f"{(parts.hostname or '').lower()}:{port}{parts.path.rstrip('/')}".encode()).hexdigest()[:16]


# --- the rules, the same for every store --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rules:
    """The limit in milliseconds. ``interval`` includes the guard."""

    requests: int
    interval: int
    gap: float

    @classmethod
    def of(cls, limit: RateLimitLike) -> Rules:
        milliseconds = limit.seconds * 1000
        gap = min(_GAP_SHARE * milliseconds / limit.requests, _LONGEST_GAP_MS)
        # Stamps are whole milliseconds: of a smaller distance nothing can be seen but that two have the same one.
        return cls(limit.requests, int(-(-milliseconds // 1)) + GUARD_MS, gap if gap >= 1 else 0.0)


def admit(tx: Transaction, rules: Rules, name: str, lease_ms: int, *, is_probe: bool = False) -> Admission:
    """Give ``name`` a place in the window, or say how long to wait."""
    now, state = tx.now(), tx.state
    if now < state.hold_until:
        return Admission(False, (state.hold_until - now) / 1000, state.hold_reason or "rate limited")
    if not is_probe and state.outage_since and 0 <= now - state.outage_seen < _CIRCUIT_FORGOTTEN_MS:
        return Admission(False, max(0, state.next_probe - now) / 1000, "outage")
    if state.solo_name and now < state.solo_until:
        return Admission(False, 0.025, "one request alone after a 429")
    if not 0 <= now - state.last_admission <= 2 * rules.interval:
        state.careful_until = now + rules.interval
    careful = now < state.careful_until
    if careful and 0 <= now - state.last_admission < rules.gap:
        return Admission(False, (state.last_admission + rules.gap - now) / 1000, "pace")
    wait = tx.put(name, now, lease_ms)
    if wait is not None:
        return Admission(False, wait / 1000, "window")
    solo = state.solo_pending
    if solo:
        state.solo_pending, state.solo_name, state.solo_until = False, name, now + lease_ms
        state.careful_until = now + rules.interval
    state.last_admission = now
    tx.save()
    return Admission(True, solo=solo)


def finish(tx: Transaction, name: str, *, answered: bool, solo: bool = True) -> None:
    """The request of ``name`` has ended (with an answer or without): its place is held for one window from now on.

    ``solo``: whether it may have been sent alone (False spares reading the state).
    """
    tx.restamp(name, tx.now())
    if solo and tx.state.solo_name == name:
        tx.state.solo_name = ""
        if not answered:
            tx.state.solo_pending = True
        tx.save()


def give_back(tx: Transaction, name: str) -> None:
    """The request of ``name`` was never sent."""
    tx.remove(name)
    if tx.state.solo_name == name:
        tx.state.solo_name, tx.state.solo_pending = "", True
        tx.save()


def hold(tx: Transaction, seconds: float, reason: str) -> int:
    """Nobody sends anything for ``seconds`` from now on; returns how many answers of 429 were counted so far."""
    now, state = tx.now(), tx.state
    until = now + int(seconds * 1000) + 1
    if until > state.hold_until:
        state.hold_until, state.hold_reason = until, reason
    state.careful_until = max(state.careful_until, state.hold_until)
    state.solo_pending = True
    state.solo_name = ""
    state.answers_429 += 1
    tx.save()
    return state.answers_429


def release_the_dead(tx: Transaction) -> int:
    """Stamp the places of processes that were killed with the present; returns how many."""
    now = tx.now()
    dead = [name for name in tx.in_flight(now) if owner_is_dead(name)]
    for name in dead:
        finish(tx, name, answered=False)
    return len(dead)


# --- a file ---------------------------------------------------------------------------------------------------------


class LeasedSQLiteBucket(SQLiteBucket):
    """pyrate-limiter's bucket with the admission as one statement group over processes, a lease, and a movable stamp.

    The caller holds the write lock of the database (``BEGIN IMMEDIATE``).
    """

    def admit(self, name: str, now: int, lease_ms: int) -> int | None:
        query, parameters = self._build_full_count_query(now)
        counts = [int(row[1]) for row in self.conn.execute(query, parameters)]
        item = RateItem(name, now)
        decision = self._algorithm.decide(self.rates, counts, 1, now, self._peek_timestamp)
        if not self._record(item, decision):
            # What is in flight is stamped in the future and leaves the window one interval from now at the earliest.
            longest = self.rates[-1].interval + 1
            return max(1, min(decision.retry_after_ms or 1, longest))
        self.conn.execute(Queries.PUT_ITEM.format(table=self.table), (name, now + lease_ms))
        return None


class _SQLiteTransaction:
    def __init__(self, conn: sqlite3.Connection, bucket: LeasedSQLiteBucket, clock: Callable[[], int]) -> None:
        self._conn, self._bucket, self._clock = conn, bucket, clock
        self._state: SharedState | None = None

    @property
    def state(self) -> SharedState:
        if self._state is None:
            row = self._conn.execute("SELECT value FROM budget_state WHERE key = ?", (self._bucket.table,)).fetchone()
            self._state = SharedState.from_json(row[0] if row else None)
        return self._state

    def now(self) -> int:
        return self._clock()

    def put(self, name: str, now: int, lease_ms: int) -> int | None:
        return self._bucket.admit(name, now, lease_ms)

    def restamp(self, name: str, stamp: int) -> None:
        self._conn.execute(f'UPDATE "{self._bucket.table}" SET item_timestamp = ? WHERE name = ?', (stamp, name))  # noqa: S608

    def remove(self, name: str) -> None:
        self._conn.execute(f'DELETE FROM "{self._bucket.table}" WHERE name = ?', (name,))  # noqa: S608

    def in_flight(self, now: int) -> list[str]:
        query = f'SELECT name FROM "{self._bucket.table}" WHERE item_timestamp > ?'  # noqa: S608
        return [str(row[0]) for row in self._conn.execute(query, (now,))]

    def used(self, now: int) -> int:
        query = f'SELECT COUNT(*) FROM "{self._bucket.table}" WHERE item_timestamp >= ?'  # noqa: S608
        return int(self._conn.execute(query, (now - self._bucket.rates[-1].interval,)).fetchone()[0])

    def save(self) -> None:
        self._conn.execute(
            "REPLACE INTO budget_state (key, value) VALUES (?, ?)", (self._bucket.table, self.state.to_json())
        )


def _monotonic_ms() -> int:
    # One clock for all processes of a machine, which no setting of the time moves.
    return time.monotonic_ns() // 1_000_000


class SQLiteStore:
    """A budget in one SQLite file of this machine, on its monotonic clock (stamps of an earlier boot are made new).

    A file that is damaged is set aside as ``.corrupt-…``; the new one starts with a hold of one window, since what was
    sent before is forgotten.
    """

    blocking = False

    def __init__(self, path: Path, key: str, rules: Rules, *, clock: Callable[[], int] = _monotonic_ms) -> None:
        self.path, self._key, self._rules, self._clock = path, key, rules, clock
        self.where = str(path)
        self._table = f"bucket_{key}"
        self._conn: sqlite3.Connection | None = None
        self._bucket: LeasedSQLiteBucket | None = None
        self._pid = 0
        self._inode = 0
        self._next_look = 0.0
        self._next_leak = 0

    def _open(self) -> tuple[sqlite3.Connection, LeasedSQLiteBucket]:
        if self._conn is not None and self._bucket is not None and self._pid == os.getpid():
            now = time.monotonic()
            if now < self._next_look:
                return self._conn, self._bucket
            self._next_look = now + _LOOK_SECONDS
            with contextlib.suppress(OSError):
                if self.path.stat().st_ino == self._inode:
                    return self._conn, self._bucket
            self.close()  # somebody set the file aside or removed it: everybody goes over to the new one
        self._conn = None  # after a fork the parent's connection must not even be closed here
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            conn = sqlite3.connect(self.path, timeout=0.02, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.OperationalError) as error:
            raise StorageError(f"the rate limit's file {self.path} cannot be opened: {error}") from error
        try:
            conn.execute("PRAGMA journal_mode=WAL").fetchone()
            conn.execute("PRAGMA synchronous=NORMAL")
            conn.execute("BEGIN IMMEDIATE")
            conn.execute("CREATE TABLE IF NOT EXISTS budget_state (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
            conn.execute(Queries.CREATE_BUCKET_TABLE.format(table=self._table))
            conn.execute(
                Queries.CREATE_INDEX_ON_TIMESTAMP.format(index_name=f"idx_{self._table}", table_name=self._table)
            )
            conn.execute(f'CREATE INDEX IF NOT EXISTS "idx_{self._table}_name" ON "{self._table}" (name)')
            self._new_boot(conn)
            conn.execute("COMMIT")
        except BaseException:
            conn.close()
            raise
        bucket = LeasedSQLiteBucket([Rate(self._rules.requests, self._rules.interval)], conn, self._table)
        self._conn, self._bucket, self._pid, self._inode = conn, bucket, os.getpid(), self.path.stat().st_ino
        return conn, bucket

    def _new_boot(self, conn: sqlite3.Connection) -> None:
        """After a restart of the machine its clock began again: what was stamped before counts as sent now."""
        row = conn.execute("SELECT value FROM budget_state WHERE key = ?", (f"boot:{self._table}",)).fetchone()
        if row is not None and row[0] == boot_id():
            return
        if row is not None:
            now = self._clock()
            conn.execute(f'UPDATE "{self._table}" SET item_timestamp = ?', (now,))  # noqa: S608
            conn.execute("DELETE FROM budget_state WHERE key = ?", (self._table,))
        conn.execute("REPLACE INTO budget_state (key, value) VALUES (?, ?)", (f"boot:{self._table}", boot_id()))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Exclusive use of the file; raises StoreBusyError at once where another process has it."""
        try:
            conn, bucket = self._open()
            conn.execute("BEGIN IMMEDIATE")
        except sqlite3.DatabaseError as error:
            self._failed(error)
            raise StoreBusyError(str(error)) from error
        try:
            tx = _SQLiteTransaction(conn, bucket, self._clock)
            yield tx
            now = self._clock()
            if now >= self._next_leak:
                bucket.conn.execute(
                    f'DELETE FROM "{self._table}" WHERE item_timestamp < ?',  # noqa: S608
                    (now - 2 * self._rules.interval - 60_000,),
                )
                self._next_leak = now + 5_000
            conn.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            self.close()
            self._failed(error)
            raise StoreBusyError(str(error)) from error
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                conn.execute("ROLLBACK")
            raise

    def _failed(self, error: sqlite3.DatabaseError) -> None:
        """Busy: nothing to do. Damaged: set the file aside. Anything else (full disk, no right): say it."""
        text = str(error)
        if isinstance(error, sqlite3.OperationalError) and ("locked" in text or "busy" in text):
            return
        damaged = "not a database" in text or "malformed" in text or "corrupt" in text or "disk image" in text
        self.close()
        if not damaged:
            if isinstance(error, sqlite3.OperationalError) and "no such table" in text:
                return  # another program emptied the file; it is set up again when it is opened again
            raise StorageError(f"the rate limit's file {self.path} cannot be used: {error}. Check space and rights.")
        self._set_aside(error)

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        from filelock import FileLock

        with FileLock(f"{self.path}.repair-lock"):
            if self._is_sound():
                return  # another process was quicker
            aside = self.path.with_name(f"{self.path.name}.corrupt-{time.time_ns()}")
            for suffix in ("-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    self.path.with_name(self.path.name + suffix).unlink()
            with contextlib.suppress(FileNotFoundError):
                self.path.rename(aside)
            logger.warning(
                "The rate limit's file %s is damaged (%s). It was set aside as %s; a new one begins with a pause of "
                "%.1f s, because what was sent before is no longer known.",
                self.path, error, aside.name, self._rules.interval / 1000,
            )  # fmt: skip
            conn, bucket = self._open()
            conn.execute("BEGIN IMMEDIATE")
            tx = _SQLiteTransaction(conn, bucket, self._clock)
            tx.state.hold_until = self._clock() + self._rules.interval
            tx.state.hold_reason = "the limiter's file was damaged and begins anew"
            tx.save()
            conn.execute("COMMIT")

    def _is_sound(self) -> bool:
        try:
            conn = sqlite3.connect(self.path, timeout=1.0)
            try:
                return bool(conn.execute("PRAGMA quick_check").fetchone()[0] == "ok")
            finally:
                conn.close()
        except sqlite3.DatabaseError:
            return False

    def close(self) -> None:
        conn, self._conn, self._bucket = self._conn, None, None
        if conn is not None and self._pid == os.getpid():
            with contextlib.suppress(sqlite3.Error):
                conn.close()


def open_store(
    endpoint: str,
    limit: RateLimitLike,
    *,
    runtime_dir: str | Path,
    limiter_url: str | None = None,
) -> LimiterStore:
    """The budget of ``endpoint``: in Redis or PostgreSQL where ``limiter_url`` names one, else in a file."""
    key, rules = budget_key(endpoint), Rules.of(limit)
    if limiter_url:
        from payout_pipeline.goldsky.pacing_remote import open_remote_store

        return open_remote_store(limiter_url, key, rules)
    return SQLiteStore(limiter_file(runtime_dir, make=True), key, rules)


def limiter_file(runtime_dir: str | Path, *, make: bool = False) -> Path:
    """Where the budget of this machine is kept without PAYOUT_LIMITER_URL; StorageError where it is somebody else's.

    ``make``: with the directory that stands in for a remote one, which nobody else makes.
    """
    return _local_directory(str(runtime_dir), make=make) / _FILE


def is_kept(*, runtime_dir: str | Path, limiter_url: object | None) -> bool:
    """Whether there is a budget to look at already; with PAYOUT_LIMITER_URL there always is one."""
    try:
        return limiter_url is not None or limiter_file(runtime_dir).is_file()
    except StorageError:
        return False


def look_for_the_dead(endpoint: str, limit: RateLimitLike, *, runtime_dir: str | Path) -> int:
    """Stamp what killed processes of this machine have left in the file, before anything else is done.

    Each waiter looks too, but only when a process has loaded all its modules: a command that is started again gains
    that time. A file that is busy is left to the waiters. Returns how many places there were; raises StorageError.
    """
    if not limiter_file(runtime_dir).exists():
        return 0
    store = open_store(endpoint, limit, runtime_dir=runtime_dir)
    try:
        with store.transaction() as tx:
            return release_the_dead(tx)
    except StoreBusyError:
        return 0
    finally:
        store.close()


def _local_directory(runtime_dir: str, *, make: bool) -> Path:
    """Where the file is kept: a runtime directory in an object store cannot hold a file that processes share."""
    if runtime_dir.startswith("file://"):
        return Path(unquote(urlsplit(runtime_dir).path))
    if "://" not in runtime_dir:
        return Path(runtime_dir)
    user = os.getuid() if hasattr(os, "getuid") else "user"
    directory = Path(tempfile.gettempdir()) / f"payout-pipeline-{user}"
    if make:
        directory.mkdir(mode=0o700, exist_ok=True)
    elif not os.path.lexists(directory):
        return directory
    if directory.is_symlink() or (hasattr(os, "getuid") and directory.stat().st_uid != os.getuid()):
        raise StorageError(
            f"{directory} belongs to somebody else; set TMPDIR, or PAYOUT_LIMITER_URL to Redis or PostgreSQL"
        )
    return directory


# --- waiting for a place --------------------------------------------------------------------------------------------


class StoppedError(Exception):
    """The stop signal came: what was waiting or in flight has ended without a result."""


@dataclass(slots=True)
class PacerStats:
    """Of this process. The seconds are those of the first waiter; the others stand behind it in the queue."""

    requests: int = 0
    waits: int = 0
    wait_seconds: float = 0.0
    answers_429: int = 0
    hold_seconds: float = 0.0
    released_dead: int = 0
    seconds_by_reason: dict[str, float] = field(default_factory=dict)  # window, pace, hold


async def sleep_or_stop(seconds: float, stop: asyncio.Event | None) -> None:
    """Sleep; raises StoppedError as soon as ``stop`` is set."""
    if stop is None:
        await asyncio.sleep(seconds)
        return
    if stop.is_set():
        raise StoppedError("stopped")
    if seconds <= 0:
        await asyncio.sleep(0)
        return
    waiter = asyncio.ensure_future(stop.wait())
    try:
        done, _ = await asyncio.wait({waiter}, timeout=seconds)
    finally:
        waiter.cancel()
    if done:
        raise StoppedError("stopped")


class OutageSeenError(Exception):
    """Another process has opened the circuit of this endpoint; ``message`` is what it saw."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Pacer:
    """Places in the shared window for the requests of this process, first come, first served.

    ``async with pacer.slot(): send()`` waits for a place, and moves its stamp to the end of the request. Only the first
    waiter of a process looks at the store, and sleeps until the moment at which the next place can become free.
    ``on_wait(reason, seconds)`` is called before every wait that is longer than a tenth of a second.

    ``precedence``: of several processes that wait for the window, the one with the smallest number goes first, since
    the others look some milliseconds later. Workers that take turns at random end all at the same moment, and then
    stand in line for the database; one after the other, all but the last load while others still wait for the limit.
    """

    def __init__(
        self,
        store: LimiterStore,
        limit: RateLimitLike,
        *,
        request_timeout: float,
        max_retry_after: float = 60.0,
        stop: asyncio.Event | None = None,
        on_wait: Callable[[str, float], None] | None = None,
        precedence: int = 0,
    ) -> None:
        self._behind = min(max(precedence, 0), _MOST_BEHIND) * _BEHIND_SECONDS
        self.store, self.stop, self.on_wait = store, stop, on_wait
        self.limit = limit
        self.rules = Rules.of(limit)
        self.max_retry_after = max_retry_after
        self.stats = PacerStats()
        self._lease_ms = int(request_timeout * 1000) + 1000
        self._names = itertools.count()
        self._queue: asyncio.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next_dead_check = 0.0

    @property
    def lease_seconds(self) -> float:
        """The longest time for which a request can be in flight."""
        return self._lease_ms / 1000

    @classmethod
    def open(
        cls,
        endpoint: str,
        limit: RateLimitLike,
        *,
        runtime_dir: str | Path,
        request_timeout: float,
        limiter_url: str | None = None,
        max_retry_after: float = 60.0,
        stop: asyncio.Event | None = None,
        on_wait: Callable[[str, float], None] | None = None,
        precedence: int = 0,
    ) -> Pacer:
        """A pacer on the store that the settings name. Opens nothing before the first request."""
        store = open_store(endpoint, limit, runtime_dir=runtime_dir, limiter_url=limiter_url)
        return cls(
            store, limit, request_timeout=request_timeout, max_retry_after=max_retry_after, stop=stop, on_wait=on_wait,
            precedence=precedence,
        )  # fmt: skip

    def slot(self, *, is_probe: bool = False) -> Slot:
        """A place for one request; a probe gets one during an outage too. Raises StoppedError or OutageSeenError."""
        return Slot(self, is_probe)

    async def rate_limited(self, retry_after: float | None) -> str:
        """A 429 came: nobody sends anything for a while. ``retry_after`` in seconds. Returns the reason."""
        from payout_pipeline.goldsky.classify import capped_wait

        wait = capped_wait(retry_after, cap=self.max_retry_after, window=self.rules.interval / 1000)
        seconds = wait.seconds * random.uniform(1.0, 1.02) + 0.05  # never early, and not all machines at one moment
        self.stats.answers_429 += 1
        self.stats.hold_seconds += seconds
        total = await self._use(lambda tx: hold(tx, seconds, wait.reason))
        often = " If this goes on, lower GOLDSKY_RATE_LIMIT: somebody shares it, or the server allows less."
        logger.warning(
            "%s; nobody asks before that. Answers of 429 on record: %d.%s",
            wait.reason,
            total,
            often if total > 2 else "",
        )
        return wait.reason

    async def close(self) -> None:
        if self.store.blocking:
            await asyncio.to_thread(self.store.close)
        else:
            self.store.close()

    async def _use(self, action: Callable[[Transaction], _T]) -> _T:
        """``action`` in a transaction; a busy store is tried again, without holding up the event loop."""

        def run() -> _T:
            with self.store.transaction() as tx:
                return action(tx)

        started = time.monotonic()
        while True:
            try:
                return await asyncio.to_thread(run) if self.store.blocking else run()
            except StoreBusyError as busy:
                if time.monotonic() - started > _BUSY_SECONDS:
                    raise StorageError(
                        f"the rate limit's store {scrub(self.store.where)} was not free for {_BUSY_SECONDS:g} s: {busy}"
                    ) from busy
                await asyncio.sleep(random.uniform(0.001, 0.01))

    async def use(self, action: Callable[[Transaction], _T]) -> _T:
        """Read or change the shared state (the circuit does)."""
        return await self._use(action)

    async def _acquire(self, is_probe: bool) -> tuple[str, bool]:
        loop = asyncio.get_running_loop()
        if self._queue is None or self._loop is not loop:
            self._queue, self._loop = asyncio.Lock(), loop
        name = f"{_owner_cached(os.getpid())}:{next(self._names)}-{random.getrandbits(32):08x}"
        if is_probe:
            return await self._acquire_now(name, is_probe=True)
        async with self._queue:
            return await self._acquire_now(name, is_probe=False)

    async def _acquire_now(self, name: str, *, is_probe: bool) -> tuple[str, bool]:
        message = ""

        def attempt(tx: Transaction) -> Admission:
            nonlocal message
            admission = admit(tx, self.rules, name, self._lease_ms, is_probe=is_probe)
            message = tx.state.outage_message
            return admission

        waited = False
        while True:
            if self.stop is not None and self.stop.is_set():
                raise StoppedError("stopped")
            asking = asyncio.ensure_future(self._use(attempt)) if self.store.blocking else None
            try:
                admission: Admission = await (asyncio.shield(asking) if asking else self._use(attempt))
            except asyncio.CancelledError:
                if asking is not None:  # its thread goes on; what it took meanwhile is given back
                    await asyncio.wait({asking})
                    await self._use(lambda tx: give_back(tx, name))
                raise
            if admission.granted:
                self.stats.requests += 1
                return name, admission.solo
            if admission.reason == "outage":
                raise OutageSeenError(message)
            if admission.reason == "window" and time.monotonic() >= self._next_dead_check:
                self._next_dead_check = time.monotonic() + _DEAD_CHECK_SECONDS
                released = await self._use(release_the_dead)
                self.stats.released_dead += released
                if released:
                    logger.info("Took over %d places in the rate limit of a process that is gone.", released)
                    continue
            if not waited:
                waited = True
                self.stats.waits += 1
            await self._wait(admission)

    async def _wait(self, admission: Admission) -> None:
        if self.on_wait is not None and admission.wait_seconds > 0.1:
            self.on_wait(admission.reason, admission.wait_seconds)
        # Not in one piece: a place can be given back early, and a clock that was set must not make the wait endless.
        seconds = min(admission.wait_seconds, _LONGEST_SLEEP) + random.uniform(0.0, 0.002)
        seconds += self._behind if admission.reason == "window" else 0.0
        started = time.monotonic()
        await sleep_or_stop(seconds, self.stop)
        slept = time.monotonic() - started
        kind = admission.reason if admission.reason in ("window", "pace") else "hold"
        self.stats.wait_seconds += slept
        self.stats.seconds_by_reason[kind] = self.stats.seconds_by_reason.get(kind, 0.0) + slept

    async def _finish(self, name: str, *, answered: bool, solo: bool, unused: bool) -> None:
        await self._use(lambda tx: give_back(tx, name) if unused else finish(tx, name, answered=answered, solo=solo))


@lru_cache(maxsize=4)
def _owner_cached(pid: int) -> str:
    return _owner(pid)


class Slot:
    """One place in the window, from admission to the end of the request."""

    __slots__ = ("_is_probe", "_name", "_pacer", "_solo", "answered", "unused")

    def __init__(self, pacer: Pacer, is_probe: bool) -> None:
        self._pacer, self._is_probe = pacer, is_probe
        self._name, self._solo = "", False
        self.answered = False  # an error of the server is an answer too
        self.unused = False  # nothing was sent after all

    async def __aenter__(self) -> Slot:
        self._name, self._solo = await self._pacer._acquire(self._is_probe)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        finishing: Awaitable[None] = self._pacer._finish(
            self._name, answered=exc is None or self.answered, solo=self._solo, unused=self.unused
        )
        if exc_type is not None and issubclass(exc_type, asyncio.CancelledError) and self._pacer.store.blocking:
            await asyncio.shield(asyncio.ensure_future(finishing))
        else:
            await finishing


def shared_status(store: LimiterStore) -> dict[str, Any]:
    """The state of a budget for people: JSON-able, times as seconds from now. Changes nothing."""
    with store.transaction() as tx:
        now, state = tx.now(), tx.state
        outage = bool(state.outage_since) and 0 <= now - state.outage_seen < _CIRCUIT_FORGOTTEN_MS
        return {
            "used": tx.used(now),
            "in_flight": len(tx.in_flight(now)),
            "hold_seconds": max(0.0, (state.hold_until - now) / 1000),
            "hold_reason": scrub(state.hold_reason) if state.hold_until > now else "",
            "answers_429": state.answers_429,
            "outage": outage,
            "outage_seconds": (now - state.outage_since) / 1000 if outage else 0.0,
            "outage_message": scrub(state.outage_message) if outage else "",
            "next_probe_seconds": max(0.0, (state.next_probe - now) / 1000) if outage else 0.0,
        }
