"""Where each worker stands, as read from the files of a run that somebody else is making."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from payout_pipeline.commands.status import render_status, status_command
from payout_pipeline.goldsky.pacing import open_store as open_budget
from payout_pipeline.goldsky.rate_limit import hold as pacing_hold
from payout_pipeline.ids.chunks import read_worklist
from payout_pipeline.ledger import DIRECTORY, STATUSES
from payout_pipeline.ledger.checkpoint import BatchProgress, Checkpoint, progress_name, write_checkpoint
from payout_pipeline.locks import FileLocks
from payout_pipeline.settings import Settings, load_settings
from payout_pipeline.status import Status, read_status
from payout_pipeline.storage import open_store
from payout_pipeline_tests.report_fixtures import (  # noqa: F401 - fixtures
    RESOLVED,
    House,
    condition,
    finished,
    house,
    runtime,
)

NOW = datetime(2025, 11, 9, 11, 0, tzinfo=timezone.utc)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "ids.txt").write_text("".join(f"{condition(number)}\n" for number in range(10_000)))
    return load_settings({}, condition_ids_file=tmp_path / "ids.txt", runtime_dir=str(tmp_path / "runtime"), workers=2)


def checkpoint(settings: Settings, worker: int = 1, **changes: Any) -> None:
    """A checkpoint of a run that began half an hour ago and has done 2 of 5 batches."""
    fields: dict[str, Any] = {
        "worker": worker,
        "batches_processed": 2,
        "last_batch_index": 1,
        "ids_processed": 2_000,
        "payouts_found": 1_500,
        "start_time": NOW - timedelta(minutes=30),
        "last_save_time": NOW - timedelta(seconds=20),
        "errors": 3,
        "batches": 5,
        "ids": 5_000,
        "counts": {**dict.fromkeys(STATUSES, 0), "resolved": 1_500, "unresolved": 497, "failed": 3},
        "partition": f"worker_{worker}_of_2",
        "fingerprint": "f" * 64,
    }
    write_checkpoint(open_store(settings.runtime_dir), Checkpoint(**(fields | changes)))


def progress(settings: Settings, *ages: float, worker: int = 1) -> None:
    """A line of 1,000 ids for each age in seconds, oldest first; each batch took a second."""
    store = open_store(settings.runtime_dir)
    for index, age in enumerate(ages):
        line = BatchProgress(
            timestamp=NOW - timedelta(seconds=age), worker=worker, batch_index=index, ids_in_batch=1_000,
            payouts_found=750, duration_ms=1_000, total_processed=1_000 * (index + 1), total_found=750 * (index + 1),
            attempts=1,
        )  # fmt: skip
        store.append(progress_name(worker), line.model_dump_json().encode() + b"\n")


def held(settings: Settings, worker: int = 1, purpose: str = "goldsky_payouts") -> Any:
    return FileLocks(Path(settings.runtime_dir) / "locks").hold(f"worker_{worker}_of_2", purpose=purpose)


def first(settings: Settings) -> Any:
    return read_status(settings, now=NOW).workers[0]


def test_before_a_run_every_worker_waits_with_its_number_of_ids(settings: Settings) -> None:
    status = read_status(settings, now=NOW)
    assert [(w.state, w.ids, w.total_ids, w.partition) for w in status.workers] == [
        ("waiting", 0, 5_000, "worker_1_of_2"),
        ("waiting", 0, 5_000, "worker_2_of_2"),
    ]
    assert not Path(settings.runtime_dir).exists(), "looking leaves nothing behind"


def test_who_asks_often_reads_the_input_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    read_worklist(settings)

    def again(*_: object) -> None:
        raise AssertionError("the input was read again")

    monkeypatch.setattr("payout_pipeline.ids.today.read_ids", again)
    assert [worker.total_ids for worker in read_status(settings).workers] == [5_000, 5_000]


def test_the_rate_limit_of_a_remote_runtime_directory_is_found_where_it_is_kept(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    remote = settings.model_copy(update={"runtime_dir": "memory://status"})
    assert read_status(remote).answers_429 == 0
    assert list((tmp_path / "tmp").iterdir()) == []  # a look makes nothing
    budget = open_budget(remote.goldsky_endpoint, remote.goldsky_rate_limit, runtime_dir=remote.runtime_dir)
    budget.change(lambda shared, now: pacing_hold(shared, now, 30, "429"))
    budget.close()
    found = read_status(remote)
    assert (found.answers_429, round(found.hold_seconds)) == (1, 30)


def test_a_running_worker_has_rate_time_left_and_the_newest_totals(settings: Settings) -> None:
    checkpoint(settings)
    progress(settings, 30, 20, 10)
    with held(settings):
        worker = first(settings)
    assert (worker.state, worker.ids, worker.found, worker.errors) == ("running", 3_000, 2_250, 3)
    assert worker.last_batch_age == 10
    assert worker.rate == pytest.approx(100, rel=0.05)
    assert worker.seconds_left == pytest.approx(2_000 / worker.rate, rel=0.01)
    assert read_status(settings, now=NOW).workers[1].state == "waiting"


def test_a_worker_without_a_batch_for_five_minutes_is_stuck_and_its_process_is_named(settings: Settings) -> None:
    checkpoint(settings, last_save_time=NOW - timedelta(seconds=400))
    progress(settings, 700, 400)
    with held(settings):
        sidecar = Path(settings.runtime_dir) / "locks" / "worker_1_of_2.holder.json"
        note = json.loads(sidecar.read_text())
        sidecar.write_text(json.dumps(note | {"since": (NOW - timedelta(hours=1)).isoformat()}))
        worker = first(settings)
        assert worker.state == "stuck"
        assert "no batch for 6 min 40 s" in worker.message
        assert f"process {note['pid']}" in worker.message


def test_a_run_that_died_is_failed_and_says_that_it_continues(settings: Settings) -> None:
    checkpoint(settings)
    progress(settings, 20)
    worker = first(settings)
    assert worker.state == "failed"
    assert "after 2 of 5 batches, 3 ids without a usable answer; the same command continues" in worker.message


def test_a_finished_worker_is_done_and_a_new_run_of_it_starts_at_nothing(settings: Settings) -> None:
    complete = {"ids_processed": 5_000, "batches_processed": 5, "last_batch_index": 4, "state": "complete"}
    complete["counts"] = {**dict.fromkeys(STATUSES, 0), "resolved": 1_500, "absent": 3_497, "failed": 3}
    checkpoint(settings, **complete)
    assert first(settings).state == "failed", "complete without a ledger is no success"
    ledger = Path(settings.runtime_dir) / DIRECTORY / "worker_1_of_2" / "ledger.parquet"
    ledger.parent.mkdir(parents=True)
    ledger.touch()
    worker = first(settings)
    assert (worker.state, worker.ids, worker.found) == ("done", 5_000, 1_500)
    with held(settings):
        again = first(settings)
        assert (again.state, again.ids) == ("running", 0)
    with held(settings, purpose="resolutions_external_ingest"):
        loading = first(settings)
        assert (loading.state, loading.message, loading.ids) == ("running", "loading into ClickHouse", 5_000)


@pytest.mark.parametrize("text", ["", "{", "null", '{"version": 99}', "\x00\xff", '{"workerNum": 1e400}'])
def test_a_damaged_checkpoint_is_said_and_breaks_nothing(settings: Settings, text: str) -> None:
    runtime_dir = Path(settings.runtime_dir)  # - not the fixture of that name
    runtime_dir.mkdir()
    path = runtime_dir / "payout-backfill-worker1.checkpoint.json"
    path.write_text(text)
    worker = first(settings)
    assert (worker.state, worker.ids) == ("waiting", 0)
    assert "CHECKPOINT DAMAGED" in worker.message
    assert path.read_text() == text, "only a run sets it aside"


def test_a_checkpoint_of_another_number_of_workers_is_not_this_workers(settings: Settings) -> None:
    checkpoint(settings, partition="worker_1_of_4")
    worker = first(settings)
    assert (worker.state, worker.ids) == ("waiting", 0)
    assert "worker_1_of_4" in worker.message


def test_the_rows_of_clickhouse_are_counted_when_it_is_free(finished: House) -> None:  # noqa: F811
    status = read_status(finished.settings, count_rows=True)
    assert (status.rows, status.rows_age, status.rows_note) == (len(RESOLVED), 0.0, "")
    assert status.view_rows == len(RESOLVED)
    finished.run("DROP VIEW {db}_clean.vw_resolutions_truth")
    status = read_status(finished.settings, count_rows=True)
    assert (status.rows, status.view_rows, status.view_note) == (len(RESOLVED), None, "not built yet")


_HOLDER = """
import sys, time
from payout_pipeline.settings import load_settings
from payout_pipeline.warehouse.client import Warehouse
settings = load_settings({}, runtime_dir=sys.argv[1])
with Warehouse(settings).session("a long load") as session:
    session.command("SELECT 1", doing="a test")
    print("holding", flush=True)
    time.sleep(60)
