"""``payout-pipeline verify``: what is stored at this moment is judged, whatever an earlier report said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner, Result

from payout_pipeline.checks.catalogue import FETCHED
from payout_pipeline.cli import main
from payout_pipeline_tests.checks.test_report import KEYS, Backfill, backfill, subgraph  # noqa: F401 - fixtures
from payout_pipeline_tests.report_fixtures import condition, house, open_engine, runtime  # noqa: F401 - fixtures


@pytest.fixture
def nothing_run(backfill: Backfill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backfill:  # noqa: F811
    """A backfill that was not begun; the commands have an instance of their own."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return backfill


@pytest.fixture
def done(nothing_run: Backfill) -> Iterator[Backfill]:
    """A finished backfill on the instance of the commands."""
    with dg.DagsterInstance.get() as instance:
        nothing_run.house.instance = instance
        yield nothing_run.run_all()


def verify(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["verify", *arguments])


def judged(*arguments: str) -> tuple[int, dict[str, Any]]:
    found = verify("--json", *arguments)
    return found.exit_code, json.loads(found.stdout)


def states(report: dict[str, Any]) -> dict[tuple[str, str | None], str]:
    return {(check["check"], check["partition"]): check["state"] for check in report["checks"]}


def test_after_a_finished_backfill_everything_passes_anew_and_rows_that_went_missing_are_found(done: Backfill) -> None:
    runs = done.house.instance.get_runs_count()
    found = verify()
    assert found.exit_code == 0, found.output
    assert "SUCCESS: 17 passed" in found.output
    assert done.house.instance.get_runs_count() > runs, "the checks were made by runs of Dagster"
    assert not any(line.startswith("20") for line in found.output.splitlines()), "and the runs' logs are not the answer"

    done.house.run(f"DELETE FROM {{db}}.resolutions_external_ingest WHERE condition_id = '{condition(3)}'")
    code, report = judged()
    assert code == report["exit_code"] == 1
    assert states(report)["stored_equals_fetched", KEYS[0]] == "failed"
    assert states(report)["stored_equals_fetched", KEYS[1]] == "passed"
    assert "SUCCESS" not in report["headline"].replace("NOT A SUCCESS", "")
    assert CliRunner().invoke(main, ["report"]).exit_code == 1, "what was found stays found"


@pytest.mark.slow
def test_the_checks_of_one_worker_can_be_made_alone(done: Backfill) -> None:
    before = {(check["check"], check["partition"]): check["run_id"] for check in judged()[1]["checks"]}
    code, report = judged("--workers", "2")
    assert code == 0
    again = {
        (check["check"], check["partition"])
        for check in report["checks"]
        if check["run_id"] != before[check["check"], check["partition"]]
    }
    assert {partition for _, partition in again} == {KEYS[1], None}


@pytest.mark.usefixtures("nothing_run")
def test_a_worker_that_does_not_exist_is_a_wrong_usage() -> None:
    found = verify("--workers", "3")
    assert found.exit_code == 2
    assert "use 1 to 2" in found.output
    assert verify("--workers", "x").exit_code == 2


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_run")
def test_before_any_run_nothing_is_a_success() -> None:
    code, report = judged()
    assert code == 1
    fetched = {
        check["state"] for check in report["checks"] if check["asset"] == FETCHED and check["severity"] == "ERROR"
    }
    assert "failed" in fetched
    assert not any(check["check"] == "unique_conditions" and check["state"] == "passed" for check in report["checks"])
