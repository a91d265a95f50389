"""``payout-pipeline reset``: a clean restart. Ledgers, checkpoints and progress files go; the database never does."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass

from payout_pipeline.errors import ConfigurationError
from payout_pipeline.ids.chunks import worker_of_key
from payout_pipeline.ledger import DIRECTORY
from payout_pipeline.ledger.checkpoint import worker_of_name
from payout_pipeline.settings import Settings
from payout_pipeline.storage import BACKFILL_RECORD, Store, join, open_store
from payout_pipeline.words import counted
from payout_pipeline.worker_lock import locks_for

_ASIDE = re.compile(r"(payout-backfill-worker\d{1,2}\..*)\.corrupt-.*")


@dataclass(frozen=True)
class ResetPlan:
    """What would be removed: keys of the runtime directory, and the partitions whose runs must not be going."""

    store: Store
    settings: Settings
    keys: tuple[str, ...]
    partitions: tuple[str, ...]

    def describe(self) -> str:
        """The plan, for the confirmation."""
        lines = [f"  {self.store.describe(key)}" for key in self.keys]
        return (
            f"To be removed ({counted(len(self.keys), 'file or directory', 'files and directories')}):\n"
            + "\n".join(lines)
        )


def plan_reset(settings: Settings, worker: int | None = None) -> ResetPlan:
    """Find what belongs to ``worker`` (all workers unless given), of any number of workers. Removes nothing.

    Raises ConfigurationError where there is no such worker, StorageError where the directory cannot be read.
    """
    if worker is not None and worker > settings.workers:
        raise ConfigurationError(
            f"--worker names worker {worker}, but PAYOUT_WORKERS is {settings.workers}: use 1 to {settings.workers}."
        )
    store = open_store(settings.runtime_dir)
    # An unfinished backfill is not continued after a clean restart.
    keys: list[str] = [BACKFILL_RECORD] if worker is None and store.exists(BACKFILL_RECORD) else []
    for name in store.names():
        aside = _ASIDE.fullmatch(name)
        number = worker_of_name(aside[1] if aside else name)
        if number is not None and worker in (None, number):
            keys.append(name)
    partitions: list[str] = []
    for name in store.names(DIRECTORY):
        try:
            number, _ = worker_of_key(name)
        except ConfigurationError:
            continue  # not of this program
        if worker in (None, number):
            keys.append(join(DIRECTORY, name))
            partitions.append(name)
    return ResetPlan(store, settings, tuple(keys), tuple(partitions))


def remove(plan: ResetPlan) -> str:
    """Remove what the plan lists, and say so.

    Raises LockHeldError, before anything is removed, where a run of one of the workers is going; StorageError.
    """
    with ExitStack() as stack:
        locks = locks_for(plan.settings)
        if locks is not None:
            for partition in plan.partitions:
                stack.enter_context(locks.hold(partition, purpose="reset", wait_seconds=0))
        for key in plan.keys:
            plan.store.delete(key)
    removed = counted(len(plan.keys), "file or directory", "files and directories")
    return f"Removed {removed}. The next run asks for every id of these workers again; the database is as it was."
