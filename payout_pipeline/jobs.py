"""Jobs and schedules. Everything that starts by itself is off by default."""

from __future__ import annotations

import dagster as dg

from payout_pipeline.checks.catalogue import IDS_JOB, VERIFY_JOB, VIEW_JOB, WORKER_JOB


def worker_job() -> object:
    """One worker: ask Goldsky, then load. Its partitions are what a backfill runs."""
    return dg.define_asset_job(
        WORKER_JOB,
        selection=dg.AssetSelection.assets("goldsky_payouts", "resolutions_external_ingest"),
        description="Ask Goldsky for a worker's ids and load what is resolved. Run it for all partitions, then truth_view.",
    )


def view_job() -> object:
    """The view and its checks."""
    return dg.define_asset_job(
        VIEW_JOB,
        selection=dg.AssetSelection.assets("vw_resolutions_truth"),
        description="Rebuild vw_resolutions_truth and run the success report. Refuses while a worker is missing.",
    )


def verify_job() -> object:
    """All checks again, of all workers and of the view, and nothing else."""
    return dg.define_asset_job(
        VERIFY_JOB,
        selection=dg.AssetSelection.all_asset_checks(),
        description="Make all checks again, of every worker and of the view. Fetches and changes no data.",
    )


def daily_verify(job: object) -> dg.ScheduleDefinition:
    """Every day at 05:00 UTC all checks."""
    return dg.ScheduleDefinition(
        name="daily_verify",
        job=job,  # type: ignore[arg-type]
        cron_schedule="0 5 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="Makes all checks again.",
    )


def ids_job() -> object:
    """The list of ids, where it comes from a query."""
    return dg.define_asset_job(
        IDS_JOB,
        selection=dg.AssetSelection.assets("condition_ids"),
        description="Run CONDITION_IDS_QUERY and make what it gives the list that today's workers read.",
    )


def daily_refresh(job: dg.JobDefinition) -> dg.ScheduleDefinition:
    """Every day at 03:00 UTC the whole refresh."""
    return dg.ScheduleDefinition(
        name="daily_refresh",
        job=job,
        cron_schedule="0 3 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="The list of ids, every worker, the view and its checks, one after the other.",
    )
