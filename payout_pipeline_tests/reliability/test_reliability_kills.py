"""B1-B6: killed, stopped, interrupted, started twice. What was finished stays finished, and nothing waits for a dead one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from payout_pipeline.errors import InterruptedRunError, LockHeldError
from payout_pipeline_tests.chaos.fixtures import case, nursery  # noqa: F401
from payout_pipeline_tests.chaos.inline import inline
from payout_pipeline_tests.chaos.world import world
from payout_pipeline_tests.clickhouse_front import Faults

pytestmark = pytest.mark.slow


@pytest.mark.slow
def test_b1_killed_between_the_insert_and_its_record_the_rows_are_stored_once(tmp_path, nursery):  # noqa: F811
    """The insert is executed, its answer never comes, and the whole session is killed while it waits."""
    with world(tmp_path, nursery, front=True, workers=1) as place:
        assert place.front is not None
        place.front.faults(Faults(matching="INSERT", times=1, lose_answer=True))
        run = place.start()
        deadline = time.monotonic() + 60
        while not any("INSERT" in s["sql"] for s in place.front.counters().statements) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.1)
        run.kill_all()
        place.exits.append(run.wait(10))
        assert not (place.runtime / "warehouse-totals.json").exists()  # it had not come to record anything
        assert place.exits == [-9]
        place.front.stop(kill=True)
        place.front.start()
        assert place.run().code == 0
        place.assert_right(interruptions=1)


def test_b2_a_second_signal_ends_the_command_at_once(tmp_path, nursery):  # noqa: F811
    with world(tmp_path, nursery, workers=1, GOLDSKY_TIMEOUT_SECONDS="60") as place:
        place.server.faults.add("hang", requests=range(3, 1000), seconds=60)
        run = place.start()
        deadline = time.monotonic() + 60
        while len(place.server.log) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        for child in run.children():
            os.kill(child, signal.SIGSTOP)  # it cannot end in order, so the command would wait out its grace
        run.send(signal.SIGTERM)
        assert not run.ended(1.0)
        run.send(signal.SIGTERM)
        assert run.wait(5) in (143, -15)
        run.kill_all()
        assert run.gone(10)


def test_b3_interrupted_ten_times_progress_only_grows_and_never_passes_the_input(tmp_path):
    with inline(
        tmp_path, ids=1_200, config={"latency": 0.02}, GOLDSKY_BATCH_SIZE="20", GOLDSKY_CONCURRENT_REQUESTS="1"
    ) as place:
        seen = []
        for _ in range(10):
            before = len(place.server.log.batches())
            over = threading.Event()
            stop = threading.Thread(target=_interrupt_after, args=(place.server.log, before + 4, over))
            stop.start()
            try:
                with pytest.raises(InterruptedRunError) as error:
                    place.fetch()
            finally:
                over.set()
                stop.join()
            assert error.value.exit_code == 128 + signal.SIGTERM
            seen.append(json.loads((place.runtime / "payout-backfill-worker1.checkpoint.json").read_text()))
        done = [checkpoint["totalIdsProcessed"] for checkpoint in seen]
        assert done == sorted(done)
        assert len(set(done)) == len(done)
        assert all(0 < count <= 1_200 for count in done)
        assert [c["batchesProcessed"] for c in seen] == sorted(c["batchesProcessed"] for c in seen)
        place.backfill()
        place.assert_right(interruptions=10, in_flight=1)


def _interrupt_after(log, batches, over):
    """SIGTERM to this process while its fetch is going; never after, when nobody would catch it."""
    while len(log.batches()) < batches and not over.wait(0.002):
        pass
    if not over.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


_MEASURED = """
import logging, re
from pathlib import Path
from payout_pipeline.fetch import fetch_worker
from payout_pipeline.settings import load_settings
fetch_worker(load_settings(), 1, log=logging.getLogger("measured"))
# Not ru_maxrss, which begins with the memory of the process that started this one.
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory is read from /proc")
def test_b5_four_times_the_ids_cost_hardly_more_memory(tmp_path):
    peaks = {}
    for count in (60_000, 240_000):
        with inline(tmp_path / str(count), ids=count, GOLDSKY_BATCH_SIZE="1000", GOLDSKY_TIMEOUT_SECONDS="60") as place:
            done = subprocess.run(
                [sys.executable, "-c", _MEASURED], env={**os.environ, **place.env}, capture_output=True, text=True,
                timeout=400, check=True,
            )  # fmt: skip
            peaks[count] = int(done.stdout.split()[-1]) / 1024
    assert peaks[240_000] - peaks[60_000] < 30, peaks  # MB


_HOLDER = """
import logging, sys
from payout_pipeline.worker_lock import worker_lock
from payout_pipeline.settings import load_settings
with worker_lock(load_settings(), "worker_1_of_1", purpose="goldsky_payouts", run_id="the-other-run", log=logging.getLogger()):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_b6_a_second_run_of_a_worker_is_refused_and_told_of_the_first_until_that_one_is_dead(case, monkeypatch):  # noqa: F811
    monkeypatch.setattr("payout_pipeline.worker_lock.LOCK_WAIT_SECONDS", 0.5)
    other = subprocess.Popen(
        [sys.executable, "-c", _HOLDER], env={**os.environ, **case.env}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(LockHeldError, match=rf"{other.pid}[\s\S]*the-other-run"):
            case.fetch()
        assert len(case.server.log) == 0
    finally:
        other.kill()
        other.communicate()
    case.backfill()
    case.assert_right()


def test_b6_two_backfills_at_once_store_every_row_once_and_ask_no_id_twice(tmp_path, nursery):  # noqa: F811
    with world(tmp_path, nursery, workers=1, latency=0.3) as place:
        first, second = place.start(), place.start()
        codes = sorted((first.wait(120), second.wait(120)))
        said = first.text() + second.text()
        assert set(codes) <= {0, 1}, said
        if codes[0] == 1:
            # Each report saw checks that the other one had not made yet, and neither said success too early.
            assert "running" in said or "outdated" in said, said
            codes[0] = place.run().code or 0
        place.exits.append(codes[0])
        assert codes[0] == 0, said
        place.assert_right()
        if "FAILED" in said:  # one that refused, instead of waiting, names the holder
            assert re.search(r"held by|holds|process \d+", first.text() + second.text())


def test_b6_a_dead_holders_lock_file_is_no_obstacle(case):  # noqa: F811
    case.fetch()
    locks = case.runtime / "locks"
    assert locks.is_dir()
    for path in list(Path(locks).iterdir()):
        path.write_text(json.dumps({"pid": 2**22 + 1, "purpose": "gone", "run_id": "gone"}))
    case.backfill()
    case.assert_right()
    assert Counter(case.statuses().values())["resolved"] == len(case.truth.resolved)
