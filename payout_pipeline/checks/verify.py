"""All checks now, through Dagster: the job of each worker's checks for each partition, then that of the view's."""

from __future__ import annotations

from collections.abc import Collection

import dagster as dg

from payout_pipeline.chunks import partition_key
from payout_pipeline.settings import Settings

VERIFY_WORKER_JOB = "verify_worker"
VERIFY_JOB = "verify"


def run_all_checks(settings: Settings, instance: dg.DagsterInstance, workers: Collection[int] | None = None) -> None:
    """Run the checks of these workers (all by default) and of the view, each job in this process on ``instance``.

    What they found is in the report; a run that fails, because a check failed or could not be made, raises nothing.
    """
    from payout_pipeline.definitions import defs

    for worker in sorted(workers or range(1, settings.workers + 1)):
        job = defs.resolve_job_def(VERIFY_WORKER_JOB)
        job.execute_in_process(
            instance=instance, partition_key=partition_key(worker, settings.workers), raise_on_error=False
        )
    defs.resolve_job_def(VERIFY_JOB).execute_in_process(instance=instance, raise_on_error=False)
