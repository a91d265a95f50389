"""One holder per name: two runs of one worker, or two processes at the embedded database, take turns.

On one machine a lock is an operating-system lock on a file, which the kernel frees when its holder dies. Who holds it
stands in a small JSON file beside it, for messages only. Locks that hold across machines are another `Locks`, chosen
by the scheme of ``PAYOUT_LIMITER_URL``; see `register_locks`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from payout_pipeline.errors import ConfigurationError, LockHeldError
from payout_pipeline.storage import LogLine, process_is_alive, storage_error

if TYPE_CHECKING:
    from filelock import FileLock

    from payout_pipeline.settings import Settings

POLL_SECONDS = 0.1
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, since when (ISO 8601, UTC) and what for."""

    pid: int
    host: str
    since: str
    purpose: str
    run_id: str = ""

    @classmethod
    def here(cls, purpose: str, run_id: str = "") -> Holder:
        """This process, now."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return cls(os.getpid(), socket.gethostname(), now, purpose, run_id)

    @classmethod
    def from_json(cls, text: bytes | str) -> Holder | None:
        """The holder written as JSON; None for anything else (the file is a hint and may be damaged)."""
        try:
            fields = json.loads(text)
            pid, host, since = fields["pid"], fields["host"], fields["since"]
            purpose, run_id = fields["purpose"], fields.get("run_id", "")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        texts = (host, since, purpose, run_id)
        if type(pid) is not int or not all(isinstance(text, str) and text.isprintable() for text in texts):
            return None
        return cls(pid, *(text[:200] for text in (host, since, purpose, run_id)))

    def to_json(self) -> str:
        """The text that `from_json` reads."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        run = f", run {self.run_id}" if self.run_id else ""
        return f"process {self.pid} on {self.host}{run} ({self.purpose}, since {self.since})"


class Locks(Protocol):
    """A place where names can be held by one holder at a time."""

    def hold(
        self,
        name: str,
        *,
        purpose: str,
        run_id: str = "",
        wait_seconds: float = 0.0,
        log: LogLine | None = None,
    ) -> contextlib.AbstractContextManager[Holder]:
        """Hold ``name`` for the duration of the block.

        Args:
            name: what is to be done by one holder at a time.
            purpose: what the holder does, for the messages of those who wait.
            run_id: the orchestrator's run, for the same messages.
            wait_seconds: how long to wait for another holder; 0 refuses at once.
            log: told once when waiting begins, and when a dead holder's lock is taken over.

        Raises:
            LockHeldError: somebody else still holds it; the message names the holder.
            StorageError: the lock cannot be kept at this place.
        """
        ...

    def holder(self, name: str) -> Holder | None:
        """Who holds ``name`` now, without touching the lock; None where nobody does. For display only."""
        ...


