"""One holder per name, so that two runs of one worker never work at once.

On one machine a lock is an operating-system lock on a file, which the kernel frees when its holder ends. A small JSON file
beside it names the holder, for messages only. Where ``PAYOUT_LIMITER_URL`` is set, locks hold across
machines: see :mod:`.locks_shared`.
"""

from __future__ import annotations

import os
import re
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import AwareDatetime, BaseModel, ConfigDict

from payout_pipeline.errors import LockHeldError
from payout_pipeline.scrub import excerpt, scrub
from payout_pipeline.storage import LogLine, process_is_alive, storage_error

if TYPE_CHECKING:
    from filelock import FileLock


_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


class Holder(BaseModel):
    """Who holds a lock, since when and what for."""

    model_config = ConfigDict(frozen=True, strict=True)

    pid: int
    host: str
    since: AwareDatetime
    purpose: str
    run_id: str = ""

    @classmethod
    def here(cls, purpose: str, run_id: str = "") -> Holder:
        """This process, now."""
        now = datetime.now(timezone.utc).replace(microsecond=0)
        return cls(pid=os.getpid(), host=socket.gethostname(), since=now, purpose=scrub(purpose), run_id=run_id)

    @classmethod
    def from_json(cls, text: bytes | str) -> Holder | None:
        """The holder written as JSON; None for anything else (the file is a hint and may be damaged)."""
        try:
            return cls.model_validate_json(text)
        except ValueError:
            return None

    def __str__(self) -> str:
        run = f", run {self.run_id}" if self.run_id else ""
        return excerpt(f"process {self.pid} on {self.host}{run} ({self.purpose}, since {self.since.isoformat()})", 500)


class Locks(ABC):
    """A place where names can be held by one holder at a time."""

    poll_seconds = 0.1

    @contextmanager
    def hold(
        self,
        name: str,
        *,
        purpose: str,
        run_id: str = "",
        wait_seconds: float = 0.0,
        log: LogLine | None = None,
        on_takeover: Callable[[Holder], None] = lambda _former: None,
    ) -> Iterator[Holder]:
        """Hold ``name`` for the duration of the block.

        Args:
            name: of the work that one holder may do at a time.
            purpose: what the holder does, for the messages of those who wait.
            run_id: the orchestrator's run, for the same messages.
            wait_seconds: how long to wait for another holder; 0 refuses at once.
            log: told once when waiting begins, and when the lock of a stale owner is taken over.
            on_takeover: called with the stale owner, once its lock is taken over.

        Raises:
            LockHeldError: it is still held; the message names the holder.
            StorageError: the lock cannot be kept at this place.
            StoreBusyError: the server that keeps the lock does not answer.
        """
        mine = Holder.here(purpose, run_id)
        log = log or (lambda _line: None)

        def taken_over(former: Holder) -> None:
            log(f"took over {name} from {former}, a stale owner: it ended without releasing it")
            on_takeover(former)

        waits_until, waiting = time.monotonic() + wait_seconds, False
        while (held := self._take(name, mine, taken_over)) is None:
            other = self.holder(name) or "another process that has just started"
            left = waits_until - time.monotonic()
            if left <= 0:
                waited = f" after {wait_seconds:g} s of waiting" if wait_seconds > 0 else ""
                raise LockHeldError(
                    f"{name} is held by {other}{waited}; wait until it ends, or stop that process, and run again "
                    f"({self._place(name)})"
                )
            if not waiting:
                waiting = True
                log(f"waiting for {name}, held by {other}")
            time.sleep(min(self.poll_seconds, left))
        with held:
            yield mine

    @abstractmethod
    def holder(self, name: str) -> Holder | None:
        """The present holder of ``name``, without touching the lock; None if it is free. For display only."""

    @abstractmethod
    def _take(
        self, name: str, mine: Holder, taken_over: Callable[[Holder], None]
    ) -> AbstractContextManager[None] | None:
        """The lock, which is released when the context ends, or None while it is held elsewhere.

        ``taken_over`` is called with a stale owner, which ended without releasing it.
        """

    @abstractmethod
    def _place(self, name: str) -> str:
        """Where the lock is, for a message."""


class FileLocks(Locks):
    """Locks of this machine, as files in a directory. Threads of one process exclude each other too."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)

    def holder(self, name: str) -> Holder | None:
        """See `Locks.holder`. Trying the lock itself would make a run that starts at this moment find it taken."""
        found = self._note(name)
        if found is None or (found.host == socket.gethostname() and not process_is_alive(found.pid)):
            return None
        return found

    def _paths(self, name: str) -> tuple[Path, Path]:
        safe = _UNSAFE.sub("_", name).strip(".") or "_"
        return self.directory / f"{safe}.lock", self.directory / f"{safe}.holder.json"

    def _place(self, name: str) -> str:
        return f"lock file {self._paths(name)[0]}"

    def _note(self, name: str) -> Holder | None:
        try:
            return Holder.from_json(self._paths(name)[1].read_bytes()[:10_000])
        except OSError:
            return None

    def _take(
        self, name: str, mine: Holder, taken_over: Callable[[Holder], None]
    ) -> AbstractContextManager[None] | None:
        from filelock import FileLock, Timeout

        path, _ = self._paths(name)
        # Not a singleton and not re-entrant: a second thread, or the same one again, has to wait or fail.
        lock = FileLock(path, thread_local=False)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            return None
        except NotImplementedError as error:
            raise storage_error("lock", path, OSError(0, "this file system has no file locks")) from error
        except OSError as error:
            raise storage_error("lock", path, error) from error
        return self._held(lock, name, mine, taken_over)

    @contextmanager
    def _held(self, lock: FileLock, name: str, mine: Holder, taken_over: Callable[[Holder], None]) -> Iterator[None]:
        note = self._paths(name)[1]
        try:
            if (former := self._note(name)) is not None:
                taken_over(former)
            try:
                # The name is this holder's alone, since the lock is held.
                temporary = note.with_name(f".{note.name}.new")
                temporary.write_text(mine.model_dump_json(), encoding="utf-8")
                temporary.replace(note)
            except OSError as error:
                raise storage_error("write", note, error) from error
            yield
        finally:
            with suppress(OSError):  # before the release: afterwards it would be the next holder's
                note.unlink(missing_ok=True)
            lock.release()
