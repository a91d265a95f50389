"""Where Dagster keeps its own state: under the runtime directory, whatever command started it.

``dagster.yaml`` names the two classes here, so that the storage follows ``PAYOUT_RUNTIME_DIR`` instead of a fixed
path, the repository stays clean, and a new home is initialised by one process at a time (several processes that
create Dagster's SQLite schema at once leave it broken for good).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dagster._core.storage.root import LocalArtifactStorage
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClassData
from filelock import FileLock

_INITIALISE_TIMEOUT = 60.0


def dagster_directory() -> Path:
    """``<runtime>/dagster``; where the runtime directory is remote (s3://…), ``runtime/dagster`` on this machine."""
    runtime = os.environ.get("PAYOUT_RUNTIME_DIR") or "runtime"
    local = runtime if "://" not in runtime else "runtime"
    return (Path(local) / "dagster").absolute()


class RuntimeStorage(DagsterSqliteStorage):
    """Dagster's runs, events and schedules in SQLite under :func:`dagster_directory`."""

    @classmethod
    def config_type(cls) -> Any:
        """Nothing to configure: the place follows the runtime directory."""
        return {}

    @classmethod
    def from_config_value(  # type: ignore[override]
        cls, inst_data: ConfigurableClassData | None, config_value: dict[str, Any]
    ) -> RuntimeStorage:
        """Open the storage, creating it under a lock where it is new."""
        directory = dagster_directory()
        directory.mkdir(parents=True, exist_ok=True)
        with FileLock(str(directory / ".initialise.lock"), timeout=_INITIALISE_TIMEOUT):
            return cls(str(directory), inst_data=inst_data)


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
