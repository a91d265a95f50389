"""A shared store of this machine: a file for each text, changed under a file lock, on the machine's monotonic clock."""

from __future__ import annotations

import time
from pathlib import Path

from filelock import FileLock, Timeout

from payout_pipeline.shared_store.store import Edit, SharedStore, StoreBusyError, T
from payout_pipeline.storage import storage_error


class FileStore(SharedStore):
    """See :class:`SharedStore`. A text is replaced as a whole: a process that is killed leaves the old one or the new one.

    Nothing is synchronised with the disk: texts matter for about a minute, and a crash of the machine takes longer.
    """

    def __init__(self, directory: Path) -> None:
        self.directory, self.where = directory, str(directory)

    def edit(self, key: str, edit: Edit[T]) -> T:
        """See :meth:`SharedStore.edit`."""
        path = self.directory / f"{key.replace(':', '-')}.json"
        needed = 0
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock", timeout=0):
                stored = path.read_text("utf-8", "replace") if path.exists() else None
                # The monotonic clock is the same for all processes, and no setting of the time moves it.
                text, result = edit(stored, time.monotonic_ns() // 1_000_000)
                if text is not None:
                    needed = len(text)
                    temporary = path.with_name(f".{path.name}.new")
                    temporary.write_text(text, "utf-8")
                    temporary.replace(path)
                return result
        except Timeout as busy:
            raise StoreBusyError(f"{path} is in use by another process") from busy
        except NotImplementedError as error:
            raise storage_error("lock", path, OSError(0, "this file system has no file locks")) from error
        except OSError as error:
            raise storage_error("write", path, error, needed) from error

    def close(self) -> None:
        """Nothing is held open between edits."""
