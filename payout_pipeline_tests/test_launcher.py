"""A run's process shows that it lives; run monitoring ends the run once it does not (row B1, Dagster's side)."""

# No `from __future__ import annotations`: Dagster compares annotations with its own classes.
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest
from dagster._core.launcher import WorkerStatus
from dagster._daemon.monitoring.run_monitoring import execute_run_monitoring_iteration

from payout_pipeline.instance import run_processes
from payout_pipeline.launcher import RunProcesses, WatchingRunLauncher

REPOSITORY = Path(__file__).resolve().parent.parent

_RUNS = """
import sys
import dagster as dg

@dg.asset
def waits() -> None:
    print("run began", flush=True)
    sys.stdin.read()

with dg.DagsterInstance.get() as instance:
    dg.materialize([waits], instance=instance)
"""


@pytest.fixture
def instance(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(REPOSITORY))
    monkeypatch.setenv("PAYOUT_RUNTIME_DIR", str(tmp_path / "runtime"))
    with dg.DagsterInstance.get() as made:
        yield made


@pytest.fixture
def process(instance):
    """A process in the middle of a run, as `dagster asset materialize` is one: no code server knows of it."""
    made = subprocess.Popen(
        [sys.executable, "-c", _RUNS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert made.stdout is not None
    try:
        while made.stdout.readline() != b"run began\n":
            assert made.poll() is None
        yield made
    finally:
        made.kill()
        made.communicate()


def monitor(instance: dg.DagsterInstance) -> None:
    """One look of Dagster's own run monitoring, as its daemon does."""
    context = SimpleNamespace(instance=instance, create_request_context=lambda: None)
    list(execute_run_monitoring_iteration(context, logging.getLogger("monitor")))


def test_b1_a_run_whose_process_was_killed_is_ended_by_the_next_look_of_run_monitoring(instance, process):
    (run,) = instance.get_runs()
    monitor(instance)
    monitor(instance)
    assert instance.get_run_by_id(run.run_id).status is dg.DagsterRunStatus.STARTED, "it lives"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    monitor(instance)
    assert instance.get_run_by_id(run.run_id).status is dg.DagsterRunStatus.FAILURE
    (failed,) = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    assert "the process of the run is gone" in str(failed.dagster_event)
    assert not list(run_processes().directory.iterdir())


def test_a_stopped_process_is_not_a_dead_one(instance, process):
    os.kill(process.pid, signal.SIGSTOP)
    monitor(instance)
    (run,) = instance.get_runs()
    assert run.status is dg.DagsterRunStatus.STARTED


@dg.asset
def looks(context) -> None:
    """Its own run lives."""
    launcher = context.instance.run_launcher
    assert isinstance(launcher, WatchingRunLauncher)
    assert launcher.supports_check_run_worker_health
    assert launcher.check_run_worker_health(context.run).status is WorkerStatus.RUNNING
    assert (run_processes().directory / f"{context.run.run_id}.lock").exists()


@dg.asset
def breaks() -> None:
    """Fails."""
    raise dg.Failure("broken")


def test_a_run_that_ended_leaves_no_sign_of_life_behind(instance):
    good = dg.materialize([looks], instance=instance)
    bad = dg.materialize([breaks], instance=instance, raise_on_error=False)
    assert good.success
    assert not bad.success
    assert not list(run_processes().directory.iterdir())
    assert not run_processes().died(good.run_id)


def test_a_run_that_nobody_knows_of_counts_as_living(tmp_path):
    processes = RunProcesses(tmp_path / "running")
    assert not processes.died("unknown")
    assert not (tmp_path / "running").exists(), "looking leaves nothing behind"


def test_a_file_system_that_has_no_room_for_the_sign_of_life_does_not_fail_the_run(tmp_path):
    (tmp_path / "running").write_text("a file where the directory should be")
    processes = RunProcesses(tmp_path / "running")
    processes.begin("a-run")
    assert not processes.died("a-run")
    processes.end("a-run")
