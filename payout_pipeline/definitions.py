"""Everything that Dagster sees, as one list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from payout_pipeline.alert_sensors import alerts_sensor
from payout_pipeline.assets.condition_ids import condition_ids_asset
from payout_pipeline.assets.goldsky_payouts import goldsky_payouts_asset
from payout_pipeline.assets.resolutions_external_ingest import resolutions_external_ingest_asset
from payout_pipeline.assets.sources import external_specs
from payout_pipeline.assets.vw_resolutions_truth import vw_resolutions_truth_asset
from payout_pipeline.checks import build_checks
from payout_pipeline.jobs import daily_refresh, daily_verify, ids_job, verify_job, view_job, worker_job
from payout_pipeline.partitions import worker_partitions
from payout_pipeline.refresh import refresh_job
from payout_pipeline.resources import pipeline_from_environment
from payout_pipeline.settings import Settings, load_settings


def build_defs(settings: Settings | None = None, resource_overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """Fresh definitions for ``settings`` (the environment's unless given); ``resource_overrides`` replace by name.

    Raises ConfigurationError naming every variable that is wrong.
    """
    settings = settings or load_settings()
    partitions = worker_partitions(settings.workers)
    verify = verify_job()
    of_a_query = settings.condition_ids_query is not None
    return dg.Definitions(
        assets=[
            *external_specs(settings),
            *([condition_ids_asset()] if of_a_query else []),
            goldsky_payouts_asset(partitions),
            resolutions_external_ingest_asset(partitions, settings),
            vw_resolutions_truth_asset(settings),
        ],
        asset_checks=build_checks(partitions, settings),
        jobs=[*([ids_job()] if of_a_query else []), worker_job(), view_job(), verify, refresh_job],  # type: ignore[list-item]
        schedules=[daily_refresh(refresh_job), daily_verify(verify)],
        sensors=[alerts_sensor()],
        resources={"pipeline": pipeline_from_environment(), **(resource_overrides or {})},
        # One process a run: a process a step costs seconds each and buys nothing, as the steps follow one another.
        executor=dg.in_process_executor,
    )


defs = build_defs()
