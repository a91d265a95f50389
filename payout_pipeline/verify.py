"""All checks now, through Dagster: the job ``verify``, of asset checks only."""

from __future__ import annotations

from collections.abc import Collection

import dagster as dg

from payout_pipeline.checks.catalogue import VERIFY_JOB, VIEW, checks_of
from payout_pipeline.checks.history import PARTITION_TAG
from payout_pipeline.dagster_home import REPOSITORY_TAGS
from payout_pipeline.ids.chunks import partition_key
from payout_pipeline.settings import Settings


def run_all_checks(
    settings: Settings, instance: dg.DagsterInstance, workers: Collection[int] = ()
) -> dict[str | None, str]:
    """Run the checks of all workers and of the view in one run in this process; with ``workers`` a run for each of these.

    What they found is in the report; a run that fails, because a check failed or could not be made, raises nothing. Returns
    the ids of the runs by partition; that of None made the checks of the view, and those of no partition that is named.
    """
    from payout_pipeline.definitions import build_defs

    job = build_defs(settings).resolve_job_def(VERIFY_JOB)
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    # Dagster gives a job of checks alone no partitions; the tag is what a run of one partition is known by.
    keys = [partition_key(worker, settings.workers) for worker in sorted(workers)]
    runs: dict[str | None, str] = {}
    of_view = [dg.AssetCheckKey(dg.AssetKey(VIEW), info.name) for info in checks_of(VIEW, settings)]
    of_workers = {key for key in job.asset_layer.asset_graph.asset_check_keys if key not in of_view}
    for key in [*keys, None]:
        chosen = None if not keys else set(of_view) if key is None else of_workers
        run = job if chosen is None else job.get_subset(asset_check_selection=chosen)
        tags = {**REPOSITORY_TAGS, **({PARTITION_TAG: key} if key is not None else {})}
        done = run.execute_in_process(instance=instance, run_config=quiet, tags=tags, raise_on_error=False)
        runs[key] = done.run_id
    return runs
