"""The checkpoint and progress files: the guide's fields with the guide's meaning, and nothing strange believed."""

from __future__ import annotations

import itertools
import json
import os
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from payout_pipeline.errors import StorageError
from payout_pipeline.ids.chunks import prefix_range
from payout_pipeline.ledger import STATUSES, Pin, SnapshotInfo
from payout_pipeline.ledger.checkpoint import (
    BatchProgress,
    Checkpoint,
    CheckpointWriter,
    checkpoint_name,
    iso_time,
    progress_name,
    read_checkpoint,
    read_progress,
    worker_of_name,
    write_checkpoint,
    write_complete,
)
from payout_pipeline.storage import Store, open_store
from payout_pipeline_tests.ledger_fixtures import make_chunk

_NUMBERS = itertools.count()
START = datetime(2025, 11, 9, 10, 30, tzinfo=timezone.utc)
SAVED = datetime(2025, 11, 9, 11, 15, tzinfo=timezone.utc)


INFO = SnapshotInfo.planned(
    "worker_2_of_4",
    make_chunk(["0" * 64]),
    endpoint="http://goldsky/gn",
    batch_size=1000,
    schema_kind="payouts",
    pin=Pin(block_number=80_000_000, deployment="QmOne"),
)


@dataclass
class Run:
    """How far a run is."""

    info: SnapshotInfo = INFO
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATUSES, 0))
    batches_done: int = 0
    last_batch_index: int = -1
    batch_count: int = 43
    ids_total: int = 42_612

    def stands(self, batches: int, last: int, **counts: int) -> None:
        self.batches_done, self.last_batch_index = batches, last
        self.counts = {**dict.fromkeys(STATUSES, 0), **counts}


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(tmp_path)
    return open_store(f"memory://checkpoints-{os.getpid()}-{next(_NUMBERS)}")


def writer(store: Store, run: Run, interval: int = 10) -> CheckpointWriter:
    ticks = itertools.count()
    first = datetime(2025, 11, 9, 11, 15, tzinfo=timezone.utc)
    return CheckpointWriter(
        store,
        2,
        run,  # type: ignore[arg-type]
        interval=interval,
        clock=lambda: first + timedelta(milliseconds=1500 * next(ticks)),
    )


CHECKPOINT = Checkpoint(
    worker=2,
    batches_processed=25,
    last_batch_index=24,
    ids_processed=25_000,
    payouts_found=18_234,
    start_time=START,
    last_save_time=SAVED,
    errors=16,
    batches=43,
    ids=42_612,
    counts={"resolved": 18_234, "unresolved": 6_000, "absent": 750, "invalid": 6, "failed": 10},
    partition="worker_2_of_4",
    fingerprint="f" * 64,
    block_number=80_000_000,
    deployment="QmOne",
)


def test_the_file_has_the_guides_fields_with_the_guides_meaning(store: Store) -> None:
    write_checkpoint(store, CHECKPOINT)

    document = json.loads(store.read("payout-backfill-worker2.checkpoint.json"))

    assert dict(list(document.items())[:7]) == {
        "workerNum": 2,
        "batchesProcessed": 25,
        "lastBatchIndex": 24,
        "totalIdsProcessed": 25_000,
        "totalPayoutsFound": 18_234,
        "startTime": "2025-11-09T10:30:00.000Z",
        "lastSaveTime": "2025-11-09T11:15:00.000Z",
    }
    assert dict(list(document.items())[7:]) == {
        "totalErrors": 16,
        "totalBatches": 43,
        "totalIds": 42_612,
        "statusCounts": CHECKPOINT.counts,
        "partition": "worker_2_of_4",
        "blockNumber": 80_000_000,
        "deployment": "QmOne",
        "fingerprint": "f" * 64,
        "state": "running",
        "version": 1,
    }


def test_what_is_written_is_read_back(store: Store) -> None:
    said: list[str] = []
    assert read_checkpoint(store, 2, said.append) is None
    write_checkpoint(store, CHECKPOINT)

    assert read_checkpoint(store, 2, said.append) == CHECKPOINT
    assert read_checkpoint(store, 1, said.append) is None
    assert said == []


