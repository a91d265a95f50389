"""Durable files under the runtime directory: a local directory, or any place that universal-pathlib reaches.

A local file has its final name only when all of it is on disk: it is written beside its place, synchronised, and renamed.
Object stores replace an object as a whole anyway. Keys are relative POSIX paths (``a/b.json``).
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from payout_pipeline.errors import ConfigurationError, StorageError
from payout_pipeline.scrub import excerpt

if TYPE_CHECKING:
    from upath import UPath

_REMOTE = re.compile(r"[a-zA-Z][a-zA-Z0-9+.\-]*://")
_TEMPORARY = re.compile(r"\..+\.tmp")
# A directory that cannot be synchronised (some network file systems) is no reason to fail.
_NO_DIRECTORY_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF})
_WITH_DIRECTORIES = frozenset({"memory", "sftp", "ssh", "smb", "hdfs"})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})

#: Files of the runtime directory that more than one module knows: the backfill whose view is not built yet, and the rows of
#: the target table as the last load has counted them.
BACKFILL_RECORD = "backfill.json"
TOTALS_FILE = "warehouse-totals.json"

LogLine = Callable[[str], None]
"""Takes one line of a log."""


def open_store(location: str | Path) -> Store:
    """The store of a runtime directory: a path, a ``file://`` URL, or a URL of a file system that fsspec knows.

    Raises ConfigurationError where the URL's protocol is unknown or its package is not installed.
    """
    text = str(location)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    elif _REMOTE.match(text):
        return RemoteStore(text)
    return Store(Path(text))


def join(*parts: str) -> str:
    """A key from its parts; empty parts are left out."""
    return "/".join(part.strip("/") for part in parts if part.strip("/"))


class Store:
    """Files by key under a local directory. Safe for several threads as long as no two write one key at a time.

    Every method raises StorageError where the place cannot be read or written, and FileNotFoundError where a file to be
    read or moved does not exist.
    """

    def __init__(self, root: Path) -> None:
        # Absolute, since a long-lived process may change its directory.
        self._root: Path | UPath = root.expanduser().absolute()

    def _path(self, key: str = "") -> Any:
        if key.startswith("/") or "\\" in key or any(part in ("..", ".") for part in key.split("/")):
            raise ValueError(f"{key!r} is no key of a store")
        return self._root / key if key else self._root

    @property
    def is_local(self) -> bool:
        """Whether this is a directory of this machine (or mounted into it)."""
        return True

    def describe(self, key: str = "") -> str:
        """The place as a user can find it, without credentials."""
        return str(self._path(key))

    @contextlib.contextmanager
    def _faults(self, action: str, key: str, need: int | None = None) -> Iterator[None]:
        """Turn the system's errors into StorageError; a file that is not there to read stays FileNotFoundError."""
        try:
            yield
        except FileNotFoundError as error:
            if action in ("read", "move"):
                raise
            raise StorageError(
                f"cannot {action} {self.describe(key)}: the bucket or directory is missing; "
                "make it, or set PAYOUT_RUNTIME_DIR elsewhere"
            ) from error
        except OSError as error:
            raise storage_error(action, self._path(key), error, need) from error

    def write(self, key: str, data: bytes | memoryview) -> None:
        """Put a file there as a whole, durable when this returns; parents are made."""
        path = self._path(key)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with self._faults("write", key, len(data)):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            except BaseException:
                # Best effort: the fault above is the one to report, and `clean` removes what is left.
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise
            _sync_directory(path.parent)

    def append(self, key: str, data: bytes) -> None:
        """Add to the end of a file (made if missing). Not synchronised: for logs that can be rebuilt."""
        path = self._path(key)
        with self._faults("write", key, len(data)):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(data)

    def read(self, key: str) -> bytes:
        """The whole file."""
        with self._faults("read", key):
            return bytes(self._path(key).read_bytes())

    def reading(self, key: str) -> IO[bytes]:
        """A seekable binary file for reading."""
        with self._faults("read", key):
            file: IO[bytes] = self._path(key).open("rb")
            return file

    def exists(self, key: str) -> bool:
        """Whether a file or directory is there."""
        with self._faults("read", key):
            return bool(self._path(key).exists())

    def size(self, key: str) -> int:
        """Size of a file in bytes."""
        with self._faults("read", key):
            return int(self._path(key).stat().st_size)

    def names(self, prefix: str = "") -> list[str]:
        """Sorted names of the files and directories directly under ``prefix``; empty where it does not exist.

        Files that are still being written are left out.
        """
        with self._faults("read", prefix):
            try:
                names = [path.name for path in self._path(prefix).iterdir()]
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(name for name in names if name and not _TEMPORARY.fullmatch(name))

    def delete(self, key: str) -> None:
        """Remove a file or a directory with all that is in it; nothing happens if it is not there."""
        path = self._path(key)
        with self._faults("remove", key), contextlib.suppress(FileNotFoundError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
            _sync_directory(path.parent)

    def move(self, key: str, to: str) -> None:
        """Move a file or a directory within the store."""
        source, target = self._path(key), self._path(to)
        with self._faults("move", key):
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
            _sync_directory(target.parent)
            _sync_directory(source.parent)

    def set_aside(self, key: str) -> str:
        """Keep a damaged file beside its place as ``<name>.corrupt-20251109T103000.000000Z``; returns that key."""
        target = f"{key}.corrupt-{datetime.now(timezone.utc):%Y%m%dT%H%M%S.%fZ}"
        self.move(key, target)
        return target

    def check_writable(self) -> None:
        """Make the root if it is missing, and write and remove a small file in it."""
        probe = f"probe-{os.getpid()}"
        self.write(probe, b"probe")
        if self.read(probe) != b"probe":
            raise StorageError(
                f"{self.describe()} does not give back what was written to it; set PAYOUT_RUNTIME_DIR elsewhere"
            )
        self.delete(probe)

    def clean(self, prefix: str) -> None:
        """Remove what killed processes left half-written directly under ``prefix``; for its only writer."""
        path = self._path(prefix)
        with self._faults("remove", prefix):
            for entry in path.iterdir() if path.is_dir() else ():
                if _TEMPORARY.fullmatch(entry.name):
                    entry.unlink(missing_ok=True)


class RemoteStore(Store):
    """A place on an object store or another file system of fsspec; a write is one put."""

    def __init__(self, location: str) -> None:
        from upath import UPath

        try:
            # Listings are cached by default, and would hide what other machines write.
            self._root = UPath(location.rstrip("/"), use_listings_cache=False)
            self._fs: Any = self._root.fs
        except (ImportError, ValueError, TypeError) as error:
            protocol = location.partition("://")[0]
            raise ConfigurationError(
                f"PAYOUT_RUNTIME_DIR uses {protocol}://, which cannot be opened: {excerpt(str(error))}; "
                "install the package for it (s3fs for s3://, gcsfs for gs://, adlfs for az://)"
            ) from error

    @property
    def is_local(self) -> bool:
        return False

    def describe(self, key: str = "") -> str:
        path = self._path(key)
        return f"{path.protocol}://{path.path.lstrip('/')}"

    @contextlib.contextmanager
    def _faults(self, action: str, key: str, need: int | None = None) -> Iterator[None]:
        try:
            with super()._faults(action, key, need):
                yield
        except (FileNotFoundError, StorageError, TypeError, AttributeError, NameError, AssertionError):
            raise
        except Exception as error:
            # fsspec passes on whatever its client libraries raise; there is no common base class.
            raise StorageError(
                f"cannot {action} {self.describe(key)}: {type(error).__name__}: {excerpt(str(error))}; "
                "check PAYOUT_RUNTIME_DIR, its credentials and its network"
            ) from error

    def write(self, key: str, data: bytes | memoryview) -> None:
        with self._faults("write", key, len(data)):
            if self._path().protocol in _WITH_DIRECTORIES:  # elsewhere this would make a bucket that is misspelt
                self._path(key).parent.mkdir(parents=True, exist_ok=True)
            self._fs.pipe_file(self._path(key).path, bytes(data))

    def append(self, key: str, data: bytes) -> None:
        # Objects have no append; logs are small.
        try:
            before = self.read(key)
        except FileNotFoundError:
            before = b""
        self.write(key, before + data)

    def reading(self, key: str) -> IO[bytes]:
        return io.BytesIO(self.read(key))

    def delete(self, key: str) -> None:
        with self._faults("remove", key), contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._path(key).path, recursive=True)

    def move(self, key: str, to: str) -> None:
        # Copied and removed: object stores cannot rename. A death in between leaves both, and the move is repeated.
        source, target = self._path(key).path, self._path(to).path
        with self._faults("move", key):
            paths = self._fs.find(source)
            if not paths:
                raise FileNotFoundError(errno.ENOENT, "nothing to move", self.describe(key))
            for path in paths:
                self._fs.mv(path, target + path.strip("/").removeprefix(source.strip("/")))
            self._fs.invalidate_cache()
            if self._fs.exists(source):  # a file system with directories, which are empty now
                self._fs.rm(source, recursive=True)

    def clean(self, prefix: str) -> None:
        """Nothing to do: an object is never half-written."""


