"""Runs whose process died are found and ended, also where nobody was left to notice it.

A code server sees its own runs die. Nobody sees those that died together with their server (`dagster dev` killed, the
machine restarted) or that never had one (`payout-pipeline backfill`, `dagster asset materialize`): they would stay
STARTED, with their pool slots, until the time limit. So a run holds a lock of the operating system on a file for as long
as its process lives, and run monitoring asks for that lock. The kernel frees it whatever happens to the process, and
unlike a process number it cannot mean somebody else after a restart or in another container.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from filelock import FileLock

try:
    import fcntl
except ImportError:  # Windows: nobody can look without touching, so only the time limit ends a run there
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from dagster import DagsterRun


class RunProcesses:
    """Which runs have a process that lives: a locked file each, under ``directory``.

    In doubt (no file, no right to it) a run counts as living: a run that is ended by mistake is worse than one that is
    ended late, by its time limit.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._mine: dict[str, FileLock] = {}
        self._guard = threading.Lock()

    def _path(self, run_id: str) -> Path:
        return self.directory / f"{run_id}.lock"

    def begin(self, run_id: str) -> None:
        """This process executes the run from now on."""
        lock = FileLock(self._path(run_id), timeout=1, thread_local=False)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except (OSError, NotImplementedError):  # a full disk, no locks there: nothing that the run should fail for
            self._forget(run_id)
            return
        with self._guard:
            self._mine[run_id] = lock

    def end(self, run_id: str) -> None:
        """The run has ended, whoever executed it."""
        with self._guard:
            lock = self._mine.pop(run_id, None)
        self._forget(run_id)  # before the release: a file without a lock means death
        if lock is not None:
            lock.release()

    def died(self, run_id: str) -> bool:
        """Whether a process began the run and is gone."""
        if fcntl is None or run_id in self._mine:
            return False
        try:
            descriptor = os.open(self._path(run_id), os.O_RDWR | os.O_CLOEXEC)  # never creates the file
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.fstat(descriptor).st_nlink > 0  # 0: it ended in order while we were looking
        except OSError:  # held, so it lives; or there are no locks on this file system
            return False
        finally:
            os.close(descriptor)

    def _forget(self, run_id: str) -> None:
        with contextlib.suppress(OSError):
            self._path(run_id).unlink(missing_ok=True)


class WatchingRunLauncher(DefaultRunLauncher):
    """Dagster's default launcher, which also tells run monitoring whether the process of a run lives."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Run monitoring may ask."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """FAILED where the process is gone, RUNNING where it lives or nobody knows."""
        from payout_pipeline.instance import run_processes

        if run_processes().died(run.run_id):
            return CheckRunHealthResult(WorkerStatus.FAILED, "the process of the run is gone")
        return CheckRunHealthResult(WorkerStatus.RUNNING)
