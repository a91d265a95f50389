"""``vw_resolutions_truth``: the view that P&L reads, rebuilt once every worker is in."""

# Dagster reads the annotations at run time, so they are not postponed here.

import dagster as dg

from payout_pipeline.assets.metadata import VIEW_COLUMNS, truth_metadata
from payout_pipeline.faults import STEP_RETRIES, reported_to_dagster
from payout_pipeline.resources import PipelineResource
from payout_pipeline.settings import Settings


def vw_resolutions_truth_asset(settings: Settings) -> dg.AssetsDefinition:
    """The asset; it is not partitioned, and refuses while a worker is missing."""

    @dg.asset(
        name="vw_resolutions_truth",
        deps=["resolutions_external_ingest", "market_resolutions_final"],
        description=(
            "One row per condition: `market_resolutions_final` first, then Goldsky's vectors of the conditions it does not "
            "have. Refuses, naming them, while a worker is missing or incomplete. Replaced in one statement, so readers "
            "never see a gap; coverage and settled P&L are measured before and after."
        ),
        group_name="payouts",
        kinds={"clickhouse", "view"},
        owners=["team:data-engineering"],
        code_version="1",
        retry_policy=STEP_RETRIES,
        metadata={"dagster/column_schema": VIEW_COLUMNS, "dagster/table_name": settings.truth_view},
    )
    def vw_resolutions_truth(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
        from payout_pipeline.truth import rebuild_truth

        with reported_to_dagster():
            summary = rebuild_truth(pipeline.settings(), log=context.log, run_id=context.run.run_id)
            return dg.MaterializeResult(metadata=truth_metadata(summary))

    return vw_resolutions_truth
