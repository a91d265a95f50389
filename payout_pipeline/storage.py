"""Durable files under the runtime directory: a local directory, or any place that universal-pathlib reaches.

A file has its final name only when all of it is on disk: written beside its place, synchronised, and moved over in one
step. Object stores replace an object as a whole anyway and get one put. Keys are relative POSIX paths (``a/b.json``).
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import re
import secrets
import shutil
import socket
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from payout_pipeline.errors import ConfigurationError, StorageError
from payout_pipeline.scrub import excerpt

if TYPE_CHECKING:
    from upath import UPath

_REMOTE = re.compile(r"[a-zA-Z][a-zA-Z0-9+.\-]*://")
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<host>[^.]+)\.(?P<pid>\d+)\.(?P<token>[0-9a-f]{8})-\d+\.tmp")
_COUNTER = itertools.count()
# Tells a process from a former one with the same number (the first one of a container is always 1).
_TOKEN = secrets.token_hex(4)
# A directory that cannot be synchronised (some network file systems) is no reason to fail.
_NO_DIRECTORY_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF})
_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "r2"})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})

LogLine = Callable[[str], None]
"""Takes one line for people: something was set aside, cleaned or taken over."""


def open_store(location: str | Path) -> Store:
    """The store of a runtime directory: a path, a ``file://`` URL, or a URL of a file system that fsspec knows.

    Raises:
        ConfigurationError: the URL's protocol is unknown or its package is not installed.
    """
    text = str(location)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    elif _REMOTE.match(text):
        return RemoteStore(text)
    return LocalStore(Path(text))


def set_aside_name(name: str, now: datetime | None = None) -> str:
    """The name that a damaged file is kept under: ``<name>.corrupt-20251109T103000.000000Z``."""
    return f"{name}.corrupt-{(now or datetime.now(timezone.utc)):%Y%m%dT%H%M%S.%fZ}"


class Store(ABC):
    """Files by key. Safe for several threads as long as no two write one key at the same time.

    Every method raises StorageError where the place cannot be read or written; reading or deleting what is not there
    is FileNotFoundError or nothing, as the method says.
    """

    @abstractmethod
    def describe(self, key: str = "") -> str:
        """The place as a user can find it, without credentials."""

    @abstractmethod
    def local_path(self, key: str = "") -> Path | None:
        """The file as a local path, None for a remote store."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Put a file there as a whole, durable when this returns; parents are made."""

    @abstractmethod
    def writing(self, key: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """A binary file that appears under ``key``, durable, when the block ends without an exception."""

    @abstractmethod
    def append(self, key: str, data: bytes) -> None:
        """Add to the end of a file (made if missing). Not synchronised: for logs that can be rebuilt."""

    @abstractmethod
    def read(self, key: str) -> bytes:
        """The whole file; FileNotFoundError if there is none."""

    @abstractmethod
    def reading(self, key: str) -> IO[bytes]:
        """A seekable binary file for reading; FileNotFoundError if there is none."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether a file or directory is there."""

    @abstractmethod
    def size(self, key: str) -> int:
        """Size of a file in bytes; FileNotFoundError if there is none."""

    @abstractmethod
    def names(self, prefix: str = "") -> list[str]:
        """Sorted names of the files and directories directly under ``prefix``; empty where it does not exist.

        Files that are still being written are left out.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove a file or a directory with all that is in it; nothing happens if it is not there."""

    @abstractmethod
    def move(self, key: str, to: str) -> None:
        """Move a file or a directory within the store; FileNotFoundError if there is none."""

    @abstractmethod
    def check_writable(self) -> None:
        """Make the root if it is missing, and write and remove a small file in it.

        Raises:
            StorageError: that cannot be done; says what to do.
        """

    @abstractmethod
    def clean(self, prefix: str = "", log: LogLine | None = None) -> None:
        """Remove what dead processes left half-written directly under ``prefix``."""

    def set_aside(self, key: str, into: str | None = None) -> str:
        """Keep a damaged file or directory under a ``.corrupt-…`` name and return that key.

        ``into`` is the directory to keep it in, its own by default.
        """
        parent, _, name = key.rpartition("/")
        target = join(parent if into is None else into, set_aside_name(name))
        self.move(key, target)
        return target


def join(*parts: str) -> str:
    """A key from its parts; empty parts are left out."""
    return "/".join(part.strip("/") for part in parts if part.strip("/"))


def _checked(key: str) -> str:
    if key.startswith("/") or "\\" in key or any(part in ("..", ".") for part in key.split("/")):
        raise ValueError(f"{key!r} is no key of a store")
    return key


# ----------------------------------------------------------------------------------------------------------- local


class LocalStore(Store):
    """A directory of this machine (or mounted into it)."""

    def __init__(self, root: Path) -> None:
        # Absolute, since a long-lived process may change its directory.
        self.root = root.expanduser().absolute()

    def describe(self, key: str = "") -> str:
        return str(self._path(key))

    def local_path(self, key: str = "") -> Path | None:
        return self._path(key)

    def _path(self, key: str) -> Path:
        return self.root / _checked(key) if key else self.root

    def write(self, key: str, data: bytes) -> None:
        with self._writing(key, len(data)) as file:
            file.write(data)

    def writing(self, key: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        return self._writing(key, None)

    @contextlib.contextmanager
    def _writing(self, key: str, need: int | None) -> Iterator[IO[bytes]]:
        path = self._path(key)
        temporary = path.with_name(_temporary_name(path.name))
        with _storage_errors("write", path, need):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb") as file:
                    yield file
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
        path = self._path(key)
        with _storage_errors("write", path, len(data)):
            path.parent.mkdir(parents=True, exist_ok=True)
            # One write of O_APPEND, so that lines of several threads do not mix.
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
            finally:
                os.close(descriptor)

    def read(self, key: str) -> bytes:
        path = self._path(key)
        with _storage_errors("read", path):
            return path.read_bytes()

    def reading(self, key: str) -> IO[bytes]:
        path = self._path(key)
        with _storage_errors("read", path):
            return path.open("rb")

    def exists(self, key: str) -> bool:
        path = self._path(key)
        with _storage_errors("read", path):
            return path.exists()

    def size(self, key: str) -> int:
        path = self._path(key)
        with _storage_errors("read", path):
            return path.stat().st_size

    def names(self, prefix: str = "") -> list[str]:
        path = self._path(prefix)
        with _storage_errors("read", path):
            try:
                return sorted(entry.name for entry in os.scandir(path) if not _TEMPORARY.fullmatch(entry.name))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _storage_errors("remove", path), contextlib.suppress(FileNotFoundError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
            _sync_directory(path.parent)

    def move(self, key: str, to: str) -> None:
        source, target = self._path(key), self._path(to)
        with _storage_errors("move", source):
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
            _sync_directory(target.parent)
            if source.parent != target.parent:
                _sync_directory(source.parent)

    def check_writable(self) -> None:
        with _storage_errors("write", self.root, 1):
            self.root.mkdir(parents=True, exist_ok=True)
            self.clean()
            # Named like a temporary file, so that it is cleaned up after a death right here.
            probe = _temporary_name("probe")
            self.write(probe, b"probe")
            self.delete(probe)

    def clean(self, prefix: str = "", log: LogLine | None = None) -> None:
        path = self._path(prefix)
        with _storage_errors("read", path):
            try:
                entries = list(os.scandir(path))
            except (FileNotFoundError, NotADirectoryError):
                return
        for entry in entries:
            match = _TEMPORARY.fullmatch(entry.name)
            # Of other machines nothing is known, so theirs stay.
            if match is None or match["host"] != _host():
                continue
            pid = int(match["pid"])
            if match["token"] == _TOKEN if pid == os.getpid() else process_is_alive(pid):
                continue
            with _storage_errors("remove", Path(entry.path)), contextlib.suppress(FileNotFoundError):
                Path(entry.path).unlink()
                if log is not None:
                    log(f"removed {entry.path}, half-written by process {pid}, which is gone")


def _temporary_name(name: str) -> str:
    """The name of a file that is being written; `LocalStore.clean` recognises it."""
    return f".{name}.{_host()}.{os.getpid()}.{_TOKEN}-{next(_COUNTER)}.tmp"


def _host() -> str:
    return socket.gethostname().replace(".", "-") or "localhost"


def process_is_alive(pid: int) -> bool:
    """Whether a process of this machine has the number (also one of another user)."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    except OverflowError:  # larger than any process number
        return False
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


@contextlib.contextmanager
def _storage_errors(action: str, path: Path, need: int | None = None) -> Iterator[None]:
    """Turn the system's errors into StorageError; a file that is not there to read stays FileNotFoundError."""
    try:
        yield
    except FileNotFoundError as error:
        if action in ("read", "move"):
            raise
        raise StorageError(
            f"cannot {action} {path}: a directory of it is missing; make it, or set PAYOUT_RUNTIME_DIR elsewhere"
        ) from error
    except OSError as error:
        raise storage_error(action, path, error, need) from error


def storage_error(action: str, path: Path, error: OSError, need: int | None = None) -> StorageError:
    """What failed where, what is needed and free, and what to do."""
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


# ---------------------------------------------------------------------------------------------------------- remote


class RemoteStore(Store):
    """A place on an object store or another file system of fsspec; a write is one put."""

    def __init__(self, location: str) -> None:
        from upath import UPath

        try:
            # Listings are cached by default, and would hide what other machines write.
            self._root: UPath = UPath(location.rstrip("/"), use_listings_cache=False)
            self._fs: Any = self._root.fs
        except (ImportError, ValueError, TypeError) as error:
            protocol = location.partition("://")[0]
            raise ConfigurationError(
                f"PAYOUT_RUNTIME_DIR uses {protocol}://, which cannot be opened: {excerpt(str(error))}; "
                "install the package for it (s3fs for s3://, gcsfs for gs://, adlfs for az://)"
            ) from error

    def _url(self, key: str) -> str:
        return join_url(self._root.path, _checked(key))

    def describe(self, key: str = "") -> str:
        protocol = self._root.protocol or "file"
        return f"{protocol}://{self._url(key).lstrip('/')}"

    def local_path(self, key: str = "") -> Path | None:
        return None

    def write(self, key: str, data: bytes) -> None:
        with self._errors("write", key):
            try:
                self._fs.pipe_file(self._url(key), data)
            except FileNotFoundError:
                # Object stores have no directories; others want them made.
                self._make_parent(key)
                self._fs.pipe_file(self._url(key), data)

    def _make_parent(self, key: str) -> None:
        if self._root.protocol in _OBJECT_STORES:
            # Nothing but the bucket can be missing there, and a misspelt one is not to be made.
            raise FileNotFoundError(errno.ENOENT, "the bucket does not exist", self.describe(key))
        self._fs.makedirs(self._url(key).rpartition("/")[0], exist_ok=True)

    @contextlib.contextmanager
    def writing(self, key: str) -> Iterator[IO[bytes]]:
        try:
            with tempfile.NamedTemporaryFile(prefix="payout-upload-") as spool:
                yield spool
                spool.flush()
                self._upload(spool.name, key)
        except OSError as error:
            raise storage_error("write", Path(tempfile.gettempdir()), error) from error

    def _upload(self, path: str, key: str) -> None:
        """Put a local file there in one call: closing a remote file after a fault would put half of it."""
        with self._errors("write", key):
            try:
                self._fs.put_file(path, self._url(key))
            except FileNotFoundError:
                self._make_parent(key)
                self._fs.put_file(path, self._url(key))

    def append(self, key: str, data: bytes) -> None:
        # Objects have no append; logs are small.
        try:
            before = self.read(key)
        except FileNotFoundError:
            before = b""
        self.write(key, before + data)

    def read(self, key: str) -> bytes:
        with self._errors("read", key):
            return bytes(self._fs.cat_file(self._url(key)))

    def reading(self, key: str) -> IO[bytes]:
        return io.BytesIO(self.read(key))

    def exists(self, key: str) -> bool:
        with self._errors("read", key):
            return bool(self._fs.exists(self._url(key)))

    def size(self, key: str) -> int:
        with self._errors("read", key):
            return int(self._fs.size(self._url(key)))

    def names(self, prefix: str = "") -> list[str]:
        with self._errors("read", prefix):
            try:
                found = self._fs.ls(self._url(prefix), detail=False, refresh=True)
            except TypeError:  # not every file system knows refresh
                found = self._fs.ls(self._url(prefix), detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
        own = self._url(prefix).strip("/")
        names = {str(path).rstrip("/").rpartition("/")[2] for path in found if str(path).strip("/") != own}
        return sorted(name for name in names if name)

    def delete(self, key: str) -> None:
        with self._errors("remove", key), contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._url(key), recursive=True)

    def move(self, key: str, to: str) -> None:
        with self._errors("move", key):
            # Copied and removed: object stores cannot rename. A death in between leaves both, and the move is repeated.
            source, target = self._url(key), self._url(to)
            if not self._fs.isdir(source):
                self._fs.mv(source, target)
                return
            for path in self._fs.find(source):
                self._fs.mv(path, join_url(target, str(path).strip("/").removeprefix(source.strip("/")).strip("/")))
            self._fs.invalidate_cache()
            if self._fs.exists(source):  # a file system with directories, which are empty now
                self._fs.rm(source, recursive=True)

    def check_writable(self) -> None:
        probe = f"probe-{_host()}-{os.getpid()}-{next(_COUNTER)}"
        self.write(probe, b"probe")
        if self.read(probe) != b"probe":
            raise StorageError(
                f"{self.describe()} does not give back what was written to it; set PAYOUT_RUNTIME_DIR elsewhere"
            )
        self.delete(probe)

    def clean(self, prefix: str = "", log: LogLine | None = None) -> None:
        """Nothing to do: an object is never half-written."""

    @contextlib.contextmanager
    def _errors(self, action: str, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if action in ("read", "move", "remove"):
                raise
            raise StorageError(
                f"cannot {action} {self.describe(key)}: the bucket or directory is missing; make it"
            ) from error
        except StorageError:
            raise
        except (TypeError, AttributeError, NameError, AssertionError):
            raise  # a defect of the program, not of the store
        except Exception as error:
            # fsspec passes on whatever its client libraries raise; there is no common base class.
            raise StorageError(
                f"cannot {action} {self.describe(key)}: {type(error).__name__}: {excerpt(str(error))}; "
                "check PAYOUT_RUNTIME_DIR, its credentials and its network"
            ) from error


def join_url(root: str, key: str) -> str:
    """A remote path from the root and a key."""
    return f"{root.rstrip('/')}/{key}" if key else root.rstrip("/")
