"""Jobs, the daily schedule and the sensor that rebuilds the view. Everything that starts by itself is off by default."""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg

from payout_pipeline.backfill import VIEW_JOB, WORKER_JOB
from payout_pipeline.checks.verify import VERIFY_JOB, VERIFY_WORKER_JOB


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


def verify_jobs() -> list[object]:
    """All checks again, and nothing else: a worker's as a partitioned job, the view's as one of its own."""
    return [
        dg.define_asset_job(
            VERIFY_WORKER_JOB,
            selection=dg.AssetSelection.checks_for_assets("goldsky_payouts", "resolutions_external_ingest"),
            description="Make the checks of a worker again. Run it for all partitions, then verify.",
        ),
        dg.define_asset_job(
            VERIFY_JOB,
            selection=dg.AssetSelection.checks_for_assets("vw_resolutions_truth"),
            description="Make the checks of the view again, all_workers_complete among them.",
        ),
    ]


def daily_verify(partitions: dg.StaticPartitionsDefinition, jobs: list[object]) -> list[dg.ScheduleDefinition]:
    """Every day at 05:00 UTC all checks of the workers, at 05:30 those of the view."""

    @dg.schedule(
        name="daily_verify_workers",
        job=jobs[0],  # type: ignore[arg-type]
        cron_schedule="0 5 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="Makes the checks of all workers again. Switch on daily_verify too.",
    )
    def workers(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
        day = context.scheduled_execution_time.strftime("%Y-%m-%d")
        for key in partitions.get_partition_keys():
            yield dg.RunRequest(run_key=f"verify-{day}-{key}", partition_key=key)

    view = dg.ScheduleDefinition(
        name="daily_verify",
        job=jobs[1],  # type: ignore[arg-type]
        cron_schedule="30 5 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="Makes the checks of the view again, half an hour after those of the workers.",
    )
    return [workers, view]


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
