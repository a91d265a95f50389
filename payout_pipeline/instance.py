"""Where Dagster keeps its own state: under the runtime directory, whatever command started it.

``dagster.yaml`` names the storage and the artifacts here, so that the storage follows ``PAYOUT_RUNTIME_DIR`` instead of a fixed
path, the repository stays clean, and a new home is initialised by one process at a time (several processes that
create Dagster's SQLite schema at once leave it broken for good).
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dagster._core.events import DagsterEventType
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
from dagster._core.storage.root import LocalArtifactStorage
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClassData
from filelock import FileLock
from sqlalchemy import Connection, NullPool, create_engine
from sqlalchemy.engine import Engine

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
    """Dagster's event log with one SQLAlchemy engine a database file, instead of a new one for every event.

    It also sees a run's first and last event, in the process that executes the run: the one place that all ways to start
    a run have in common, so the run's sign of life is given here (see ``launcher.py``).

    Dagster makes an engine a statement, and with it compiles each statement anew: three quarters of what storing an
    event costs. Engines hold no connection (NullPool), so they survive a fork and a file that is deleted.
    """

    def __init__(self, base_dir: str) -> None:
        self._engines: OrderedDict[str, Engine] = OrderedDict()
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
            engine = self._engines.get(shard)
            if engine is None:
                engine = create_engine(
                    self.conn_string_for_shard(shard),
                    poolclass=NullPool,
                    connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS},
                )
                self._engines[shard] = engine
                while len(self._engines) > _KEPT_ENGINES:
                    self._engines.popitem(last=False)
            self._engines.move_to_end(shard)
            if shard not in self._initialized_dbs:
                self._initdb(engine)
                self._initialized_dbs.add(shard)
            with engine.connect() as connection, connection.begin():
                yield connection


class RuntimeStorage(DagsterSqliteStorage):
    """Dagster's runs, events and schedules in SQLite under :func:`dagster_directory`."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(base_dir, inst_data)
        self._event_log_storage = RuntimeEvents(self._event_log_storage._base_dir)

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
    and the UI started there then share one instance.
    """
    home = os.environ.get("DAGSTER_HOME")
    if not home:
        candidates = (Path.cwd(), Path(__file__).resolve().parent.parent)
        chosen = next((d for d in candidates if (d / "dagster.yaml").is_file()), None)
        if chosen is None:
            chosen = dagster_directory()
            chosen.mkdir(parents=True, exist_ok=True)
        home = os.environ["DAGSTER_HOME"] = str(chosen)
    return Path(home)
