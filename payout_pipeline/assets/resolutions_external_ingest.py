"""``resolutions_external_ingest``: the resolved vectors of a chunk in ClickHouse."""

# Dagster reads the annotations at run time, so they are not postponed here.

import dagster as dg
from pydantic import Field

from payout_pipeline.assets.metadata import TARGET_COLUMNS, ingest_metadata
from payout_pipeline.faults import STEP_RETRIES, reported_to_dagster
from payout_pipeline.ids.chunks import worker_of_key
from payout_pipeline.resources import PipelineResource
from payout_pipeline.settings import Settings


class LoadConfig(dg.Config):
    """Run configuration of ``resolutions_external_ingest``."""

    allow_removals: bool = Field(
        default=False,
        description=(
            "Stored vectors that the source calls unresolved or absent now are removed up to 1 % of the chunk's stored rows "
            "(none where fewer than 100 are stored); beyond that the load fails and says what it would have removed. `true` "
            "removes them: only where the source is right."
        ),
    )


def resolutions_external_ingest_asset(
    partitions: dg.PartitionsDefinition[str], settings: Settings
) -> dg.AssetsDefinition:
    """The asset, one partition a worker."""

    @dg.asset(
        name="resolutions_external_ingest",
        partitions_def=partitions,
        deps=["goldsky_payouts"],
        description=(
            "The resolved vectors of the worker's chunk in the target table. Only rows that are new or changed are "
            "written, then read back and compared vector by vector; a second materialization writes 0 rows. A table "
            "that was truncated or edited is healed by materializing again."
        ),
        group_name="payouts",
        kinds={"clickhouse", "table"},
        owners=["team:data-engineering"],
        code_version="1",
        retry_policy=STEP_RETRIES,
        metadata={"dagster/column_schema": TARGET_COLUMNS, "dagster/table_name": settings.target_table},
    )
    def resolutions_external_ingest(
        context: dg.AssetExecutionContext, config: LoadConfig, pipeline: PipelineResource
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        from payout_pipeline.ingest import ingest_worker

        with reported_to_dagster():
            worker, _ = worker_of_key(context.partition_key)
            summary = ingest_worker(
                pipeline.settings(),
                worker,
                log=context.log,
                run_id=context.run.run_id,
                allow_removals=config.allow_removals,
            )
            return dg.MaterializeResult(metadata=ingest_metadata(summary))

    return resolutions_external_ingest
