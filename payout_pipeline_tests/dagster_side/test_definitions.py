"""What Dagster sees can be loaded as a whole, as its web server does it."""

from __future__ import annotations

import dagster as dg
import pytest

from payout_pipeline.assets.condition_ids import worker_runs_in_progress
from payout_pipeline.checks.catalogue import WORKER_JOB
from payout_pipeline.definitions import build_defs
from payout_pipeline.settings import load_settings


@pytest.mark.parametrize(
    "env", [{}, {"CONDITION_IDS_QUERY": "SELECT 1"}, {"GOLDSKY_MODE": "scan"}, {"PAYOUT_PNL_VIEW": ""}], ids=str
)
def test_the_definitions_can_be_loaded(env: dict[str, str]) -> None:
    dg.Definitions.validate_loadable(build_defs(load_settings(env)))


@pytest.mark.parametrize(
    ("status", "partition", "is_named"),
    [
        (dg.DagsterRunStatus.NOT_STARTED, "worker_1_of_2", True),
        (dg.DagsterRunStatus.STARTED, "worker_1_of_2", True),
        (dg.DagsterRunStatus.STARTED, "worker_3_of_4", False),
        (dg.DagsterRunStatus.SUCCESS, "worker_1_of_2", False),
    ],
)
def test_the_list_is_kept_for_runs_of_todays_workers_that_are_about_to_read_it(
    status: dg.DagsterRunStatus, partition: str, is_named: bool
) -> None:
    settings = load_settings({"PAYOUT_WORKERS": "2"})
    job = build_defs(settings).resolve_job_def(WORKER_JOB)
    with dg.instance_for_test() as instance:
        run = instance.create_run_for_job(job, tags={"dagster/partition": partition}, status=status)
        expected = [f"run {run.run_id[:8]} of {partition}"] if is_named else []
        assert worker_runs_in_progress(instance, settings) == expected
