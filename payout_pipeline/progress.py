"""The progress of a backfill for who started it: bars on a terminal, plain lines elsewhere.

Everything shown comes from the files that ``status`` reads, so it is as true after a restart as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from payout_pipeline.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from payout_pipeline.status import Status, WorkerStatus


class Progress:
    """A bar a worker (ids, found, rate, time left, errors, answers of 429), refreshed by :meth:`update`."""

    def __init__(self, settings: Settings, workers: Sequence[int], console: Console) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        self._settings, self._workers, self._console = settings, set(workers), console
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._limits: TaskID | None = None
        self._last = ""
        if console.is_terminal:
            self._bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>5.1f} %"),
                TextColumn("{task.fields[words]}"),
                console=console,
            )
            self._bars.start()

    def update(self) -> None:
        """Read the state and show it."""
        from payout_pipeline.status import read_status

        status = read_status(self._settings)
        workers = [worker for worker in status.workers if worker.worker in self._workers]
        if self._bars is None:
            line = "; ".join(f"{worker.partition} {_words(worker)}" for worker in workers) + _limits(status)
            if line != self._last:
                self._console.print(line)
            self._last = line
            return
        for worker in workers:
            if worker.partition not in self._tasks:
                self._tasks[worker.partition] = self._bars.add_task(worker.partition, total=None, words="")
            self._bars.update(
                self._tasks[worker.partition],
                total=worker.total_ids or None,
                completed=worker.ids,
                words=_words(worker),
            )
        if self._limits is None:
            self._limits = self._bars.add_task("", total=1, words="")
        self._bars.update(self._limits, words=_limits(status).lstrip("; "))

    def close(self) -> None:
        """Show the last state and leave the terminal as it was."""
        self.update()
        if self._bars is not None:
            self._bars.stop()


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
    return "; " + ", ".join(parts) if parts else ""
