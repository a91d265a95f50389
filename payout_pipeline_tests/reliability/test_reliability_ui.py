"""What a user of Dagster's UI sees of faults: a real `dagster dev` with its daemon, real runs, real kills."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from payout_pipeline_tests.chaos.fixtures import nursery  # noqa: F401
from payout_pipeline_tests.chaos.world import World, world
from payout_pipeline_tests.dagster_ui import ASSETS, DagsterUi, dagster_dev

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_failed_worker_leaves_the_others_done_and_re_execute_from_failure_runs_only_it_and_the_view(
    tmp_path, nursery  # noqa: F811
):  # fmt: skip
    with (
        world(tmp_path, nursery, workers=2, ids=400, GOLDSKY_BATCH_SIZE="50", GOLDSKY_CONCURRENT_REQUESTS="2") as place,
        dagster_dev(tmp_path, place.env) as ui,
    ):
        first, second = place.ids[:200], place.ids[200:]
        place.server.faults.add(
            "poison", ids=["0x" + i for i in second], message="Type `Condition` has no field `payouts`"
        )
        failed = ui.backfill(["worker_1_of_2", "worker_2_of_2"])
        assert ui.ended(failed) == "COMPLETED_FAILED"
        # No step, no run and no daemon has tried it a second time, and nothing of the view was started.
        assert {run.partition: run.status for run in ui.runs()} == {
            "worker_1_of_2": "SUCCESS",
            "worker_2_of_2": "FAILURE",
        }
        assert len(ui.runs()) == 2
        assert sum("poison" in entry.faults for entry in place.server.log.entries) <= 2
        stored = place.rows("SELECT condition_id FROM default.resolutions_external_ingest")
        assert {row["condition_id"] for row in stored} == set(first) & place.truth.resolved.keys()
        assert not place.rows("SELECT name AS view_name FROM system.tables WHERE name = 'vw_resolutions_truth'")

        place.server.faults.clear()
        before = len(place.server.log)
        mended = ui.again_from_failure(failed)
        assert ui.ended(mended) == "COMPLETED_SUCCESS", ui.log.read_text()[-4000:]
        again = {run.partition: (run.status, run.assets) for run in ui.runs(mended)}
        assert again == {
            "worker_2_of_2": ("SUCCESS", frozenset(ASSETS[:2])),
            "": ("SUCCESS", frozenset(ASSETS[2:])),
        }
        assert len(ui.runs()) == 4
        asked = {i.removeprefix("0x") for entry in place.server.log.entries[before:] for i in entry.ids}
        assert asked == set(second)
        place.assert_right()


@contextmanager
def one_request_at_a_time(tmp_path, nursery):  # noqa: F811
    """A worker with twenty requests, the UI, and the fault by which the eighth request and all later ones hang."""
    with (
        world(tmp_path, nursery, workers=1, ids=1_000, GOLDSKY_BATCH_SIZE="50", GOLDSKY_CONCURRENT_REQUESTS="1",
              GOLDSKY_TIMEOUT_SECONDS="120", GOLDSKY_BATCHES_PER_REQUEST="1") as place,
        dagster_dev(tmp_path, place.env) as ui,
    ):  # fmt: skip
        yield place, ui, place.server.faults.add("hang", requests=range(8, 10_000), seconds=300)


def test_b1_a_run_that_is_killed_is_ended_and_its_partition_goes_on_where_it_stopped(tmp_path, nursery):  # noqa: F811
    with one_request_at_a_time(tmp_path, nursery) as (place, ui, hanging):
        killed = ui.launch("worker_1_of_1")
        until_hanging(ui, place)
        os.kill(ui.pid_of(killed), signal.SIGKILL)
        place.server.faults.remove(hanging)
        assert ui.finished(killed, 30) == "FAILURE"
        assert "signal 9" in ui.log_of(killed)
        # A run whose process died is the one thing that the daemon starts again by itself, and once.
        (second,) = ui.until("the run's retry", lambda: [r for r in ui.runs() if r.run_id != killed], 120)
        assert ui.finished(second.run_id) == "SUCCESS", ui.log_of(second.run_id)
        assert "a stale owner: it ended without releasing it" in ui.log_of(second.run_id)
        check_it_all(ui, place, interruptions=1)


def test_b1_a_run_that_died_with_the_whole_of_dagster_is_ended_by_the_next_run_of_its_worker(tmp_path, nursery):  # noqa: F811
    with one_request_at_a_time(tmp_path, nursery) as (place, ui, hanging):
        killed = ui.launch("worker_1_of_1")
        until_hanging(ui, place)
        ui.kill()
        place.server.faults.remove(hanging)
        ui.start()
        second = ui.launch("worker_1_of_1")
        assert ui.finished(second) == "SUCCESS", ui.log_of(second)
        assert ui.finished(killed, 10) == "FAILURE"
        assert "A later run of the worker has taken over" in ui.log_of(killed)
        check_it_all(ui, place, interruptions=1)


def test_b6_a_run_of_the_ui_waits_for_one_of_the_command_line_by_name_and_takes_over_when_that_is_killed(
    tmp_path, nursery  # noqa: F811
):  # fmt: skip
    with one_request_at_a_time(tmp_path, nursery) as (place, ui, hanging):
        command = [sys.executable, "-m", "dagster", "asset", "materialize", "-m", "payout_pipeline.definitions"]
        command += ["--select", ",".join(ASSETS[:2]), "--partition", "worker_1_of_1"]
        with (tmp_path / "materialize.log").open("w") as log:
            typed = subprocess.Popen(command, cwd=tmp_path, env=place.env, stdout=log, stderr=log)
        try:
            until_hanging(ui, place)
            (first,) = ui.runs()
            second = ui.launch("worker_1_of_1")
            who = (
                f"waiting for worker_1_of_1, held by process {typed.pid} on {socket.gethostname()}, run {first.run_id}"
            )
            ui.until("the second run to wait", lambda: who in ui.log_of(second), 60)
            assert ui.run(first.run_id).status == "STARTED"
        finally:
            typed.kill()
            typed.wait()
        place.server.faults.remove(hanging)
        assert ui.finished(second) == "SUCCESS", ui.log_of(second)
        assert f"took over worker_1_of_1 from process {typed.pid}" in ui.log_of(second)
        # Nobody saw the command die but the run that took over; nobody starts it again: the user typed it.
        assert ui.finished(first.run_id, 10) == "FAILURE"
        assert "A later run of the worker has taken over" in ui.log_of(first.run_id)
        check_it_all(ui, place, interruptions=1)


def until_hanging(ui: DagsterUi, place: World) -> None:
    """Wait until the run is in the middle of its fetch, with some batches done and a request that is not answered."""
    ui.until("a request that hangs", lambda: any("hang" in entry.faults for entry in place.server.log.entries), 90)
    time.sleep(0.5)


def check_it_all(ui: DagsterUi, place: World, interruptions: int) -> None:
    """Nobody tried more often than that, and after the view nothing is lost and little was asked twice."""
    assert len(ui.runs()) == 1 + interruptions
    view = ui.launch()
    assert ui.finished(view) == "SUCCESS", ui.log_of(view)
    place.assert_right(interruptions=interruptions, in_flight=1)
