"""Jobs, the daily schedule and the sensor that rebuilds the view. Everything that starts by itself is off by default."""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg

from payout_pipeline.checks.catalogue import VERIFY_JOB, VIEW_JOB, WORKER_JOB


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


def daily_refresh(partitions: dg.StaticPartitionsDefinition, job: object) -> dg.ScheduleDefinition:
    """Every day at 03:00 UTC: each worker asks again for what is not resolved yet."""

    @dg.schedule(
        name="daily_refresh",
        job=job,  # type: ignore[arg-type]
        cron_schedule="0 3 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="Asks for the ids that are not resolved yet. Switch on rebuild_truth_view too to rebuild the view.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
        day = context.scheduled_execution_time.strftime("%Y-%m-%d")
        for key in partitions.get_partition_keys():
            yield dg.RunRequest(
                run_key=f"{day}-{key}",
                partition_key=key,
                run_config={"ops": {"goldsky_payouts": {"config": {"refetch": "unresolved"}}}},
            )

    return schedule


def rebuild_truth_view() -> dg.AutomationConditionSensorDefinition:
    """Rebuilds the view after its workers were refreshed, unless one of their checks failed."""
    return dg.AutomationConditionSensorDefinition(
        "rebuild_truth_view",
        target=dg.AssetSelection.assets("vw_resolutions_truth"),
        default_status=dg.DefaultSensorStatus.STOPPED,
    )
