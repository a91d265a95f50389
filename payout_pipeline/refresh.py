"""The daily refresh as one job: the list of ids, then each worker, then the view with its checks.

An asset job has partitions or it has none, so the refresh is a job of ops, each of which runs one of the asset jobs on the same
instance. A worker that fails fails alone; the view is not rebuilt then. Re-executed from failure, it runs what is missing.
"""

# Dagster reads the annotations at run time, so they are not postponed here.

from collections.abc import Iterator
from typing import Any

import dagster as dg

from payout_pipeline.assets.goldsky_payouts import BACKFILL_TAG
from payout_pipeline.checks.catalogue import IDS_JOB, REFRESH_JOB, VIEW_JOB, WORKER_JOB
from payout_pipeline.dagster_home import REPOSITORY_TAGS
from payout_pipeline.ids.chunks import partition_keys
from payout_pipeline.resources import PipelineResource

#: Marks a refresh that failed because one of its runs did, which speaks for itself.
FAILED_BELOW = "FailedBelow"


@dg.op(
    out=dg.DynamicOut(str), description="The list of ids, where it comes from a query; then a worker for each chunk."
)
def list_of_ids(context: dg.OpExecutionContext, pipeline: PipelineResource) -> Iterator[dg.DynamicOutput[str]]:
    """Materialize ``condition_ids`` if it is an asset, and name the partitions."""
    settings = pipeline.settings()
    if settings.condition_ids_query:
        _run(context, IDS_JOB)
    for key in partition_keys(settings.workers):
        yield dg.DynamicOutput(key, mapping_key=key)


@dg.op(description="One worker: ask Goldsky, then load.")
def worker(context: dg.OpExecutionContext, pipeline: PipelineResource, partition: str) -> str:
    """Of a file the ids that are not resolved yet; a query names itself what is to be asked."""
    refetch = "all" if pipeline.settings().condition_ids_query else "unresolved"
    _run(context, WORKER_JOB, partition, {"ops": {"goldsky_payouts": {"config": {"refetch": refetch}}}})
    return partition


@dg.op(description="The view and its checks, once every worker is in.")
def view_and_checks(context: dg.OpExecutionContext, partitions: list[str]) -> None:
    """Rebuild the view."""
    context.log.info(f"{len(partitions)} workers are in")
    _run(context, VIEW_JOB)


@dg.job(name=REFRESH_JOB, description="The list of ids, every worker, the view and its checks, one after the other.")
def refresh_job() -> None:
    """What `daily_refresh` runs, and `dagster job execute -m payout_pipeline.definitions -j daily_refresh` without a daemon."""
    view_and_checks(list_of_ids().map(worker).collect())


def _run(
    context: dg.OpExecutionContext, job: str, partition: str | None = None, config: dict[str, Any] | None = None
) -> None:
    """Run an asset job here, on the same instance; raises dg.Failure naming its run where it fails."""
    result = context.repository_def.get_job(job).execute_in_process(
        instance=context.instance,
        partition_key=partition,
        run_config=config,
        tags={**REPOSITORY_TAGS, BACKFILL_TAG: context.run.root_run_id or context.run_id},
        raise_on_error=False,
    )
    if not result.success:
        raise dg.Failure(
            f"{partition or job} failed: run {result.run_id}. `payout-pipeline report` says why, and what to do.",
            metadata={"kind": FAILED_BELOW},
            allow_retries=False,
        )
    context.log.info(f"{partition or job} is done: run {result.run_id}")
