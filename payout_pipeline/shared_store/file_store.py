"""A shared store of this machine: a row for each text in an SQLite file, on the machine's monotonic clock."""

from __future__ import annotations

import contextlib
import errno
import logging
import sqlite3
import time
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock

from payout_pipeline.shared_store.store import Edit, SharedStore, StoreBusyError, T
from payout_pipeline.storage import storage_error

_NEEDED_BYTES = 1 << 16  # the file and its journal

logger = logging.getLogger(__name__)


class FileStore(SharedStore):
    """See :class:`SharedStore`. The file is opened for every edit, so it may be replaced, and the process forked.

    A damaged file is set aside as ``.corrupt-…``. The new one begins with an empty text, which no reader takes for a
    sound one.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.where = path, str(path)

    def edit(self, key: str, edit: Edit[T]) -> T:
        """See :meth:`SharedStore.edit`."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return self._transaction(key, edit)
        except OSError as error:
            raise storage_error("write", self.path, error) from error
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise StoreBusyError(f"{self.path}: {error}") from error
            number = errno.ENOSPC if "full" in str(error) else errno.EROFS if "readonly" in str(error) else errno.EIO
            raise storage_error("write", self.path, OSError(number, str(error)), _NEEDED_BYTES) from error
        except sqlite3.DatabaseError as error:
            self._set_aside(key, error)
            raise StoreBusyError(f"{self.path}: {error}") from error

    def close(self) -> None:
        """Nothing is held open between edits."""

    def _transaction(self, key: str, edit: Edit[T]) -> T:
        with contextlib.closing(sqlite3.connect(self.path, timeout=0, isolation_level=None)) as connection:
            # A write that was lost matters only after a crash of the machine, which takes longer than a window.
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("CREATE TABLE IF NOT EXISTS shared (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
            row = connection.execute("SELECT value FROM shared WHERE key = ?", (key,)).fetchone()
            # The monotonic clock is the same for all processes, and no setting of the time moves it.
            text, result = edit(str(row[0]) if row else None, time.monotonic_ns() // 1_000_000)
            if text is not None:
                connection.execute("REPLACE INTO shared VALUES (?, ?)", (key, text))
            connection.execute("COMMIT")
        return result

    def _set_aside(self, key: str, error: sqlite3.DatabaseError) -> None:
        with FileLock(f"{self.path}.repair-lock"):
            if self._is_sound():
                return  # another process was quicker
            aside = self.path.with_name(f"{self.path.name}.corrupt-{datetime.now(timezone.utc):%Y%m%dT%H%M%S.%fZ}")
            self.path.rename(aside)
            for suffix in ("-journal", "-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            logger.warning(
                "%s is damaged (%s). It was set aside as %s; a new one begins.", self.path, error, aside.name
            )
            self._transaction(key, lambda _text, _now: ("", None))

    def _is_sound(self) -> bool:
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=1)) as connection:
                return bool(connection.execute("PRAGMA quick_check").fetchone()[0] == "ok")
        except sqlite3.DatabaseError:
            return False
