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
    from payout_pipeline.definitions import build_defs

    defs = build_defs(settings)
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    worker_job = defs.resolve_job_def(VERIFY_WORKER_JOB)
    for worker in sorted(workers or range(1, settings.workers + 1)):
        # A job of checks alone has no partitions of its own; its run is of a partition by this tag.
        tags = {"dagster/partition": partition_key(worker, settings.workers)}
        worker_job.execute_in_process(instance=instance, tags=tags, run_config=quiet, raise_on_error=False)
    view_job = defs.resolve_job_def(VERIFY_JOB)
    view_job.execute_in_process(instance=instance, run_config=quiet, raise_on_error=False)
