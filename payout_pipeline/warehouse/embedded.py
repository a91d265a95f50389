"""The embedded engine (chDB): one process at a time may have its directory open, so processes take turns.

A turn is an exclusive lock on ``clickhouse.lock`` beside the data. Opening the engine costs half a second, so it
stays open after a turn, and is closed as soon as another process waits: a waiter holds a shared lock on
``clickhouse.waiting``, which a thread of the idle holder looks at. Both locks belong to open files, so the kernel
frees them when a process is killed. ``clickhouse.holder`` says who has the turn, for messages only.

Inside a process there is one engine with any number of users; another directory waits until the first is unused.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from payout_pipeline.errors import ConfigurationError, StorageError, WarehousePermanentError, WarehouseUnavailableError
from payout_pipeline.scrub import excerpt

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.02
IDLE_POLL_SECONDS = 0.05
_FOREIGN_GRACE_SECONDS = 3.0  # a process that was just killed may still be giving its files back
_LONG_WAIT_SECONDS = 2.0

Opener = Callable[[str], Any]


@dataclass
class Engine:
    """The open engine of this process. ``client`` is a clickhouse-connect client; ``users`` counts sessions on it."""

    path: Path
    client: Any
    lock_fd: int
    users: int = 0
    opened_at: float = field(default_factory=time.monotonic)


_state = threading.Condition(threading.RLock())
_engine: Engine | None = None
_opening = False
_ever_opened: Path | None = None
_forked_from: Path | None = None
_yielded_at = 0.0


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _waiting_path(path: Path) -> Path:
    return path.with_name(path.name + ".waiting")


def _holder_path(path: Path) -> Path:
    return path.with_name(path.name + ".holder")


def holder_of(path: Path) -> str:
    """Who has the turn at ``path``, as a phrase for messages; never raises."""
    try:
        known = json.loads(_holder_path(path).read_text())
        return excerpt(f"process {int(known['pid'])} ({known['purpose']}, since {known['since']})", 300)
    except (OSError, ValueError, KeyError, TypeError):
        return "another process (it left no name)"


def _open_file(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise StorageError(
            f"the lock of the embedded database cannot be opened: {path}: {error.strerror}.\n"
            "To repair it: make the runtime directory writable, or set PAYOUT_RUNTIME_DIR to one that is."
        ) from error


def _try_lock(fd: int, mode: int) -> bool:
    try:
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _someone_waits(path: Path) -> bool:
    try:
        fd = os.open(_waiting_path(path), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try_lock(fd, fcntl.LOCK_EX)
    finally:
        os.close(fd)


def _take_turn(path: Path, purpose: str, deadline: float) -> int:
    """Wait for the lock until ``deadline`` (monotonic) and return its descriptor; raises WarehouseUnavailableError."""
    started = time.monotonic()
    fd = _open_file(_lock_path(path))
    waiting: int | None = None
    told = False
    try:
        if started - _yielded_at < 1.0 and _someone_waits(path):
            time.sleep(3 * POLL_SECONDS)  # this process gave way a moment ago: let the one that waited go first
        while not _try_lock(fd, fcntl.LOCK_EX):
            if waiting is None:
                waiting = _open_file(_waiting_path(path))
                fcntl.flock(waiting, fcntl.LOCK_SH)
            now = time.monotonic()
            if now >= deadline:
                raise WarehouseUnavailableError(
                    f"the embedded database {path} is in use by {holder_of(path)}; waited {now - started:.1f} s for a "
                    f"turn ({purpose}).\nTo repair it: let that process finish or stop it, then run the same step "
                    "again; CLICKHOUSE_WAIT_SECONDS sets how long to wait."
                )
            if not told and now - started > _LONG_WAIT_SECONDS:
                told = True
                logger.info("Waiting for a turn at the embedded database, in use by %s", holder_of(path))
            time.sleep(POLL_SECONDS * random.uniform(0.5, 1.5))
    except BaseException:
        os.close(fd)
        raise
    finally:
        if waiting is not None:
            os.close(waiting)
    return fd


def _announce(path: Path, purpose: str) -> None:
    text = json.dumps(
        {
            "pid": os.getpid(),
            "purpose": purpose,
            "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
    )
    temporary = _holder_path(path).with_name(f"{path.name}.holder.{os.getpid()}")
    with contextlib.suppress(OSError):  # the name is for messages; the lock is what counts
        temporary.write_text(text)
        temporary.replace(_holder_path(path))


def _foreign_user(path: Path) -> str:
    """The process that has the engine's own status file open, as ClickHouse wrote it there; empty where unknown."""
    try:
        lines = (path / "status").read_text(errors="replace").splitlines()
        pid = next(int(line.split(":", 1)[1]) for line in lines if line.startswith("PID:"))
    except (OSError, ValueError, StopIteration):
        return ""
    return f"process {pid}" if pid != os.getpid() and Path(f"/proc/{pid}").exists() else ""