def test_names_and_times_are_the_guides() -> None:
    assert checkpoint_name(1) == "payout-backfill-worker1.checkpoint.json"
    assert progress_name(12) == "payout-backfill-worker12.progress.jsonl"
    assert [worker_of_name(name) for name in (checkpoint_name(7), progress_name(12), "ledger.parquet")] == [7, 12, None]
    east = timezone(timedelta(hours=5))
    assert iso_time(datetime(2025, 11, 9, 15, 30, 0, 1999, tzinfo=east)) == "2025-11-09T10:30:00.001Z"
    with pytest.raises(ValueError, match="time zone"):
        iso_time(datetime(2025, 11, 9))


# ---------------------------------------------------------------------------------------------------- the writer


def line(index: int) -> BatchProgress:
    return BatchProgress(
        timestamp=SAVED, worker=2, batch_index=index, ids_in_batch=1000, payouts_found=700,
        duration_ms=612, total_processed=1000, total_found=700, attempts=1,
    )  # fmt: skip


def test_every_batch_is_a_line_and_every_tenth_a_checkpoint(store: Store) -> None:
    run = Run()
    under_test = writer(store, run)
    refreshed = []
    for index in range(12):
        run.stands(index + 1, index, resolved=700 * (index + 1), absent=300 * (index + 1))
        refreshed.append(under_test.batch_done(index, ids=1000, found=700, seconds=0.6125, attempts=1))
    under_test.save()

    assert refreshed == [False] * 9 + [True] + [False] * 2
    lines = read_progress(store, 2)
    assert lines[0] == line(0)
    assert [(one.batch_index, one.total_processed, one.total_found) for one in lines] == [
        (index, 1000 * (index + 1), 700 * (index + 1)) for index in range(12)
    ]
    first = json.loads(store.read(progress_name(2)).splitlines()[0])
    assert list(first) == [
        "timestamp", "worker", "batch_index", "ids_in_batch", "payouts_found", "duration_ms", "total_processed",
        "total_found", "attempts",
    ]  # fmt: skip
    found = read_checkpoint(store, 2, pytest.fail)
    assert found is not None
    assert (found.batches_processed, found.last_batch_index, found.ids_processed) == (12, 11, 12_000)
    assert (found.payouts_found, found.errors, found.state) == (8400, 0, "running")
    assert (found.partition, found.block_number, found.deployment) == ("worker_2_of_4", 80_000_000, "QmOne")


def test_batches_out_of_order_are_counted_and_the_unbroken_row_is_named(store: Store) -> None:
    run = Run()
    run.stands(3, 1, resolved=4, failed=3, invalid=2)

    writer(store, run, interval=1).batch_done(5, ids=10, found=4, seconds=1, attempts=2)

    found = read_checkpoint(store, 2, pytest.fail)
    assert found is not None
    assert (found.batches_processed, found.last_batch_index, found.errors) == (3, 1, 5)


def test_a_complete_run_says_so_and_a_scan_has_no_number_of_ids(store: Store) -> None:
    scan = SnapshotInfo.planned(
        "worker_2_of_4", prefix_range(2, 4), endpoint="x", batch_size=1, schema_kind="payouts", pin=INFO.pin
    )
    counts = {**dict.fromkeys(STATUSES, 0), "resolved": 99_999}
    finished = {"counts": counts, "ids": 99_999, "batches": 64, "finished_at": scan.started_at}

    for info, ids in ((scan, None), (INFO, 99_999)):
        write_complete(store, 2, info.model_copy(update=finished))

        found = read_checkpoint(store, 2, pytest.fail)
        assert found is not None
        assert (found.state, found.ids, found.ids_processed) == ("complete", ids, 99_999)
        assert (found.batches_processed, found.last_batch_index, found.batches) == (64, 63, 64)


