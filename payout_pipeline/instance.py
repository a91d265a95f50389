"""Where Dagster keeps its own state: under the runtime directory, whatever command started it.

``dagster.yaml`` names the storage and the artifacts here, so that the storage follows ``PAYOUT_RUNTIME_DIR`` instead of a fixed
path, the repository stays clean, and a new home is initialised by one process at a time (several processes that
create Dagster's SQLite schema at once leave it broken for good).
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from dagster._core.events import DagsterEventType
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
from dagster._core.storage.root import LocalArtifactStorage
from dagster._core.storage.runs.sqlite.sqlite_run_storage import SqliteRunStorage
from dagster._core.storage.sql import get_alembic_config
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClassData
from filelock import FileLock
from sqlalchemy import Connection, QueuePool, create_engine, inspect, text
from sqlalchemy.engine import Engine
from sqlalchemy.event import listen
from sqlalchemy.exc import DatabaseError

from payout_pipeline.errors import ConfigurationError
from payout_pipeline.launcher import RunProcesses
from payout_pipeline.storage import storage_error

_INITIALISE_TIMEOUT = 60.0
_ENDED = frozenset({DagsterEventType.RUN_SUCCESS, DagsterEventType.RUN_FAILURE, DagsterEventType.RUN_CANCELED})
_KEPT_ENGINES = 32  # of the webserver, which looks at any number of runs


def dagster_directory() -> Path:
    """``<runtime>/dagster``; where the runtime directory is remote (s3://…), ``runtime/dagster`` on this machine."""
    runtime = os.environ.get("PAYOUT_RUNTIME_DIR") or "runtime"
    local = runtime if "://" not in runtime else "runtime"
    return (Path(local) / "dagster").absolute()


def run_processes() -> RunProcesses:
    """Which runs of the instance have a process that lives."""
    return RunProcesses(dagster_directory() / "running")


class RuntimeEvents(SqliteEventLogStorage):
    """Dagster's event log with an open connection a database file, instead of a new engine for every event.

    It also sees a run's first and last event, in the process that executes the run: the one place that all ways to start
    a run have in common, so the run's sign of life is given here (see ``launcher.py``).

    Dagster makes an engine a statement, and with it compiles each statement anew, and closes its connection, which
    makes SQLite empty its log into the file: nine tenths of what storing an event costs. It also reads all of alembic's
    scripts for each run's new file, to stamp it with the last of them.
    """

    def __init__(self, base_dir: str) -> None:
        self._files = KeptConnections()
        self._processes = run_processes()
        super().__init__(base_dir)

    def store_event(self, event: EventLogEntry) -> None:
        """Store it; a run's process shows that it lives from before its first event until after its last."""
        kind = event.dagster_event_type if event.is_dagster_event else None
        if kind is DagsterEventType.RUN_START:
            self._processes.begin(event.run_id)
        super().store_event(event)
        if kind in _ENDED:
            self._processes.end(event.run_id)

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        with self._db_lock:
            path = self.path_for_shard(shard)
            engine, is_new = self._files.engine(path, self.conn_string_for_shard(shard))
            if is_new or shard not in self._initialized_dbs:
                self._initdb(engine)
                self._files.note(path)
                self._initialized_dbs.add(shard)
            with engine.connect() as connection, connection.begin():
                yield connection

    def _initdb(self, engine: Engine, for_index_shard: bool = False) -> None:
        """As Dagster does it, with the scripts of alembic read once a process; what is unclear is left to Dagster."""
        if for_index_shard or not self._made_new(engine):
            super()._initdb(engine, for_index_shard)

    def _made_new(self, engine: Engine) -> bool:
        """Whether the file is of the present version, or was empty and is now."""
        scripts = alembic_scripts()
        try:
            with engine.connect() as connection:
                context = MigrationContext.configure(connection)
                revision = context.get_current_revision()
                if revision is not None:
                    return revision == scripts.get_current_head()
                if inspect(connection).get_table_names():
                    return False
                connection.commit()
                connection.execute(text("PRAGMA journal_mode=WAL"))
                SqlEventLogStorageMetadata.create_all(connection)
                context.stamp(scripts, "head")
                connection.commit()
                return True
        except DatabaseError:  # another process makes the same file at this moment; Dagster waits for it
            return False


class RuntimeRuns(SqliteRunStorage):
    """Dagster's table of runs, with a connection that stays open."""

    def __init__(self, conn_string: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(conn_string, inst_data)
        self._files = KeptConnections()

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """A connection within a transaction."""
        path = self._conn_string.removeprefix("sqlite:///")
        engine, is_new = self._files.engine(path, self._conn_string)
        with engine.connect() as connection, connection.begin():
            if is_new:
                self._files.note(path)
            yield connection


@lru_cache(maxsize=1)
def alembic_scripts() -> ScriptDirectory:
    """Dagster's migrations of its event log."""
    return ScriptDirectory.from_config(get_alembic_config(sqlite_event_log.__file__))


class KeptConnections:
    """SQLAlchemy engines of SQLite files, each keeping one connection open between its uses.

    A connection must not go into a forked process: all are closed right before a fork, and the child begins with none.
    A file that was removed or replaced gets a new engine. Only SQLite's own log is synced less often than by default:
    a crash of the machine may lose the last events, never the file; a crash of the process loses nothing.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engines: OrderedDict[str, tuple[Engine, int | None]] = OrderedDict()
        _KEPT.add(self)

    def engine(self, path: str, url: str) -> tuple[Engine, bool]:
        """The engine of a file, and whether the file is not the one that was used before."""
        with self._lock:
            known = self._engines.get(path)
            if known is not None and known[1] is not None and known[1] == _identity(path):
                self._engines.move_to_end(path)
                return known[0], False
            if known is not None:
                known[0].dispose()
            engine = create_engine(
                url,
                poolclass=QueuePool,
                pool_size=1,
                max_overflow=-1,
                connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
            )
            listen(engine, "connect", _sync_less)
            self._engines[path] = engine, None
            self._engines.move_to_end(path)
            while len(self._engines) > _KEPT_ENGINES:
                self._engines.popitem(last=False)[1][0].dispose()
            return engine, True

    def note(self, path: str) -> None:
        """The file is there now, and is the one that the engine has open."""
        with self._lock:
            self._engines[path] = self._engines[path][0], _identity(path)

    def close(self) -> None:
        """Close what is open and not in use."""
        with self._lock:
            for engine, _ in self._engines.values():
                engine.dispose()

    def forget(self) -> None:
        """In a forked child: leave what a thread of the parent may have opened meanwhile alone, and begin anew."""
        _INHERITED.append(self._engines)
        self._lock, self._engines = threading.Lock(), OrderedDict()


_KEPT: weakref.WeakSet[KeptConnections] = weakref.WeakSet()
_INHERITED: list[Any] = []  # never collected, so never closed


def _identity(path: str) -> int | None:
    try:
        return Path(path).stat().st_ino
    except OSError:
        return None


def _sync_less(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA synchronous=NORMAL")


def _before_fork() -> None:
    for kept in list(_KEPT):
        kept.close()


def _after_fork_in_child() -> None:
    for kept in list(_KEPT):
        kept.forget()


os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)


class RuntimeStorage(DagsterSqliteStorage):
    """Dagster's runs, events and schedules in SQLite under :func:`dagster_directory`."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(base_dir, inst_data)
        self._event_log_storage = RuntimeEvents(self._event_log_storage._base_dir)
        self._run_storage = RuntimeRuns(self._run_storage._conn_string)

    @classmethod
    def config_type(cls) -> Any:
        """Nothing to configure: the place follows the runtime directory."""
        return {}

    @classmethod
    def from_config_value(  # type: ignore[override]
        cls, inst_data: ConfigurableClassData | None, config_value: dict[str, Any]
    ) -> RuntimeStorage:
        """Open the storage, creating it under a lock where it is new; StorageError where it cannot be written."""
        directory = dagster_directory()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with FileLock(str(directory / ".initialise.lock"), timeout=_INITIALISE_TIMEOUT):
                return cls(str(directory), inst_data=inst_data)
        except OSError as error:
            raise storage_error("write", directory, error) from error


class RuntimeArtifacts(LocalArtifactStorage):
    """Dagster's local files under :func:`dagster_directory`."""

    @classmethod
    def config_type(cls) -> Any:
        """Nothing to configure: the place follows the runtime directory."""
        return {}

    @classmethod
    def from_config_value(  # type: ignore[override]
        cls, inst_data: ConfigurableClassData | None, config_value: dict[str, Any]
    ) -> RuntimeArtifacts:
        """Point Dagster at :func:`dagster_directory`."""
        return cls(str(dagster_directory()), inst_data=inst_data)


def ensure_dagster_home() -> Path:
    """Set ``DAGSTER_HOME`` for this process where it is unset, and return it.

    The first directory with a ``dagster.yaml`` among the current one and the checkout of this package; the commands
    and the UI started there then share one instance. Raises ConfigurationError where it is set to what is no directory.
    """
    home = os.environ.get("DAGSTER_HOME")
    if home and not (Path(home).is_absolute() and Path(home).is_dir()):
        what = "is not absolute" if not Path(home).is_absolute() else "is no directory"
        raise ConfigurationError(
            f"DAGSTER_HOME is {home!r}, which {what}: set it to the checkout (export DAGSTER_HOME=$PWD), or unset it."
        )
    if not home:
        candidates = (Path.cwd(), Path(__file__).resolve().parent.parent)
        chosen = next((d for d in candidates if (d / "dagster.yaml").is_file()), None)
        if chosen is None:
            chosen = dagster_directory()
            chosen.mkdir(parents=True, exist_ok=True)
        home = os.environ["DAGSTER_HOME"] = str(chosen)
    return Path(home)