"""


def test_while_a_run_has_the_database_the_last_count_is_given_with_its_age_in_time(settings: Settings) -> None:
    Path(settings.runtime_dir).mkdir()
    measured = datetime.now(timezone.utc) - timedelta(seconds=90)
    document = {"rows": 12_345, "measured_at": measured.isoformat(timespec="seconds")}
    (Path(settings.runtime_dir) / "warehouse-totals.json").write_text(json.dumps(document))
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, settings.runtime_dir], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "holding"
            started = time.monotonic()
            status = read_status(settings, count_rows=True)
            assert time.monotonic() - started < 3
            assert process.poll() is None, "the run is not disturbed"
        finally:
            process.kill()
    assert status.rows == 12_345
    assert 80 < status.rows_age < 150
    assert "a long load" in status.rows_note
    assert "12,345 as counted 1 min" in shown(status)


def shown(status: Status) -> str:
    out = StringIO()
    Console(file=out, width=160).print(render_status(status))
    return out.getvalue()


@pytest.fixture
def environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings as the commands read them."""
    monkeypatch.setenv("CONDITION_IDS_FILE", str(settings.condition_ids_file))
    monkeypatch.setenv("PAYOUT_RUNTIME_DIR", settings.runtime_dir)
    monkeypatch.setenv("PAYOUT_WORKERS", "2")
    return settings