def test_a_new_snapshot_begins_a_new_progress_file_and_a_resumed_one_does_not(store: Store) -> None:
    run = Run()
    run.stands(1, 0, resolved=1)
    writer(store, run).batch_done(0, ids=1, found=1, seconds=0, attempts=1)
    under_test = writer(store, run, interval=1)
    under_test.begin()
    under_test.batch_done(1, ids=1, found=1, seconds=0, attempts=1)
    assert [one.batch_index for one in read_progress(store, 2)] == ([0, 1] if store.is_local else [1])

    run.stands(0, -1)
    under_test = writer(store, run, interval=1)
    under_test.begin()
    assert read_progress(store, 2) == []
    under_test.batch_done(7, ids=1, found=1, seconds=0, attempts=1)
    assert [one.batch_index for one in read_progress(store, 2)] == [7]


def test_a_torn_line_is_ended_and_costs_no_other(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    run = Run()
    writer(store, run).batch_done(0, ids=1, found=1, seconds=0, attempts=1)
    path = tmp_path / progress_name(2)
    path.write_bytes(path.read_bytes() + b'{"timestamp": "2025-11-0')

    run.stands(1, 0, resolved=1)
    after = writer(store, run)
    after.begin()
    after.batch_done(1, ids=1, found=1, seconds=0, attempts=1)
    after.batch_done(2, ids=1, found=1, seconds=0, attempts=1)

    assert [found.batch_index for found in read_progress(store, 2)] == [0, 1, 2]
    assert path.read_bytes().endswith(b"\n")
    assert len(path.read_bytes().splitlines()) == 4


def test_only_the_last_lines_are_read(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for index in range(300):
        store.append(progress_name(2), line(index).model_dump_json().encode() + b"\n")

    assert [one.batch_index for one in read_progress(store, 2, last=3)] == [297, 298, 299]


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    write_checkpoint(store, CHECKPOINT)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("payout_pipeline.storage.os.fsync", full)
    with pytest.raises(StorageError, match=r"worker2\.checkpoint\.json: No space left"):
        write_checkpoint(store, CHECKPOINT.model_copy(update={"batches_processed": 26}))
    monkeypatch.undo()

    assert read_checkpoint(store, 2, pytest.fail) == CHECKPOINT


def test_a_deployment_of_any_text_is_written_so_that_it_can_be_read(store: Store) -> None:
    for deployment in ("", "Qm\n\x1b[31m", "Q" * 10_000, "\x1b" * 300, "\U000e0001" * 300):
        pin = Pin(block_number=1, deployment=deployment)
        writer(store, Run(info=INFO.model_copy(update={"pin": pin}))).save()

        assert read_checkpoint(store, 2, pytest.fail) is not None


# ---------------------------------------------------------------------------------------------- what is not believed

TEXT = CHECKPOINT.model_dump_json(by_alias=True)
GOOD = json.loads(TEXT)

DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "truncated": TEXT.encode()[:200],
    "random bytes": bytes(range(256)),
    "zero bytes": bytes(400),
    "a list": b"[]",
    "null": b"null",
    "a number": b"1",
    "deep": b"[" * 200_000,
    "the guide's own, without ours": json.dumps(dict(list(GOOD.items())[:7])).encode(),
    "huge": b" " * (2 << 20),
    **{
        f"{name} = {value!r:.20}": json.dumps({**GOOD, name: value}).encode()
        for name, values in {
            "version": [2, 0, None, "1", True, 1.0],
            "workerNum": [0, 100, "2", 3],
            "batchesProcessed": [-1, 44, 10**30, 2.5, None, True, 24],
            "lastBatchIndex": [-2, 25, "24"],
            "totalIdsProcessed": [-5, 42_613, 24_999, float("nan")],
            "totalPayoutsFound": [25_001, -1],
            "totalErrors": [25_001],
            "totalIds": [1, "x"],
            "statusCounts": [None, [], {}, {**CHECKPOINT.counts, "failed": 11}, {**CHECKPOINT.counts, "other": 0}],
            "startTime": ["", "yesterday", "2025-13-09T10:30:00.000Z", 1_762_684_200],
            "lastSaveTime": [None],
            "partition": [None, "", "x" * 5000, "a\nb"],
            "fingerprint": ["", 7],
            "state": ["maybe"],
            "blockNumber": [-1, "x"],
            "deployment": [7],
        }.items()
        for value in values
    },
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_checkpoint_is_kept_aside_loudly_and_replaced(tmp_path: Path, content: bytes) -> None:
    store = open_store(tmp_path)
    store.write(checkpoint_name(2), content)
    said: list[str] = []

    assert read_checkpoint(store, 2, said.append) is None
    assert store.read(checkpoint_name(2)) == content  # who only looks changes nothing
    assert read_checkpoint(store, 2, said.append, repair=True) is None

    assert len(said) == 2
    assert all("CHECKPOINT DAMAGED" in line and len(line) < 700 and line.isprintable() for line in said)
    kept = [name for name in store.names() if ".corrupt-" in name]
    assert len(kept) == 1
    assert re.fullmatch(r"payout-backfill-worker2\.checkpoint\.json\.corrupt-\d{8}T\d{6}\.\d{6}Z", kept[0])
    assert store.read(kept[0]) == content
    assert read_checkpoint(store, 2, pytest.fail, repair=True) is None
    write_checkpoint(store, CHECKPOINT)
    assert read_checkpoint(store, 2, pytest.fail) == CHECKPOINT


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.dictionaries(st.sampled_from(sorted(GOOD)), json_values, max_size=4).map(
            lambda changes: json.dumps({**GOOD, **changes}).encode()
        ),
        st.integers(0, len(TEXT) - 2).map(lambda cut: TEXT.encode()[:cut]),
    )
)
@pytest.mark.slow
def test_whatever_is_in_the_file_is_a_sensible_checkpoint_or_none(tmp_path: Path, content: bytes) -> None:
    store = open_store(tmp_path)
    store.write(checkpoint_name(2), content)

    found = read_checkpoint(store, 2, lambda line: None)

    if found is not None:
        assert 0 <= found.last_batch_index + 1 <= found.batches_processed <= found.batches
        assert sum(found.counts.values()) == found.ids_processed
        assert found.ids is None or found.ids_processed <= found.ids
        assert Checkpoint.model_validate_json(found.model_dump_json(by_alias=True)) == found


