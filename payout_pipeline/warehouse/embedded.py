"""The embedded engine (chDB): one process at a time may have its directory open, so processes take turns.

The lock ``clickhouse.lock`` beside the data is held as long as a session; the kernel frees it when the process is killed. Inside
a process all sessions share one engine; a session on another directory waits until the engine is unused.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from payout_pipeline.errors import (
    ConfigurationError,
    LockHeldError,
    StorageError,
    WarehousePermanentError,
    WarehouseUnavailableError,
)
from payout_pipeline.locks import FileLocks
from payout_pipeline.scrub import excerpt

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.02
_GRACE_SECONDS = 3.0  # a process that was just killed may still be giving its files back


@dataclass
class _Engine:
    path: Path
    client: Any
    lock: contextlib.ExitStack
    users: int = 0


_state = threading.Condition(threading.RLock())
_engine: _Engine | None = None
_opened_by: int | None = None
_closed_at = 0.0


@contextlib.contextmanager
def turn(path: Path, purpose: str, wait_seconds: float, opener: Callable[[str], Any]) -> Iterator[Any]:
    """The client of the engine at ``path``, as ``opener`` opens it.

    Raises WarehouseUnavailableError naming who has the turn after ``wait_seconds``, WarehousePermanentError where the
    directory cannot be opened, StorageError where it cannot be made, ConfigurationError where chdb is not installed.
    """
    global _engine, _closed_at
    if _opened_by not in (None, os.getpid()):
        raise WarehousePermanentError(
            f"this process was forked from one that had opened the embedded database {path}, and the engine does not survive a "
            "fork.\nTo repair it: start the process anew (multiprocessing's spawn) instead of forking it."
        )
    path = Path(os.path.realpath(path))
    deadline = time.monotonic() + wait_seconds
    with _state:
        while _engine is not None and _engine.path != path:
            if not _state.wait(max(0.0, deadline - time.monotonic())):
                raise WarehouseUnavailableError(
                    f"the embedded database {path} could not be opened within {wait_seconds:g} s: this process is "
                    f"using {_engine.path}, and one process can have one directory open at a time."
                )
        engine = _engine = _engine or _open(path, purpose, deadline, opener)
        engine.users += 1
    try:
        yield engine.client
    finally:
        with _state:
            engine.users -= 1
            if not engine.users:
                _engine, _closed_at = None, time.monotonic()
                try:
                    engine.client.close()
                finally:
                    engine.lock.close()
            _state.notify_all()


def _open(path: Path, purpose: str, deadline: float, opener: Callable[[str], Any]) -> _Engine:
    global _opened_by
    try:
        import chdb  # noqa: F401 - loading it takes a while, so not within the turn
    except ImportError as error:
        raise ConfigurationError(
            "the embedded ClickHouse is not installed (chdb), and CLICKHOUSE_HOST is not set.\n"
            "To repair it: pip install 'payout-pipeline[embedded]', or set CLICKHOUSE_HOST."
        ) from error
    lock = _take_lock(path, purpose, deadline)
    grace = min(deadline, time.monotonic() + _GRACE_SECONDS)
    try:
        while True:
            try:
                client = opener(str(path))
                break
            except Exception as error:
                if "EmbeddedServer" in str(error) and time.monotonic() < grace:
                    time.sleep(0.1)
                    continue
                raise WarehousePermanentError(
                    f"the embedded database {path} cannot be opened: another program has it open that takes no turns (a chdb "
                    f"session?), the disk is full or read-only, or the data is damaged: {excerpt(str(error))}\n"
                    "To repair it: end that program, or check the directory and its free space, and run again."
                ) from error
    except BaseException:
        lock.close()
        raise
    _opened_by = os.getpid()
    return _Engine(path, client, lock)


def _take_lock(path: Path, purpose: str, deadline: float) -> contextlib.ExitStack:
    """Wait for the lock until ``deadline`` (monotonic); closing the result releases it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"the directory of the embedded database cannot be used: {path}: {error.strerror}.\n"
            "To repair it: make the runtime directory writable, or set PAYOUT_RUNTIME_DIR to one that is."
        ) from error
    started = time.monotonic()
    if started - _closed_at < 2 * _POLL_SECONDS:
        time.sleep(2 * _POLL_SECONDS)  # a process that waited for this one goes first
    locks = FileLocks(path.parent)
    locks.poll_seconds = _POLL_SECONDS * random.uniform(0.5, 1.5)
    held = contextlib.ExitStack()
    try:
        waits = max(0.0, deadline - time.monotonic())
        held.enter_context(locks.hold(path.name, purpose=purpose, wait_seconds=waits, log=logger.info))
    except LockHeldError:
        holder = locks.holder(path.name) or "another process"
        raise WarehouseUnavailableError(
            f"the embedded database {path} is in use by {holder}; waited {time.monotonic() - started:.1f} s for a "
            f"turn ({purpose}).\nTo repair it: let that process finish or stop it, then run the same step "
            "again; CLICKHOUSE_WAIT_SECONDS sets how long to wait."
        ) from None
    return held