def test_the_command_prints_bars_or_json_and_ends_with_0(environment: Settings) -> None:
    checkpoint(environment)
    progress(environment, 20)
    text = CliRunner().invoke(status_command, [])
    assert text.exit_code == 0, text.output
    assert "2,000 of 5,000" in text.output
    found = json.loads(CliRunner().invoke(status_command, ["--json"]).output)
    assert [worker["state"] for worker in found["workers"]] == ["failed", "waiting"]
    assert found["rows"] is None


def watch() -> list[dict[str, Any]]:
    """What `status --watch --json` says until it ends."""
    watched = CliRunner().invoke(status_command, ["--watch", "--json", "--every", "0.2"])
    assert watched.exit_code == 0, watched.output
    return [json.loads(line) for line in watched.output.splitlines()]


def complete(settings: Settings, worker: int) -> None:
    """The files of a worker that is done."""
    counts = {**dict.fromkeys(STATUSES, 0), "resolved": 5_000}
    checkpoint(settings, worker, ids_processed=5_000, batches_processed=5, state="complete", errors=0, counts=counts)
    ledger = Path(settings.runtime_dir) / DIRECTORY / f"worker_{worker}_of_2" / "ledger.parquet"
    ledger.parent.mkdir(parents=True)
    ledger.touch()


@pytest.mark.slow
def test_a_watch_waits_for_a_backfill_that_is_starting_and_ends_after_its_view(
    environment: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers of an earlier backfill are done; a new one is beginning, and has not said so yet."""
    monkeypatch.setattr("payout_pipeline.commands.status.START_SECONDS", 5.0)
    for worker in (1, 2):
        complete(environment, worker)
    record = Path(environment.runtime_dir) / "backfill.json"

    def backfill() -> None:
        time.sleep(1)
        record.write_text("{}")
        with held(environment, 1), held(environment, 2):
            time.sleep(1)
        time.sleep(1)  # the view
        record.unlink()

    thread = threading.Thread(target=backfill)
    thread.start()
    lines = watch()
    thread.join()
    states = ["running" if any(w["state"] == "running" for w in line["workers"]) else "done" for line in lines]
    assert "running" in states
    assert states[-1] == "done"
    assert any(line["backfill"] for line in lines if line["workers"][0]["state"] == "done"), "the view was waited for"
    assert not lines[-1]["backfill"]


def test_a_watch_ends_by_itself_where_nothing_starts(environment: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("payout_pipeline.commands.status.START_SECONDS", 0.5)
    for worker in (1, 2):
        checkpoint(environment, worker)
    assert watch()[-1]["workers"][0]["state"] == "failed"


def test_a_watch_counts_the_rows_once_more_at_its_end(
    finished: House,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A count is kept for ten seconds while workers run; what is shown last is of the end."""
    monkeypatch.setattr("payout_pipeline.commands.status.START_SECONDS", 0.0)
    counts = [Status(NOW, (), rows=0), read_status(finished.settings, count_rows=True)]

    def read(*_: Any, **__: Any) -> Status:
        return counts.pop(0)

    monkeypatch.setattr("payout_pipeline.status.read_status", read)
    assert [line["rows"] for line in watch()] == [0, len(RESOLVED)]


def test_messages_of_files_cannot_style_the_page(settings: Settings) -> None:
    Path(settings.runtime_dir).mkdir()
    (Path(settings.runtime_dir) / "payout-backfill-worker1.checkpoint.json").write_text('{"x": "[bold red]\\u001b[31m"')
    text = shown(read_status(settings, now=NOW))
    assert "\x1b" not in text
    assert render_status(read_status(settings, now=NOW)) is not None
