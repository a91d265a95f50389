"""``goldsky_payouts``: what Goldsky says of every id of a worker's chunk, as a ledger."""

# Dagster reads the annotations at run time, so they are not postponed here.

from enum import Enum

import dagster as dg
from pydantic import Field

from payout_pipeline.assets.metadata import LEDGER_COLUMNS, fetch_metadata
from payout_pipeline.faults import STEP_RETRIES, report_killed_run, reported_to_dagster
from payout_pipeline.ids.chunks import worker_of_key
from payout_pipeline.resources import PipelineResource

#: Of the runs that one ``payout-pipeline backfill`` starts; kept when it is started again to finish.
BACKFILL_TAG = "payout/backfill"
DAGSTER_BACKFILL_TAG = "dagster/backfill"


def ended_without_success(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether the run is known and did not succeed: what it had fetched was perhaps never loaded."""
    run = instance.get_run_by_id(run_id)
    return run is not None and run.status is not dg.DagsterRunStatus.SUCCESS


class Refetch(Enum):
    """Which ids the materialization after a finished one asks for."""

    all = "all"
    unresolved = "unresolved"


class FetchConfig(dg.Config):
    """Run configuration of ``goldsky_payouts``."""

    refetch: Refetch = Field(
        default=Refetch.all,
        description=(
            "`all`: a new snapshot of every id of the chunk. `unresolved`: the resolved vectors of the last finished "
            "ledger are kept and only the other ids are asked again; what the daily schedule does. An interrupted run is "
            "continued in either case, without asking its finished batches again."
        ),
    )


def goldsky_payouts_asset(partitions: dg.PartitionsDefinition[str]) -> dg.AssetsDefinition:
    """The asset, one partition a worker."""

    @dg.asset(
        name="goldsky_payouts",
        partitions_def=partitions,
        deps=["condition_ids"],
        description=(
            "One row for **every** condition id of the worker's chunk, as the subgraph answered at one pinned block: "
            "`resolved` with its exact vector, `unresolved`, `absent`, `invalid` or `failed`. An interrupted run resumes "
            "where it stopped; finished batches are never asked again."
        ),
        group_name="payouts",
        kinds={"graphql", "parquet"},
        owners=["team:data-engineering"],
        code_version="1",
        retry_policy=STEP_RETRIES,
        metadata={"dagster/column_schema": LEDGER_COLUMNS},
    )
    def goldsky_payouts(
        context: dg.AssetExecutionContext, config: FetchConfig, pipeline: PipelineResource
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        from payout_pipeline.fetch import fetch_worker

        with reported_to_dagster():
            worker, _ = worker_of_key(context.partition_key)
            settings = pipeline.settings()
            summary = fetch_worker(
                settings,
                worker,
                refetch=config.refetch.value,
                log=context.log,
                run_id=context.run.run_id,
                backfill_id=context.run.tags.get(BACKFILL_TAG) or context.run.tags.get(DAGSTER_BACKFILL_TAG, ""),
                reuse_finished=lambda run_id: ended_without_success(context.instance, run_id),
                on_killed_run=lambda run_id: report_killed_run(context.instance, run_id),
            )
            return dg.MaterializeResult(metadata=fetch_metadata(summary))

    return goldsky_payouts
