"""``condition_ids`` with ``CONDITION_IDS_QUERY``: what the query gives becomes the list that today's workers read."""

# Dagster reads the annotations at run time, so they are not postponed here.

import dagster as dg

from payout_pipeline.assets.metadata import list_metadata
from payout_pipeline.faults import STEP_RETRIES, reported_to_dagster
from payout_pipeline.resources import PipelineResource

_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]


def worker_runs_in_progress(instance: dg.DagsterInstance) -> list[str]:
    """The runs of ``goldsky_payouts`` that are queued or started: they read the list."""
    from payout_pipeline.checks.catalogue import FETCHED, WORKER_JOB

    runs = instance.get_runs(filters=dg.RunsFilter(statuses=_UNFINISHED))
    return [
        f"run {run.run_id[:8]} of {run.tags.get('dagster/partition', run.job_name)}"
        for run in runs
        if run.job_name == WORKER_JOB or dg.AssetKey(FETCHED) in (run.asset_selection or ())
    ]


def condition_ids_asset() -> dg.AssetsDefinition:
    """The asset; it is not partitioned."""

    @dg.asset(
        name="condition_ids",
        description=(
            "The condition ids that `CONDITION_IDS_QUERY` gives, each once: the list that today's workers read. The query runs "
            "read-only. While a backfill of the present list is in progress, that list is kept."
        ),
        group_name="payouts",
        kinds={"clickhouse", "sql"},
        owners=["team:data-engineering"],
        code_version="1",
        retry_policy=STEP_RETRIES,
    )
    def condition_ids(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
        from payout_pipeline.ids.take import take_list

        with reported_to_dagster():
            summary = take_list(
                pipeline.settings(),
                log=context.log,
                run_id=context.run.run_id,
                going_on=worker_runs_in_progress(context.instance),
            )
            return dg.MaterializeResult(metadata=list_metadata(summary))

    return condition_ids