def _open(path: Path, purpose: str, deadline: float, opener: Opener) -> Engine:
    global _ever_opened
    if _forked_from is not None:
        raise WarehousePermanentError(
            f"this process was forked from one that had opened the embedded database {_forked_from}, and the engine "
            "does not survive a fork.\nTo repair it: start the process anew (multiprocessing's spawn) instead of forking it."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"the directory of the embedded database cannot be made: {path}: {error.strerror}.\n"
            "To repair it: make the runtime directory writable, or set PAYOUT_RUNTIME_DIR to one that is."
        ) from error
    try:
        import chdb  # noqa: F401 - loading it takes a while, so not within the turn
    except ImportError as error:
        raise ConfigurationError(
            "the embedded ClickHouse is not installed (chdb), and CLICKHOUSE_HOST is not set.\n"
            "To repair it: pip install 'payout-pipeline[embedded]', or set CLICKHOUSE_HOST."
        ) from error
    fd = _take_turn(path, purpose, deadline)
    try:
        grace = min(deadline, time.monotonic() + _FOREIGN_GRACE_SECONDS)
        while True:
            try:
                client = opener(str(path))
                break
            except Exception as error:
                if "EmbeddedServer" in str(error) and time.monotonic() < grace:
                    time.sleep(0.1)
                    continue
                user = _foreign_user(path)
                cause = (
                    f"it is open in {user}, which does not take turns with this program (a chdb session?)"
                    if user
                    else "another program has it open, the disk is full or read-only, or the data is damaged"
                )
                raise WarehousePermanentError(
                    f"the embedded database {path} cannot be opened: {cause}: {excerpt(str(error))}\n"
                    "To repair it: end that program, or check the directory and its free space, and run again."
                ) from error
        _ever_opened = path
        _announce(path, purpose)
        return Engine(path=path, client=client, lock_fd=fd)
    except BaseException:
        os.close(fd)
        raise


def _close(engine: Engine) -> None:
    """Close the engine and give the turn away; call with ``_state`` held and no users."""
    global _engine, _yielded_at
    _engine = None
    _yielded_at = time.monotonic()
    try:
        engine.client.close()
    finally:
        with contextlib.suppress(OSError):
            _holder_path(engine.path).unlink()
        fcntl.flock(engine.lock_fd, fcntl.LOCK_UN)
        os.close(engine.lock_fd)
        _state.notify_all()


def _give_way(engine: Engine) -> None:
    """Thread of an open engine: close it when it is idle and somebody waits."""
    while True:
        time.sleep(IDLE_POLL_SECONDS)
        with _state:
            if _engine is not engine:
                return
            if engine.users == 0 and _someone_waits(engine.path):
                _close(engine)
                return


def acquire(path: Path, purpose: str, wait_seconds: float, opener: Opener) -> Engine:
    """A turn at the engine at ``path``; give it back with :func:`release`.

    Raises WarehouseUnavailableError naming the holder after ``wait_seconds``, WarehousePermanentError where the
    directory cannot be opened, ConfigurationError where chdb is not installed.
    """
    global _engine, _opening
    path = Path(os.path.realpath(path))
    deadline = time.monotonic() + wait_seconds
    with _state:
        while True:
            engine = _engine
            if engine is not None and engine.path == path:
                engine.users += 1
                return engine
            if engine is not None and engine.users == 0:
                _close(engine)
                continue
            if engine is None and not _opening:
                _opening = True
                break
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not _state.wait(remaining):
                used = engine.path if engine is not None else path
                raise WarehouseUnavailableError(
                    f"the embedded database {path} could not be opened within {wait_seconds:g} s: this process is "
                    f"using {used}, and one process can have one directory open at a time."
                )
    opened: Engine | None = None
    try:
        opened = _open(path, purpose, deadline, opener)
    finally:
        with _state:
            _opening = False
            if opened is not None:
                opened.users = 1
                _engine = opened
            _state.notify_all()
    threading.Thread(target=_give_way, args=(opened,), name="embedded-clickhouse-turns", daemon=True).start()
    return opened


def release(engine: Engine) -> None:
    """End one use of ``engine``; the last one closes it at once where another process waits."""
    with _state:
        engine.users -= 1
        if engine.users == 0:
            if _engine is engine and _someone_waits(engine.path):
                _close(engine)
            _state.notify_all()


def close_engine() -> None:
    """Close the engine of this process, if it has one that nobody uses."""
    with _state:
        if _engine is not None and _engine.users == 0:
            _close(_engine)


def _at_exit() -> None:
    with _state:
        if _engine is not None:
            _close(_engine)


def _in_forked_child() -> None:
    """Forget the parent's engine without touching it: its threads do not exist here, its files are the parent's.

    The engine does not survive a fork even where it was closed before: opening it again in the child, or running its
    exit handlers there, hangs. So a child refuses to open it, gives back the files that it inherited (they carry the
    locks), and leaves without the engine's exit handlers.
    """
    global _engine, _forked_from, _opening, _state
    engine, _engine, _opening = _engine, None, False
    _state = threading.Condition(threading.RLock())
    if _ever_opened is None:
        return
    _forked_from = _ever_opened
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # glibc: runs before the handlers that are there already
        libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)
    if engine is None:
        return
    os.close(engine.lock_fd)  # without unlocking: the lock lives on in the parent's descriptor
    for descriptor in _descriptors_below(engine.path):
        os.close(descriptor)
    backend = getattr(engine.client, "_backend", None)
    if (finalizer := getattr(backend, "_release", None)) is not None:
        finalizer.detach()
    handle = getattr(getattr(backend, "_handle", None), "conn", None)
    for inherited in (engine, handle):  # never collected, so never closed
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))


def _descriptors_below(path: Path) -> list[int]:
    """The descriptors of this process that are open on files below ``path``."""
    found = []
    with contextlib.suppress(OSError):
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                if Path(entry.readlink()).is_relative_to(path):
                    found.append(int(entry.name))
    return found


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_in_forked_child)
