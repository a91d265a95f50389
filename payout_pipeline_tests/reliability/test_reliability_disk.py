"""D1-D3: full and read-only disks, damaged files. Nothing is marked done that is not there."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from payout_pipeline.errors import StorageError
from payout_pipeline.truth import rebuild_truth
from payout_pipeline_tests.chaos.fixtures import case, nursery, served  # noqa: F401
from payout_pipeline_tests.chaos.inline import inline
from payout_pipeline_tests.chaos.world import world
from payout_pipeline_tests.oracle import ledger_rows

pytestmark = [pytest.mark.slow]


@contextlib.contextmanager
def mounted(place: Path, options: str) -> Iterator[Path]:
    """A small tmpfs at ``place``; skipped where this user may not mount."""
    place.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("no right to mount a tmpfs")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_d1_a_full_disk_is_a_clean_error_and_works_once_there_is_room(tmp_path, served):  # noqa: F811
    variables = {
        **served.env,
        "PAYOUT_RUNTIME_DIR": str(tmp_path / "small" / "runtime"),
        "GOLDSKY_CONCURRENT_REQUESTS": "2",
    }
    with mounted(tmp_path / "small", "size=6m") as small, inline(tmp_path, ids=10_000, **variables) as place:
        (small / "runtime").mkdir()
        room = os.statvfs(small).f_bavail * os.statvfs(small).f_frsize
        ballast = small / "ballast"
        ballast.write_bytes(b"x" * (room - 640 * 1024))
        with pytest.raises(StorageError) as error:
            place.fetch()
        assert str(small) in str(error.value)
        assert "bytes are needed" in str(error.value)
        assert ledger_rows(place.runtime, 1) == []
        durable = len(list(place.runtime.glob("goldsky_payouts/*/_running/batch-*.parquet")))
        assert durable
        ballast.unlink()
        before = len(place.server.log)
        place.backfill()
        place.assert_right()
        again = {i.removeprefix("0x") for entry in place.server.log.entries[before:] for i in entry.ids}
        assert len(again - place.truth.absent) <= 10_000 - 100 * durable  # an absence has a second answer


def test_d2_a_read_only_directory_is_said_before_the_first_request(tmp_path):
    fixed = tmp_path / "fixed"
    with mounted(fixed, "size=64k,ro"), inline(tmp_path, PAYOUT_RUNTIME_DIR=str(fixed / "runtime")) as place:
        # The look at the start says it, not the lock, the spool or the limiter's file, which would stumble over it later.
        with pytest.raises(StorageError, match=f"cannot write {fixed / 'runtime'}"):
            place.fetch()
        assert len(place.server.log) == 0


def test_d2_the_command_says_it_in_one_line_and_starts_nothing(tmp_path, nursery):  # noqa: F811
    fixed = tmp_path / "fixed"
    with mounted(fixed, "size=64k,ro"), world(tmp_path, nursery, PAYOUT_RUNTIME_DIR=str(fixed / "runtime")) as place:
        run = place.run("backfill")
        assert run.code in (1, 2)
        assert f"cannot write {fixed / 'runtime'}" in run.text()
        assert "Traceback" not in run.text()
        assert len(place.server.log) == 0


def test_d2_a_file_in_the_place_of_the_directory_is_said_before_the_first_request(case):  # noqa: F811
    case.runtime.write_text("a file")
    with pytest.raises(StorageError, match=f"cannot write {case.runtime}"):
        case.fetch()
    assert len(case.server.log) == 0


DAMAGE = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "random": lambda content: os.urandom(200),
    "another shape": lambda content: b"[1, 2, 3]",
    "a future version": lambda content: json.dumps({**json.loads(content), "version": 99}).encode(),
    "absurd numbers": lambda content: json.dumps({**json.loads(content), "totalIdsProcessed": -(10**30)}).encode(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_d3_a_damaged_checkpoint_is_kept_aside_and_made_anew_from_the_ledger(tmp_path, damage):
    with inline(tmp_path, ids=400, GOLDSKY_BATCH_SIZE="20", GOLDSKY_CONCURRENT_REQUESTS="1") as place:
        place.server.faults.add("errors", requests=range(12, 1000), message="Type `Condition` has no field `payouts`")
        with pytest.raises(Exception, match="has no field"):
            place.fetch()
        checkpoint = place.runtime / "payout-backfill-worker1.checkpoint.json"
        checkpoint.write_bytes(DAMAGE[damage](checkpoint.read_bytes()))
        damaged = checkpoint.read_bytes()
        place.server.faults.clear()
        before = len(place.server.log)
        place.backfill()
        place.assert_right()
        aside = list(place.runtime.rglob("*.corrupt-*"))
        assert [path.read_bytes() for path in aside] == [damaged]
        assert "checkpoint" in place.log_text
        assert aside[0].name in place.log_text
        assert json.loads(checkpoint.read_text())["totalIdsProcessed"] == 400
        assert (
            sum(entry.id_count for entry in place.server.log.entries[before:]) < 400
        )  # finished batches were not asked again


def _one_bit(content: bytes) -> bytes:
    """Some bit within the numbers: everything is still readable, and one of them is another."""
    at = len(content) // 3
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


DAMAGE["one bit"] = _one_bit


@pytest.mark.parametrize("damage", ["truncated", "empty", "random", "one bit"])
def test_d3_a_damaged_finished_ledger_is_never_loaded(case, damage):  # noqa: F811
    case.backfill()
    ledger = case.runtime / "goldsky_payouts" / "worker_1_of_1" / "ledger.parquet"
    ledger.write_bytes(DAMAGE[damage](ledger.read_bytes()))
    with pytest.raises(Exception, match=r"worker_1_of_1|ledger"):
        case.load()
    case.backfill()
    case.assert_right()


def test_d3_a_stray_temporary_file_is_no_batch(case):  # noqa: F811
    case.server.faults.add("errors", requests=range(3, 1000), message="Type `Condition` has no field `payouts`")
    with pytest.raises(Exception, match="has no field"):
        case.fetch()
    running = next(case.runtime.glob("goldsky_payouts/*/_running"))
    (running / "batch-00001.parquet.tmp-1-1").write_bytes(b"half a file")
    case.server.faults.clear()
    case.fetch()
    case.load()
    rebuild_truth(case.settings, log=case.log)
    case.assert_right()