def process_is_alive(pid: int) -> bool:
    """Whether a process of this machine, of any user, has the number; one that only waits to be reaped is not alive."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass
    except (ProcessLookupError, OverflowError):  # larger than any process number
        return False
    with contextlib.suppress(OSError):  # Linux only: the state follows the name, which may have brackets
        return not Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].startswith((b"Z", b"X"))
    return True


def _sync_directory(path: Path) -> None:
    """Make a rename or removal in the directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise
    finally:
        os.close(descriptor)


def storage_error(action: str, path: Path, error: OSError, need: int | None = None) -> StorageError:
    """What failed where, what is needed and free (in bytes), and what to do."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in _FULL:
        wanted = f"{need:,} bytes are needed, " if need is not None else ""
        return StorageError(
            f"cannot {action} {path}: {reason} ({wanted}{_free(path)}); "
            "free space there or set PAYOUT_RUNTIME_DIR to a larger disk, then run again: finished work is kept"
        )
    if error.errno in _REFUSED:
        return StorageError(
            f"cannot {action} {path}: {reason}; "
            "give this user the right to write there (and mount it writable), or set PAYOUT_RUNTIME_DIR elsewhere"
        )
    return StorageError(f"cannot {action} {path}: {reason}; check the disk, or set PAYOUT_RUNTIME_DIR elsewhere")


def _free(path: Path) -> str:
    for place in (path, *path.parents):
        with contextlib.suppress(OSError):
            return f"{shutil.disk_usage(place).free:,} bytes are free"
    return "the free space is not known"
