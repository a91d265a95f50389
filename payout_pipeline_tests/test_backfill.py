"""``payout-pipeline backfill`` as a family of processes: what is looked at before the workers, and the view that waits."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from payout_pipeline_tests.chaos.fixtures import nursery  # noqa: F401
from payout_pipeline_tests.chaos.world import ask_front, world

pytestmark = pytest.mark.xdist_group("chaos")


@pytest.mark.slow
def test_c5_a_table_that_cannot_hold_the_vectors_ends_the_backfill_before_any_run_and_request(tmp_path, nursery):  # noqa: F811
    with world(tmp_path, nursery, ids=200, front=True) as place:
        assert place.front is not None
        ask_front(
            place.front,
            "CREATE TABLE default.resolutions_external_ingest (condition_id String, payout_numerators Array(UInt8), "
            "payout_denominator UInt8, winning_index Int32, resolved_at Nullable(DateTime), source String) "
            "ENGINE = Memory",
        )
        run = place.run()
        assert run.code == 1
        assert "CREATE TABLE" in run.text()
        assert len(place.server.log) == 0
        assert not list((place.runtime / "dagster" / "history" / "runs").glob("*-*.db")), "a run was begun"
        ask_front(place.front, "DROP TABLE default.resolutions_external_ingest")
        assert place.run().code == 0
        place.assert_right(exits=[0])


@pytest.mark.slow
def test_f4_a_database_that_is_not_there_ends_the_backfill_with_the_name_of_the_variable(tmp_path, nursery):  # noqa: F811
    with world(tmp_path, nursery, ids=200, front=True) as place:
        run = place.run(CLICKHOUSE_PORT="1", CLICKHOUSE_WAIT_SECONDS="1")
        assert run.code in (1, 2)
        assert "CLICKHOUSE_" in run.text()
        assert len(place.server.log) == 0


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the process by /proc")
@pytest.mark.slow
def test_b1_the_view_is_rebuilt_although_the_process_that_waited_for_it_was_killed(tmp_path, nursery):  # noqa: F811
    with world(
        tmp_path, nursery, ids=600, latency=0.2, GOLDSKY_BATCH_SIZE="50", GOLDSKY_CONCURRENT_REQUESTS="1"
    ) as place:
        run = place.start()
        deadline = time.monotonic() + 60
        while len(place.server.log) < 4:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        busy = {pid for pid in run.children() if _has_sockets(pid)}
        waiting = max(set(run.children()) - busy)  # the last one that was forked
        os.kill(waiting, signal.SIGKILL)
        place.exits.append(run.wait(90))
        assert place.exits == [0], run.text()
        place.assert_right()


def _has_sockets(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return any(str(entry.readlink()).startswith("socket:") for entry in Path(f"/proc/{pid}/fd").iterdir())
    return False
