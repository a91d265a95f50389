"""The progress of a backfill for who started it: bars on a terminal, plain lines elsewhere.

Everything shown comes from the files that ``status`` reads, so it is as true after a restart as before.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from payout_pipeline.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from payout_pipeline.status import Status, WorkerStatus


_PROGRESS_SECONDS = 0.5
_PLAIN_SECONDS = 5.0


class Progress:
    """A bar a worker (ids, found, rate, time left, errors) on a terminal, a line a worker elsewhere; as a context manager."""

    def __init__(self, settings: Settings, workers: Sequence[int], console: Console) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        self._settings, self._workers, self._console = settings, set(workers), console
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._shown: dict[str, str] = {}
        self._next = 0.0
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>5.1f} %"))
            self._bars = Bars(*columns, TextColumn("{task.fields[words]}"), console=console)

    def __enter__(self) -> Progress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._show()
        if self._bars is not None:
            self._bars.stop()

    def update(self) -> None:
        """Read the state and show it, if it is time again."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + (_PLAIN_SECONDS if self._bars is None else _PROGRESS_SECONDS)
            self._show()

    def _show(self) -> None:
        from payout_pipeline.status import read_status

        status = read_status(self._settings)
        for worker in status.workers:
            if worker.worker in self._workers:
                self._show_worker(worker)
        limits = _limits(status)
        if limits and limits != self._shown.get(""):
            self._console.print(limits)
        self._shown[""] = limits

    def _show_worker(self, worker: WorkerStatus) -> None:
        words = _words(worker)
        if self._bars is None:
            if words != self._shown.get(worker.partition) and worker.ids:
                self._console.print(f"{worker.partition}: {words}")
            self._shown[worker.partition] = words
            return
        if worker.partition not in self._tasks:
            self._tasks[worker.partition] = self._bars.add_task(worker.partition, total=None, words="")
        self._bars.update(
            self._tasks[worker.partition], total=worker.total_ids or None, completed=worker.ids, words=words
        )


def _words(worker: WorkerStatus) -> str:
    of = f"/{worker.total_ids:,}" if worker.total_ids else ""
    parts = [f"{worker.ids:,}{of} ids", f"{worker.found:,} found"]
    if worker.rate:
        parts.append(f"{worker.rate:,.0f} ids/s")
    if worker.seconds_left is not None:
        parts.append(f"{worker.seconds_left:.0f} s left")
    if worker.errors:
        parts.append(f"{worker.errors:,} errors")
    return ", ".join(parts)


def _limits(status: Status) -> str:
    """What the shared rate limit and an outage have to say; empty where all is well."""
    parts = []
    if status.answers_429:
        parts.append(f"{status.answers_429} answers of 429")
    if status.hold_seconds > 0:
        parts.append(f"waiting {status.hold_seconds:.0f} s after a 429")
    if status.outage_seconds > 0:
        parts.append(f"Goldsky has been away for {status.outage_seconds:.0f} s")
    return ", ".join(parts)
