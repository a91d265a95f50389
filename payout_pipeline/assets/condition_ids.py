"""``condition_ids`` with ``CONDITION_IDS_QUERY``: what the query gives becomes the list that today's workers read."""

# Dagster reads the annotations at run time, so they are not postponed here.

from datetime import datetime, timedelta, timezone

import dagster as dg

from payout_pipeline.assets.metadata import list_metadata
from payout_pipeline.checks.catalogue import FETCHED
from payout_pipeline.checks.history import PARTITION_TAG, made_by
from payout_pipeline.faults import STEP_RETRIES, reported_to_dagster
from payout_pipeline.ids.chunks import partition_keys
from payout_pipeline.resources import PipelineResource
from payout_pipeline.settings import Settings

_WAITING = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING]
#: A started run soon has its worker's lock; one that was killed stays started without it until the worker runs again.
_SOON = timedelta(minutes=5)


def worker_runs_in_progress(instance: dg.DagsterInstance, settings: Settings) -> list[str]:
    """The runs of today's workers that are about to read the list; those that are at it have their worker's lock."""
    keys = partition_keys(settings.workers)
    unfinished = dg.RunsFilter(statuses=[*_WAITING, dg.DagsterRunStatus.STARTED])
    found: list[str] = []
    for record in instance.get_run_records(filters=unfinished):
        run, key = record.dagster_run, record.dagster_run.tags.get(PARTITION_TAG)
        is_new = datetime.now(timezone.utc) - record.create_timestamp.astimezone(timezone.utc) < _SOON
        if FETCHED in made_by(run) and key in keys and (is_new or run.status in _WAITING):
            found.append(f"run {run.run_id[:8]} of {key}")
    return found


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
            settings = pipeline.settings()
            summary = take_list(
                settings,
                log=context.log,
                run_id=context.run.run_id,
                going_on=worker_runs_in_progress(context.instance, settings),
            )
            return dg.MaterializeResult(metadata=list_metadata(summary))

    return condition_ids