@st.composite
def checkpoints(draw: st.DrawFn) -> Checkpoint:
    counts = {str(status): draw(st.integers(0, 10**9)) for status in STATUSES}
    processed = sum(counts.values())
    batches = draw(st.integers(0, 10**6))
    done = draw(st.integers(0, batches))
    moments = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(timezone.utc)).map(
        lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    )
    return Checkpoint(
        worker=draw(st.integers(1, 99)),
        batches_processed=done,
        last_batch_index=draw(st.integers(-1, done - 1)),
        ids_processed=processed,
        payouts_found=counts["resolved"],
        start_time=draw(moments),
        last_save_time=draw(moments),
        errors=counts["failed"] + counts["invalid"],
        batches=batches,
        ids=draw(st.none() | st.integers(processed, 2**53 - 1)),
        counts=counts,
        partition="worker_1_of_4",
        fingerprint="0" * 64,
        block_number=draw(st.none() | st.integers(0, 10**9)),
        deployment=draw(st.none() | st.just("QmOne")),
        state=draw(st.sampled_from(["running", "complete"])),
    )


@given(checkpoints())
def test_any_checkpoint_survives_its_file(checkpoint: Checkpoint) -> None:
    assert Checkpoint.model_validate_json(checkpoint.model_dump_json(by_alias=True)) == checkpoint


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=60) | st.just(b"good"), max_size=12))
def test_strange_lines_of_progress_cost_no_other(tmp_path: Path, lines: list[bytes]) -> None:
    good = line(3)
    text = good.model_dump_json().encode()
    store = open_store(tmp_path)
    store.write(progress_name(2), b"\n".join(text if one == b"good" else one.replace(b"\n", b"?") for one in lines))

    assert read_progress(store, 2) == [good] * lines.count(b"good")