class FileLocks:
    """Locks of this machine, as files in a directory. Threads of one process exclude each other too."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)

    def _paths(self, name: str) -> tuple[Path, Path]:
        safe = _UNSAFE.sub("_", name).strip(".") or "_"
        return self.directory / f"{safe}.lock", self.directory / f"{safe}.holder.json"

    def _lock(self, path: Path) -> FileLock:
        from filelock import FileLock

        # Not a singleton and not re-entrant: a second thread, or the same one again, has to wait or fail.
        return FileLock(path, timeout=0, thread_local=False)

    def holder(self, name: str) -> Holder | None:
        # Trying the lock itself would make a run that starts at this moment believe that it is taken.
        found = _read_holder(self._paths(name)[1])
        if found is None or (found.host == socket.gethostname() and not process_is_alive(found.pid)):
            return None
        return found

    @contextlib.contextmanager
    def hold(
        self,
        name: str,
        *,
        purpose: str,
        run_id: str = "",
        wait_seconds: float = 0.0,
        log: LogLine | None = None,
    ) -> Iterator[Holder]:
        path, sidecar = self._paths(name)
        lock = self._lock(path)
        started = time.monotonic()
        waiting = False
        while not self._acquire(lock, path):
            other = _read_holder(sidecar)
            named = str(other) if other is not None else "another process that has just started"
            left = wait_seconds - (time.monotonic() - started)
            if left <= 0:
                waited = f" after {wait_seconds:g} s of waiting" if wait_seconds > 0 else ""
                raise LockHeldError(
                    f"{name} is held by {named}{waited}; wait until it ends, or stop that process, and run again "
                    f"(lock file {path})"
                )
            if not waiting and log is not None and other is not None:
                waiting = True
                log(f"waiting for {name}, held by {named}")
            time.sleep(min(POLL_SECONDS, left))
        try:
            former = _read_holder(sidecar)
            if former is not None and log is not None:
                log(f"took over {name} from {former}, which died without giving it back")
            mine = Holder.here(purpose, run_id)
            try:
                _write_holder(sidecar, mine)
            except OSError as error:
                raise storage_error("write", sidecar, error) from error
            yield mine
        finally:
            # Before the release: afterwards it would be the next holder's.
            with contextlib.suppress(OSError):
                sidecar.unlink(missing_ok=True)
            lock.release()

    def _acquire(self, lock: FileLock, path: Path) -> bool:
        from filelock import Timeout

        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            return False
        except NotImplementedError as error:
            raise storage_error("lock", path, OSError(0, "this file system has no file locks")) from error
        except OSError as error:
            raise storage_error("lock", path, error) from error
        return True


def _read_holder(sidecar: Path) -> Holder | None:
    try:
        return Holder.from_json(sidecar.read_bytes()[:10_000])
    except OSError:
        return None


def _write_holder(sidecar: Path, holder: Holder) -> None:
    # The name is this holder's alone, since the lock is held.
    temporary = sidecar.with_name(f".{sidecar.name}.new")
    temporary.write_text(holder.to_json(), encoding="utf-8")
    temporary.replace(sidecar)


LocksFactory = Callable[[str], Locks]
_FACTORIES: dict[str, LocksFactory] = {}


def register_locks(scheme: str, factory: LocksFactory) -> None:
    """Make URLs of ``scheme`` (``redis``, ``postgresql`` …) known to `open_locks`; the factory gets the whole URL."""
    _FACTORIES[scheme] = factory


def open_locks(directory: Path, url: str | None = None) -> Locks:
    """The locks at a shared service where a URL names one, otherwise those of this machine under ``directory``.

    Raises:
        ConfigurationError: nobody has registered the URL's scheme.
    """
    if not url:
        return FileLocks(directory)
    scheme = urlsplit(url).scheme
    factory = _FACTORIES.get(scheme)
    if factory is None:
        known = ", ".join(sorted(_FACTORIES)) or "none in this installation"
        raise ConfigurationError(f"PAYOUT_LIMITER_URL begins with {scheme[:20]!a}; locks are known for: {known}")
    return factory(url)


def locks_for(settings: Settings) -> Locks | None:
    """The locks of the workers' runs: shared where ``PAYOUT_LIMITER_URL`` is set, else under the runtime directory.

    None where the runtime directory is remote and nothing is shared: then nobody can tell who else is at work.
    """
    if settings.limiter_url is not None:
        from payout_pipeline.locks_remote import remote_locks

        return remote_locks(settings.runtime_dir, settings.limiter_url.get_secret_value())
    if "://" in settings.runtime_dir:
        return None
    return open_locks(Path(settings.runtime_dir) / "locks")


def hold(
    name: str,
    *,
    directory: Path,
    purpose: str,
    run_id: str = "",
    wait_seconds: float = 0.0,
    log: LogLine | None = None,
) -> contextlib.AbstractContextManager[Holder]:
    """Hold ``name`` on this machine: `FileLocks.hold` with its lock files under ``directory``."""
    return FileLocks(directory).hold(name, purpose=purpose, run_id=run_id, wait_seconds=wait_seconds, log=log)
