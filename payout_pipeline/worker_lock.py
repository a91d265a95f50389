"""One run of a worker at a time: the lock that a fetch, a load and a reset take."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from logging import Logger
from pathlib import Path
from typing import Any

from payout_pipeline.locks import FileLocks, Locks
from payout_pipeline.settings import Settings
from payout_pipeline.shared_store import open_shared_store

#: A second run of the same worker waits this long for the first one to end, then refuses and names it.
LOCK_WAIT_SECONDS = 30.0


def locks_for(settings: Settings) -> Locks | None:
    """The locks of the workers' runs: shared where ``PAYOUT_LIMITER_URL`` is set, else under the runtime directory.

    None where the runtime directory is remote and nothing is shared: then other machines cannot be seen.
    """
    if settings.limiter_url is not None:
        from payout_pipeline.locks_shared import SharedLocks

        return SharedLocks(open_shared_store(settings.limiter_url.get_secret_value()), settings.runtime_dir)
    if "://" in settings.runtime_dir:
        return None
    return FileLocks(Path(settings.runtime_dir) / "locks")


def worker_lock(
    settings: Settings,
    partition: str,
    *,
    purpose: str,
    run_id: str,
    log: Logger,
    on_killed_run: Callable[[str], None] = lambda _run_id: None,
) -> AbstractContextManager[Any]:
    """One run of a worker at a time, on this machine or, with ``PAYOUT_LIMITER_URL``, on all of them.

    ``on_killed_run`` is called with the id of a run that was killed while it held the lock, once it is taken over.
    """
    locks = locks_for(settings)
    if locks is None:
        log.warning(
            "PAYOUT_RUNTIME_DIR is remote and PAYOUT_LIMITER_URL is not set: two machines could run %s at once.",
            partition,
        )
        return nullcontext()
    return locks.hold(
        partition,
        purpose=purpose,
        run_id=run_id,
        wait_seconds=LOCK_WAIT_SECONDS,
        log=log.info,
        on_takeover=lambda former: on_killed_run(former.run_id) if former.run_id else None,
    )
