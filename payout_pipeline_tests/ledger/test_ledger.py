"""The ledger: every id once, whatever dies and wherever, and nothing finished is asked again."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from payout_pipeline.errors import LedgerError, StorageError
from payout_pipeline.ids.chunks import Chunk, PrefixRange, prefix_range
from payout_pipeline.ledger import (
    STATUSES,
    Accounting,
    Ledger,
    Pin,
    RunningLedger,
    SnapshotInfo,
    ledger_schema,
    start_run,
)
from payout_pipeline.ledger import files as ledger_files
from payout_pipeline.ledger.accounting import account
from payout_pipeline.payouts import InvalidVector, Vector, parse_payouts
from payout_pipeline.storage import Store, open_store
from payout_pipeline_tests.ledger_fixtures import make_chunk, make_rows

NOW = datetime(2025, 11, 9, 10, 30, 0, 123000, tzinfo=timezone.utc)
PIN = Pin(block_number=1000, deployment="QmOne", head_number=1250)
PARTITION = "worker_1_of_4"
RAW = ['["0","1"]', '["1","0"]', '["0.5","0.5"]', '["0.54","0.46"]']
_NUMBERS = itertools.count()


def make_ids(count: int, salt: str = "") -> list[str]:
    return [hashlib.sha256(f"{salt}{number}".encode()).hexdigest() for number in range(count)]


def truth(condition_id: str, resolved_later: bool = False) -> tuple[str, str | None]:
    """The status of an id and its payouts as answered: known from the id alone."""
    kind = int(condition_id[:8], 16) % 10
    if kind < 6 or (kind < 8 and resolved_later):
        return "resolved", RAW[int(condition_id[8:10], 16) % len(RAW)]
    if kind < 8:
        return "unresolved", None
    return ("absent", None) if kind == 8 else ("invalid", '["1","1"]')


def answer(ids: list[str], later: bool = False, failing: frozenset[str] = frozenset(), block: int = 1000) -> pa.Table:
    answered: dict[str, Vector | InvalidVector | None] = {}
    raw: dict[str, str | None] = {}
    for condition_id in ids:
        status, text = truth(condition_id, later)
        if status != "absent" and condition_id not in failing:
            answered[condition_id] = parse_payouts(json.loads(text)) if text else None
            raw[condition_id] = text
    failed = {condition_id: "HTTP 503 after 3 retries" for condition_id in ids if condition_id in failing}
    return make_rows(ids, answered, raw=raw, block_number=block, fetched_at=NOW, failed=failed)


def expected(ids: list[str], later: bool = False) -> Counter[tuple[str, str, str | None]]:
    return Counter((condition_id, *truth(condition_id, later)) for condition_id in ids)


def stored(ledger: Ledger) -> Counter[tuple[str, str, str | None]]:
    return Counter(
        (row["condition_id"], row["status"], row["payouts"])
        for batch in ledger.read(["condition_id", "status", "payouts"])
        for row in batch.to_pylist()
    )


def planned(ids: Chunk | PrefixRange, **changes: Any) -> SnapshotInfo:
    facts = {"endpoint": "http://goldsky/gn", "batch_size": 5, "schema_kind": "payouts", "pin": PIN}
    return SnapshotInfo.planned(PARTITION, ids, **(facts | changes))


def begin(ledger: Ledger, ids: Chunk | PrefixRange, **changes: Any) -> RunningLedger:
    return start_run(ledger, planned(ids, **changes).model_copy(update={"partition": ledger.partition}), ids)


def run(ledger: Ledger, ids: Chunk, later: bool = False, **changes: Any) -> RunningLedger:
    running = begin(ledger, ids, **changes)
    for index in running.missing_batches:
        running.write_batch(index, answer(running.ids_to_ask(index), later, block=running.pin.block_number))
    running.finish()
    return running


def on_disk(running: RunningLedger) -> set[int]:
    return set(range(running.batch_count)) - set(running.missing_batches)


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(tmp_path)
    return open_store(f"memory://ledgers-{os.getpid()}-{next(_NUMBERS)}")


# -------------------------------------------------------------------------------------------------- one run


def test_a_finished_run_has_each_id_once_with_all_that_is_known_of_it(store: Store) -> None:
    ids = make_ids(23)
    chunk = make_chunk(ids)
    ledger = Ledger(store, PARTITION)
    running = begin(ledger, chunk)
    assert (running.batch_count, running.missing_batches) == (5, [0, 1, 2, 3, 4])
    assert running.ids_to_ask(4) == ids[20:]

    for index in (3, 0, 4, 1, 2):
        running.write_batch(index, answer(running.ids_to_ask(index)))
    info = running.finish({"requests": 5})

    counts = Counter(truth(condition_id)[0] for condition_id in ids)
    assert stored(ledger) == expected(ids)
    assert info.counts == {status: counts[status] for status in STATUSES}
    assert (info.ids, info.payouts_found, info.errors) == (23, counts["resolved"], counts["invalid"])
    assert (info.pin, info.stats, info.carried, info.batches) == (PIN, {"requests": 5}, 0, 5)
    assert ledger.finished() == info
    assert ledger.verify(chunk) == Accounting(23, 23, 0, 0, 0, info.counts)
    assert ledger.verify(chunk).closes
    assert store.names(ledger.prefix) == ["ledger.parquet"]


def test_the_directory_is_read_by_pandas_each_id_once_also_while_a_run_is_going(tmp_path: Path) -> None:
    ids = make_ids(12)
    ledger = Ledger(tmp_path, PARTITION)
    run(ledger, make_chunk(ids))
    second = begin(ledger, make_chunk(ids))
    second.write_batch(0, answer(second.ids_to_ask(0)))
    (tmp_path / "goldsky_payouts" / PARTITION / "_running" / "batch-00077.parquet").write_bytes(b"junk")
    begin(ledger, make_chunk(ids))

    frame = pd.read_parquet(tmp_path / "goldsky_payouts" / PARTITION)

    assert sorted(frame["condition_id"]) == sorted(ids)
    assert list(frame.columns) == list(ledger_schema().names)


def test_large_vectors_stay_exact_on_disk(tmp_path: Path) -> None:
    ids = make_ids(1)
    vector = Vector((2**64 - 2, 1), 2**64 - 1)
    ledger = Ledger(tmp_path, PARTITION)
    running = begin(ledger, make_chunk(ids))
    running.write_batch(0, make_rows(ids, {ids[0]: vector}, raw={}, block_number=1, fetched_at=NOW))
    running.finish()

    row = next(ledger.read()).to_pylist()[0]

    assert (tuple(row["payout_numerators"]), row["payout_denominator"]) == (vector.numerators, vector.denominator)


def test_an_empty_chunk_finishes_with_no_rows(store: Store) -> None:
    ledger = Ledger(store, PARTITION)
    chunk = make_chunk([])

    run(ledger, chunk)

    info = ledger.finished()
    assert info is not None
    assert (info.ids, sum(info.counts.values()), info.batches) == (0, 0, 0)
    assert stored(ledger) == Counter()
    assert ledger.verify(chunk).closes


def test_columns_and_statuses_can_be_chosen(tmp_path: Path) -> None:
    ids = make_ids(30)
    ledger = Ledger(tmp_path, PARTITION)
    run(ledger, make_chunk(ids))

    batches = list(ledger.read(["payout_denominator", "condition_id"], ["resolved"]))

    assert {batch.schema.names[0] for batch in batches} == {"payout_denominator"}
    found = [condition_id for batch in batches for condition_id in batch.column(1).to_pylist()]
    assert Counter(found) == Counter(one for one in ids if truth(one)[0] == "resolved")
    assert (
        ledger.failures(2)
        == [(one, "invalid", "the payouts sum to 2, not to 1") for one in ids if truth(one)[0] == "invalid"][:2]
    )


def test_there_is_nothing_to_read_before_the_first_run(store: Store) -> None:
    ledger = Ledger(store, PARTITION)

    assert ledger.finished() is None
    with pytest.raises(
        LedgerError, match=r"-m payout_pipeline[.]definitions --select goldsky_payouts --partition worker_1_of_4"
    ):
        list(ledger.read())


class _Counted(io.FileIO):
    """A file that counts what is read of it."""

    bytes_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        got = super().read(size)
        self.bytes_read += len(got)
        return got

    def readinto(self, buffer: Any, /) -> int:
        got = super().readinto(buffer)
        self.bytes_read += got
        return got


def test_a_ledger_is_not_held_in_memory_as_a_whole_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_files, "_ROWS_AT_ONCE", 1_000)
    ids = make_ids(20_000)
    ledger = Ledger(tmp_path, PARTITION)
    run(ledger, make_chunk(ids), batch_size=1_000)
    path = tmp_path / ledger.key("ledger.parquet")
    file = _Counted(path)
    monkeypatch.setattr(ledger.store, "reading", lambda _: file)

    reading = ledger.read()
    next(reading)

    assert 0 < file.bytes_read < path.stat().st_size / 2  # some row groups of twenty, and 64 KB at the end
    assert sum(batch.num_rows for batch in reading) == 19_000


# --------------------------------------------------------------------------------------- what is not believed


def _rows(**changes: Any) -> pa.Table:
    row: dict[str, Any] = {
        "condition_id": make_ids(1)[0],
        "status": "resolved",
        "payouts": '["1","0"]',
        "payout_numerators": [1, 0],
        "payout_denominator": 1,
        "winning_index": 0,
        "resolved_at": None,
        "block_number": 1,
        "fetched_at": NOW,
        "error": None,
    }
    return pa.Table.from_pylist([{**row, **changes}], schema=ledger_schema())


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (_rows(condition_id=make_ids(2)[1]), "are not the 1 asked"),
        (_rows(condition_id=make_ids(1)[0].upper()), "not 64 lower-case hex digits"),
        (_rows(condition_id="x"), "not 64 lower-case hex digits"),
        (pa.concat_tables([_rows(), _rows()]), "2 ids are not the 1 asked"),
        (_rows().slice(0, 0), "0 ids are not the 1 asked"),
        (_rows(status="done"), "a status is none of"),
        (_rows(payout_denominator=None), "payout_denominator has to be there"),
        (_rows(payout_numerators=None), "payout_numerators has to be there"),
        (_rows(status="unresolved"), "payout_numerators has to be there"),
        (_rows(payout_denominator=2), "do not sum"),
        (_rows(payout_numerators=[0, 0], payout_denominator=0), "do not sum"),
        (_rows(payout_numerators=[2**64 - 1, 2], payout_denominator=1), "do not sum"),
        (_rows(payout_numerators=[2**63, 2**63], payout_denominator=1), "do not sum"),
        (_rows(payout_numerators=[]), "do not sum"),
        (_rows(payout_numerators=[None, 1]), "do not sum"),
        (_rows(error="but"), "error has to be there"),
        (_rows(block_number=None), "block_number has to be there"),
        (_rows(fetched_at=None), "fetched_at has to be there"),
        (_rows().drop_columns(["error"]), "its columns are"),
        (_rows().set_column(4, "payout_denominator", pa.array([1.0])), "its columns are"),
    ],
)
def test_rows_that_cannot_be_the_answer_are_not_stored(tmp_path: Path, table: pa.Table, reason: str) -> None:
    ledger = Ledger(tmp_path, PARTITION)
    running = begin(ledger, make_chunk(make_ids(1)))

    with pytest.raises(LedgerError, match=reason):
        running.write_batch(0, table)

    assert running.missing_batches == [0]
    assert ledger.store.names(f"{ledger.prefix}/_running") == ["run.json"]


def test_a_run_with_missing_batches_cannot_be_finished(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, PARTITION)
    running = begin(ledger, make_chunk(make_ids(12)))
    running.write_batch(1, answer(running.ids_to_ask(1)))

    with pytest.raises(LedgerError, match=r"2 of 3 batches are missing \(first: \[0, 2\]\)"):
        running.finish()

    assert ledger.finished() is None


# ---------------------------------------------------------------------------------------------------- resuming


def test_a_resumed_run_asks_what_is_missing_and_nothing_else(store: Store) -> None:
    ids = make_ids(23)
    ledger = Ledger(store, PARTITION)
    first = begin(ledger, make_chunk(ids))
    for index in (0, 1, 3):
        first.write_batch(index, answer(first.ids_to_ask(index)))

    said: list[str] = []
    second = begin(Ledger(store, PARTITION, said.append), make_chunk(ids), pin=replace(PIN, block_number=1001))
    assert second.pin == PIN

    assert second.info.snapshot_id == first.info.snapshot_id
    assert second.info.started_at == first.info.started_at
    assert (second.missing_batches, on_disk(second), second.last_batch_index) == ([2, 4], {0, 1, 3}, 1)
    assert second.counts == first.counts
    assert any("15 of 23 ids are on disk" in line for line in said)
    for index in second.missing_batches:
        second.write_batch(index, answer(second.ids_to_ask(index)))
    second.finish()
    assert stored(ledger) == expected(ids)


def test_failed_ids_are_asked_again_after_an_interruption_and_their_neighbours_are_not(tmp_path: Path) -> None:
    ids = make_ids(12)
    ledger = Ledger(tmp_path, PARTITION)
    first = begin(ledger, make_chunk(ids))
    broken = frozenset([ids[1], ids[3], *ids[5:10]])
    for index in first.missing_batches:
        first.write_batch(index, answer(first.ids_to_ask(index), failing=broken))
    assert first.counts["failed"] == 7

    second = begin(ledger, make_chunk(ids))

    assert second.missing_batches == [0, 1]
    assert second.counts == first.counts
    assert (second.ids_to_ask(0), second.ids_to_ask(1)) == ([ids[1], ids[3]], ids[5:10])
    with pytest.raises(LedgerError, match="ids of another batch"):
        second.write_batch(0, answer(ids[5:6]))
    second.write_batch(0, answer([ids[1], ids[3]], failing=frozenset([ids[3]])))
    second.write_batch(1, answer(ids[5:10]))
    assert second.counts["failed"] == 1
    info = second.finish()
    assert info.counts["failed"] == 1
    assert (ids[3], "failed", "HTTP 503 after 3 retries") in ledger.failures()
    assert stored(ledger) == expected([one for one in ids if one != ids[3]]) + Counter([(ids[3], "failed", None)])
    in_order = [one for batch in ledger.read(["condition_id"]) for one in batch.column(0).to_pylist()]
    assert in_order == ids


CHANGES = {
    "ids": {"ids": make_chunk(make_ids(12, "other"))},
    "endpoint": {"endpoint": "http://elsewhere/gn"},
    "batch size": {"batch_size": 4},
    "schema": {"schema_kind": "numerators"},
    "refetch": {"refetch": "unresolved"},
    "deployment": {"pin": replace(PIN, deployment="QmTwo")},
    "a head that went back": {"pin": replace(PIN, block_number=700, head_number=950)},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_run_of_another_plan_is_set_aside_loudly_and_never_mixed_in(tmp_path: Path, change: dict[str, Any]) -> None:
    chunk = make_chunk(make_ids(12))
    said: list[str] = []
    ledger = Ledger(tmp_path, PARTITION, said.append)
    first = begin(ledger, chunk)
    first.write_batch(0, answer(first.ids_to_ask(0)))

    second = begin(ledger, **({"ids": chunk} | change))

    assert second.info.snapshot_id != first.info.snapshot_id
    assert on_disk(second) == set()
    assert any("SET ASIDE _running" in line for line in said)
    aside = tmp_path / ledger.prefix / "_aside"
    assert [path.name.split("-")[0] for path in aside.iterdir()] == ["_running.superseded"]


def test_no_more_than_five_things_are_kept_aside(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, PARTITION)
    for size in range(1, 10):
        begin(ledger, make_chunk(make_ids(12)), batch_size=size)

    assert len(list((tmp_path / ledger.prefix / "_aside").iterdir())) == 5


def test_a_discarded_run_is_begun_anew(tmp_path: Path) -> None:
    chunk = make_chunk(make_ids(12))
    ledger = Ledger(tmp_path, PARTITION)
    first = begin(ledger, chunk)
    first.write_batch(0, answer(first.ids_to_ask(0)))

    first.discard()
    second = begin(ledger, chunk)

    assert on_disk(second) == set()
    assert second.info.snapshot_id != first.info.snapshot_id


# -------------------------------------------------------------------------------------------------- refreshing


def test_a_refresh_asks_only_what_is_not_resolved_yet(store: Store) -> None:
    ids = make_ids(60)
    chunk = make_chunk(ids)
    ledger = Ledger(store, PARTITION)
    first = run(ledger, chunk)
    open_ids = [one for one in ids if truth(one)[0] != "resolved"]

    running = begin(ledger, chunk, refetch="unresolved", pin=replace(PIN, block_number=2000, head_number=2250))
    asked = [one for index in running.missing_batches for one in running.ids_to_ask(index)]
    assert asked == open_ids
    assert running.carried == first.counts["resolved"]
    assert running.counts["resolved"] == running.carried
    for index in running.missing_batches:
        running.write_batch(index, answer(running.ids_to_ask(index), later=True, block=2000))
    info = running.finish()

    assert stored(ledger) == expected(ids, later=True)
    assert ledger.verify(chunk).closes
    assert (info.carried, info.ids, info.refetch) == (first.counts["resolved"], 60, "unresolved")
    blocks = Counter(one for batch in ledger.read(["block_number"]) for one in batch.column(0).to_pylist())
    assert blocks == Counter({1000: info.carried, 2000: len(open_ids)})


def test_an_interrupted_refresh_is_gone_on_with(tmp_path: Path) -> None:
    ids = make_ids(60)
    chunk = make_chunk(ids)
    ledger = Ledger(tmp_path, PARTITION)
    run(ledger, chunk)
    first = begin(ledger, chunk, refetch="unresolved")
    first.write_batch(2, answer(first.ids_to_ask(2), later=True))

    second = begin(ledger, chunk, refetch="unresolved")
    assert (second.info.snapshot_id, on_disk(second)) == (first.info.snapshot_id, {2})
    for index in second.missing_batches:
        second.write_batch(index, answer(second.ids_to_ask(index), later=True))
    second.finish()

    assert stored(ledger) == expected(ids, later=True)


def test_a_refresh_of_another_deployment_asks_everything(tmp_path: Path) -> None:
    ids = make_ids(30)
    chunk = make_chunk(ids)
    said: list[str] = []
    ledger = Ledger(tmp_path, PARTITION, said.append)
    run(ledger, chunk)
    moved = replace(PIN, deployment="QmTwo", block_number=5000, head_number=5250)

    running = begin(ledger, chunk, refetch="unresolved", pin=moved)
    assert (running.carried, len(running.missing_batches), sum(running.counts.values())) == (0, 6, 0)
    assert any("deployment changed" in line for line in said)
    running.write_batch(0, answer(running.ids_to_ask(0), block=5000))
    resumed = begin(ledger, chunk, refetch="unresolved", pin=moved)
    assert on_disk(resumed) == {0}
    for index in resumed.missing_batches:
        resumed.write_batch(index, answer(resumed.ids_to_ask(index), block=5000))
    info = resumed.finish()

    assert (info.carried, info.pin) == (0, moved)
    assert {one for batch in ledger.read(["block_number"]) for one in batch.column(0).to_pylist()} == {5000}


@pytest.mark.parametrize(
    "change", [CHANGES["ids"], CHANGES["endpoint"], CHANGES["schema"]], ids=["ids", "endpoint", "schema"]
)
def test_a_refresh_of_something_else_asks_everything(tmp_path: Path, change: dict[str, Any]) -> None:
    ledger = Ledger(tmp_path, PARTITION)
    run(ledger, make_chunk(make_ids(12)))

    running = begin(ledger, **({"ids": make_chunk(make_ids(12)), "refetch": "unresolved"} | change))

    assert (running.carried, len(running.missing_batches)) == (0, 3)


def test_a_refresh_with_nothing_open_asks_nothing(tmp_path: Path) -> None:
    ids = [one for one in make_ids(60) if truth(one)[0] == "resolved"]
    chunk = make_chunk(ids)
    ledger = Ledger(tmp_path, PARTITION)
    run(ledger, chunk)

    second = run(ledger, chunk, refetch="unresolved")

    assert second.batch_count == 0
    assert stored(ledger) == expected(ids)


def test_a_damaged_snapshot_is_not_carried_over(tmp_path: Path) -> None:
    ids = make_ids(200)
    chunk = make_chunk(ids)
    said: list[str] = []
    ledger = Ledger(tmp_path, PARTITION, said.append)
    run(ledger, chunk)
    damage(tmp_path / ledger.key("ledger.parquet"), 5000)

    second = run(ledger, chunk, refetch="unresolved")

    assert second.carried == 0
    assert stored(ledger) == expected(ids)
    assert any("SET ASIDE ledger.parquet" in line for line in said)


def test_a_refresh_that_has_begun_does_not_need_the_former_snapshot_any_more(tmp_path: Path) -> None:
    ids = make_ids(200)
    chunk = make_chunk(ids)
    ledger = Ledger(tmp_path, PARTITION)
    run(ledger, chunk)
    first = begin(ledger, chunk, refetch="unresolved")
    damage(tmp_path / ledger.key("ledger.parquet"), 5000)

    second = run(ledger, chunk, refetch="unresolved")

    assert second.info.snapshot_id == first.info.snapshot_id
    assert stored(ledger) == expected(ids)


# ----------------------------------------------------------------------------------------------------- damage


def damage(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    for position in range(at, min(at + 40, len(content) - 1)):
        content[position] ^= 0x5A
    path.write_bytes(content)


def test_a_damaged_or_foreign_batch_is_set_aside_and_asked_again(tmp_path: Path) -> None:
    ids = make_ids(40)
    said: list[str] = []
    ledger = Ledger(tmp_path, PARTITION, said.append)
    other = Ledger(tmp_path, "worker_2_of_4")
    for each in (ledger, other):
        running = begin(each, make_chunk(ids))
        for index in running.missing_batches:
            running.write_batch(index, answer(running.ids_to_ask(index)))
    directory = tmp_path / ledger.prefix / "_running"
    (directory / "batch-00000.parquet").write_bytes(b"")
    damage(directory / "batch-00001.parquet", 200)
    content = (directory / "batch-00002.parquet").read_bytes()
    (directory / "batch-00002.parquet").write_bytes(content[: len(content) // 2])
    (directory / "batch-00003.parquet").write_bytes(random.Random(1).randbytes(4000))
    (tmp_path / other.prefix / "_running" / "batch-00004.parquet").replace(directory / "batch-00004.parquet")
    (directory / "batch-00006.parquet").write_bytes((directory / "batch-00005.parquet").read_bytes())
    (directory / "notes.txt").write_text("?")
    (directory / "batch-00099.parquet").write_bytes((directory / "batch-00005.parquet").read_bytes())

    resumed = begin(ledger, make_chunk(ids))

    assert resumed.missing_batches == [0, 1, 2, 3, 4, 6]
    assert sum("SET ASIDE" in line for line in said) == 8
    for index in resumed.missing_batches:
        resumed.write_batch(index, answer(resumed.ids_to_ask(index)))
    resumed.finish()
    assert stored(ledger) == expected(ids)


def test_a_batch_damaged_after_it_was_written_stops_the_finish_and_is_asked_again(tmp_path: Path) -> None:
    ids = make_ids(40)
    ledger = Ledger(tmp_path, PARTITION)
    running = begin(ledger, make_chunk(ids))
    for index in running.missing_batches:
        running.write_batch(index, answer(running.ids_to_ask(index)))
    damage(tmp_path / ledger.prefix / "_running" / "batch-00003.parquet", 200)

    with pytest.raises(LedgerError, match=r"batch-00003\.parquet is damaged"):
        running.finish()

    assert ledger.finished() is None
    resumed = begin(ledger, make_chunk(ids))
    assert resumed.missing_batches == [3]
    resumed.write_batch(3, answer(resumed.ids_to_ask(3)))
    resumed.finish()
    assert stored(ledger) == expected(ids)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"version": 1}', b"\xff" * 30, b"[" * 100_000])
def test_a_run_whose_facts_are_lost_is_set_aside_and_begun_anew(tmp_path: Path, content: bytes | None) -> None:
    ids = make_ids(12)
    said: list[str] = []
    ledger = Ledger(tmp_path, PARTITION, said.append)
    first = begin(ledger, make_chunk(ids))
    first.write_batch(1, answer(first.ids_to_ask(1)))
    facts = tmp_path / ledger.prefix / "_running" / "run.json"
    facts.unlink() if content is None else facts.write_bytes(content)

    second = begin(ledger, make_chunk(ids))

    assert (second.info.snapshot_id != first.info.snapshot_id, on_disk(second)) == (True, set())
    assert any("SET ASIDE _running" in line for line in said)


@pytest.mark.parametrize("field", ["version", "batch_size", "refetch", "snapshot_id", "pin", "fingerprint", "mode"])
@pytest.mark.parametrize("value", [None, -1, 10**30, "x", [], {}, True, 1.5])
def test_strange_facts_of_a_run_never_skip_an_id(tmp_path: Path, field: str, value: object) -> None:
    ids = make_ids(12)
    ledger = Ledger(tmp_path, PARTITION)
    first = begin(ledger, make_chunk(ids))
    first.write_batch(1, answer(first.ids_to_ask(1)))
    facts = tmp_path / ledger.prefix / "_running" / "run.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), field: value}))

    run(ledger, make_chunk(ids))

    assert stored(ledger) == expected(ids)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b"{}", b"\xff" * 5000])
def test_a_damaged_snapshot_is_said_and_asked_anew(tmp_path: Path, content: bytes) -> None:
    ids = make_ids(12)
    said: list[str] = []
    ledger = Ledger(tmp_path, PARTITION, said.append)
    run(ledger, make_chunk(ids))
    (tmp_path / ledger.key("ledger.parquet")).write_bytes(content)

    assert ledger.finished() is None
    assert "is damaged or no ledger" in said[-1]
    with pytest.raises(LedgerError, match="is damaged or no ledger"):
        list(ledger.read())
    run(ledger, make_chunk(ids))
    assert stored(ledger) == expected(ids)
    kept = list((tmp_path / ledger.prefix / "_aside").iterdir())
    assert [path.name.split("-")[0] for path in kept] == ["ledger.parquet.corrupt"]
    assert kept[0].read_bytes() == content


def test_the_snapshot_of_another_partition_is_no_snapshot(tmp_path: Path) -> None:
    ids = make_ids(12)
    other = Ledger(tmp_path, "worker_2_of_4")
    run(other, make_chunk(ids))
    ledger = Ledger(tmp_path, PARTITION)
    ledger.store.write(ledger.key("ledger.parquet"), other.store.read(other.key("ledger.parquet")))

    assert ledger.finished() is None


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.slow
def test_no_change_of_bytes_on_disk_is_ever_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.setattr("payout_pipeline.storage.os.fsync", lambda _: None)  # slow, and no part of this
    ids = make_ids(25)
    place = tmp_path / str(next(_NUMBERS))
    ledger = Ledger(place, PARTITION)
    running = begin(ledger, make_chunk(ids))
    for index in (0, 1, 2):
        running.write_batch(index, answer(running.ids_to_ask(index)))
    directory = place / ledger.prefix / "_running"
    path = directory / data.draw(st.sampled_from(sorted(path.name for path in directory.iterdir())))
    content = bytearray(path.read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "zero", "replace"]))
    if kind == "flip":
        for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=5)):
            content[position] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    elif kind == "zero":
        start = data.draw(st.integers(0, len(content) - 1))
        content[start : start + 64] = bytes(len(content[start : start + 64]))
    else:
        content = bytearray(data.draw(st.binary(max_size=200)))
    path.write_bytes(content)

    run(ledger, make_chunk(ids))

    assert Counter(one for one, _, _ in stored(ledger)) == Counter(ids)
    assert stored(ledger) == expected(ids)


# ------------------------------------------------------------------------------------------------- accounting


def test_every_difference_between_ledger_and_input_is_counted_and_named(tmp_path: Path) -> None:
    ids = make_ids(30)
    ledger = Ledger(tmp_path, PARTITION)
    run(ledger, make_chunk(ids))
    others = make_ids(3, "x")

    found = ledger.verify(make_chunk(ids[2:] + others))

    assert (found.missing, found.extra, found.duplicated, found.expected, found.rows) == (3, 2, 0, 31, 30)
    assert (sorted(found.missing_sample), sorted(found.extra_sample)) == (sorted(others), sorted(ids[:2]))
    assert not found.closes


@settings(max_examples=60, deadline=None)
@given(
    wanted=st.sets(st.integers(0, 12)),
    there=st.lists(st.integers(0, 12), max_size=25),
    odd=st.lists(st.sampled_from(["", "zz", "0x12"]), max_size=2, unique=True),
)
def test_the_accounting_is_that_of_a_counter(wanted: set[int], there: list[int], odd: list[str]) -> None:
    ids = make_ids(13)
    chunk = make_chunk([ids[number] for number in sorted(wanted)])
    rows = answer([ids[number] for number in there])
    rows = pa.concat_tables([rows, answer(odd)]) if not odd else _with_ids(rows, odd)
    found = account(chunk, rows.to_batches(), len(chunk.ids()))

    have = Counter(there)
    assert found.rows == sum(found.counts.values()) == len(there) + len(odd)
    assert found.missing == len(wanted - set(have))
    assert found.extra == len(set(have) - wanted) + len(odd)
    assert found.duplicated == sum(count - 1 for count in have.values())
    assert set(found.missing_sample) == {ids[number] for number in wanted - set(have)}
    assert set(found.duplicated_sample) == {ids[number] for number, count in have.items() if count > 1}
    assert found.closes == (have == Counter(wanted) and not odd)


def _with_ids(rows: pa.Table, more: list[str]) -> pa.Table:
    extra = answer(make_ids(len(more), "more")).set_column(0, ledger_schema().field(0), pa.array(more, pa.string()))
    return pa.concat_tables([rows, extra])


def test_a_scan_is_accounted_for_by_its_prefixes() -> None:
    span = prefix_range(1, 2)
    ids = make_ids(40)
    inside = [one for one in ids if span.holds(one)]

    found = account(span, answer([*ids, inside[0]]).to_batches(), 45)

    assert (found.extra, found.duplicated, found.missing, found.expected) == (40 - len(inside), 1, 4, 45)


# ----------------------------------------------------------------------------------------------------- crashes


class Crash(BaseException):
    """The process dies here, as far as the program can see."""


class DyingStore(Store):
    """Dies at the n-th change of the disk: before it, in the middle of it, or right after it."""

    def __init__(self, root: Path, after: int, how: str) -> None:
        super().__init__(root)
        self.left = after
        self.how = how

    def _step(self) -> bool:
        self.left -= 1
        return self.left == 0

    def write(self, key: str, data: bytes | memoryview) -> None:
        dies = self._step()
        if dies and self.how == "before":
            raise Crash
        if dies and self.how == "within":
            temporary = self._path(key)
            temporary.parent.mkdir(parents=True, exist_ok=True)
            half = temporary.with_name(f".{temporary.name}.{os.getpid()}.tmp")
            half.write_bytes(data[: len(data) // 2])
            raise Crash
        super().write(key, data)
        if dies:
            raise Crash

    def delete(self, key: str) -> None:
        dies = self._step()
        if dies and self.how == "before":
            raise Crash
        if dies and self.how == "within":
            path = self._path(key)
            for victim in sorted(path.iterdir() if path.is_dir() else [])[::2]:
                victim.unlink()
            raise Crash
        super().delete(key)
        if dies:
            raise Crash

    def move(self, key: str, to: str) -> None:
        dies = self._step()
        if dies and self.how != "after":
            raise Crash
        super().move(key, to)
        if dies:
            raise Crash


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    crashes=st.lists(
        st.tuples(st.integers(1, 14), st.sampled_from(["before", "within", "after"])), min_size=1, max_size=6
    ),
    refresh=st.booleans(),
    order=st.randoms(use_true_random=False),
)
@example(crashes=[(8, "within"), (1, "within"), (1, "within")], refresh=True, order=random.Random(0))
@pytest.mark.slow
def test_a_death_at_any_change_of_the_disk_loses_nothing_and_asks_nothing_finished_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    crashes: list[tuple[int, str]],
    refresh: bool,
    order: random.Random,
) -> None:
    monkeypatch.setattr("payout_pipeline.storage.os.fsync", lambda _: None)  # slow, and no part of this
    ids = make_ids(23)
    chunk = make_chunk(ids)
    place = tmp_path / str(next(_NUMBERS))
    refetch = "unresolved" if refresh else "all"
    if refresh:
        run(Ledger(place, PARTITION), chunk)
    former = Ledger(place, PARTITION).finished()
    kept: set[str] = set()
    totals = [0]
    done = None
    for after, how in [*crashes, (10**9, "after")]:
        ledger = Ledger(DyingStore(place, after, how), PARTITION)
        try:
            # The caller takes a snapshot which it has not seen delivered as its own.
            done = ledger.finished()
            if done is not None and done != former:
                break
            running = begin(ledger, chunk, refetch=refetch)
            if not running.batches_done:
                kept.clear()
            totals.append(sum(running.counts.values()))
            indices = running.missing_batches
            order.shuffle(indices)
            for index in indices:
                asked = running.ids_to_ask(index)
                assert not kept.intersection(asked), "a finished batch is asked again"
                running.write_batch(index, answer(asked, later=refresh))
                kept.update(asked)
            done = running.finish()
            break
        except Crash:
            continue

    ledger = Ledger(place, PARTITION)
    assert done is not None
    assert totals == sorted(totals)
    assert ledger.finished() == done
    assert stored(ledger) == expected(ids, later=refresh)
    assert ledger.verify(chunk).closes
    # What a death left over is gone after the next run.
    run(ledger, chunk)
    names = {"ledger.parquet", "_aside", "_changes", "_known.parquet"}
    assert set(ledger.store.names(ledger.prefix)) <= names
    assert len(ledger.store.names(ledger.key("_changes"))) == 1


_WORKER = """
import hashlib, sys
from datetime import datetime, timezone
from pathlib import Path
from payout_pipeline.ids.chunks import chunk_of
from payout_pipeline.ids.id_list import read_ids
from payout_pipeline.ledger import Ledger, Pin, SnapshotInfo, start_run
from payout_pipeline.payouts import Vector
from payout_pipeline_tests.ledger_fixtures import make_rows

def answer(ids):
    vectors = dict.fromkeys(ids, Vector((0, 1), 1))
    return make_rows(ids, vectors, raw={}, block_number=1000, fetched_at=datetime.now(timezone.utc))

chunk = chunk_of(read_ids(Path(sys.argv[2])), 1, 4)
ledger = Ledger(Path(sys.argv[1]), "worker_1_of_4", lambda line: print("log", line, flush=True))
if ledger.finished() is not None:
    print("ready 200", flush=True)
    print("finished", flush=True)
    sys.exit()
pin = Pin(block_number=1000, deployment="QmOne")
plan = SnapshotInfo.planned(
    "worker_1_of_4", chunk, endpoint="http://goldsky/gn", batch_size=5, schema_kind="payouts", pin=pin
)
running = start_run(ledger, plan, chunk)
print("ready", sum(running.counts.values()), flush=True)
for index in running.missing_batches:
    print("ask", index, flush=True)
    running.write_batch(index, answer(running.ids_to_ask(index)))
    print("done", index, flush=True)
running.finish()
print("finished", flush=True)
"""


@pytest.mark.slow
def test_a_killed_process_is_followed_by_one_that_finishes_its_work(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    source = random.Random(seed)
    ids = make_ids(800)
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    arguments = [sys.executable, "-c", _WORKER, str(tmp_path / "runtime"), str(tmp_path / "ids.txt")]
    done: set[str] = set()
    totals: list[int] = []
    for attempt in range(5):
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        while not lines[-1].startswith("ready"):
            assert lines[-1], "the worker failed"
            lines.append(process.stdout.readline())
        if attempt < 4:
            time.sleep(source.uniform(0, 0.15))
            process.kill()
        lines += [line for line in process.stdout if line.endswith("\n")]  # the last one may be cut off
        process.wait()
        totals += [int(line.split()[1]) for line in lines if line.startswith("ready")]
        asked = {line.split()[1] for line in lines if line.startswith("ask")}
        assert not asked & done, f"asked again (seed {seed})"
        done |= {line.split()[1] for line in lines if line.startswith("done")}

    ledger = Ledger(tmp_path / "runtime", PARTITION)
    assert totals == sorted(totals)
    assert process.returncode == 0
    assert stored(ledger) == Counter((condition_id, "resolved", None) for condition_id in ids[:200])
    assert set(ledger.store.names(ledger.prefix)) <= {"ledger.parquet", "_running"}


# --------------------------------------------------------------------------------------------- full disk, threads


def test_a_batch_that_does_not_fit_on_the_disk_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = make_ids(12)
    ledger = Ledger(tmp_path, PARTITION)
    running = begin(ledger, make_chunk(ids))
    running.write_batch(0, answer(running.ids_to_ask(0)))
    real = os.fsync

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("payout_pipeline.storage.os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        running.write_batch(1, answer(running.ids_to_ask(1)))
    assert (running.missing_batches, running.batches_done) == ([1, 2], 1)
    monkeypatch.setattr("payout_pipeline.storage.os.fsync", real)
    for index in running.missing_batches:
        running.write_batch(index, answer(running.ids_to_ask(index)))
    monkeypatch.setattr("payout_pipeline.storage.os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        running.finish()
    assert ledger.finished() is None
    monkeypatch.setattr("payout_pipeline.storage.os.fsync", real)
    running.finish()
    assert stored(ledger) == expected(ids)


# --------------------------------------------------------------------------------------------------------- scans


def test_a_scan_keeps_what_it_finds_prefix_by_prefix_and_resumes(tmp_path: Path) -> None:
    span = prefix_range(2, 64)
    ids = sorted(one for one in make_ids(800) if span.holds(one) and truth(one)[0] == "resolved")
    of_prefix = {prefix: [one for one in ids if one.startswith(prefix)] for prefix in span.prefixes}
    ledger = Ledger(tmp_path, PARTITION)
    first = begin(ledger, span)
    assert (first.batch_count, first.prefix(0), first.prefix(3)) == (4, "04", "07")
    first.write_batch(1, answer(of_prefix["05"]))
    with pytest.raises(LedgerError, match="outside of its prefix"):
        first.write_batch(2, answer(of_prefix["07"]))
    with pytest.raises(LedgerError, match="an id twice"):
        first.write_batch(3, answer(of_prefix["07"] * 2))

    second = begin(ledger, span)
    assert second.missing_batches == [0, 2, 3]
    for index in second.missing_batches:
        second.write_batch(index, answer(of_prefix[second.prefix(index)]))
    info = second.finish()

    assert (info.mode, info.ids, info.counts["resolved"]) == ("scan", len(ids), len(ids))
    assert stored(ledger) == expected(ids)
    assert ledger.verify(span).closes


# ----------------------------------------------------------------------------------------------------- the rest


def test_the_fingerprint_is_of_everything_that_decides_what_is_asked() -> None:
    chunk = make_chunk(make_ids(12))
    decide = ("ids", "endpoint", "batch size", "schema")
    plans = [planned(chunk)] + [planned(**({"ids": chunk} | CHANGES[name])) for name in decide]

    assert len({one.fingerprint for one in plans}) == 5
    assert planned(chunk).fingerprint == planned(make_chunk(make_ids(12)), refetch="unresolved").fingerprint


def test_no_endpoint_is_written_down_since_it_may_carry_a_key(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, PARTITION)
    chunk = make_chunk(make_ids(12))
    running = begin(ledger, chunk, endpoint="https://host/api/s3cr3t-k3y/gn")
    running.write_batch(0, answer(running.ids_to_ask(0)))
    run(ledger, chunk, endpoint="https://host/api/s3cr3t-k3y/gn")

    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"s3cr3t-k3y" not in path.read_bytes()


def test_a_worker_of_full_size_is_verified_in_time(tmp_path: Path) -> None:
    ids = make_ids(42_612)
    chunk = make_chunk(ids)
    ledger = Ledger(tmp_path, PARTITION)
    run(ledger, chunk, batch_size=1000)

    started = time.process_time()
    found = ledger.verify(chunk)
    seconds = time.process_time() - started

    assert found.closes
    assert found.rows == 42_612
    assert seconds < 0.6  # twice the bar, since machines are shared
    shuffled = make_chunk(sorted(ids))
    assert ledger.verify(shuffled).closes


def test_the_schema_is_what_a_parquet_reader_gets_back() -> None:
    sink = io.BytesIO()
    pq.write_table(answer(make_ids(10)), sink)

    assert pq.read_table(sink).cast(ledger_schema()).equals(answer(make_ids(10)))


def test_an_amended_row_replaces_its_former_one_and_survives_an_interruption(tmp_path):
    ids = make_ids(50)
    chunk = make_chunk(ids)
    ledger = Ledger(tmp_path, PARTITION)
    running = begin(ledger, chunk)
    for index in running.missing_batches:
        running.write_batch(index, answer(running.ids_to_ask(index)))
    absent = dict(running.ids_with_status("absent"))
    index = next(at for at, left_out in absent.items() if left_out)
    chosen = absent[index][:1]
    before = running.counts
    later = make_rows(
        chosen, {chosen[0]: parse_payouts(["1", "0"])}, raw={chosen[0]: RAW[1]}, block_number=1000, fetched_at=NOW
    )
    running.write_batch(index, later)
    expected = {**before, "absent": before["absent"] - 1, "resolved": before["resolved"] + 1}
    assert running.counts == expected
    assert chosen[0] not in dict(running.ids_with_status("absent")).get(index, [])
    again = begin(Ledger(tmp_path, PARTITION), chunk)
    assert dict(again.ids_with_status("absent")) == dict(running.ids_with_status("absent")), "read, as remembered"
    assert again.counts == expected
    assert again.missing_batches == []
    again.finish()
    frame = pd.read_parquet(tmp_path / "goldsky_payouts" / PARTITION)
    assert list(frame["condition_id"]) == ids
    assert frame.set_index("condition_id").loc[chosen[0], "status"] == "resolved"


def test_rows_of_another_batch_are_not_taken_as_an_amendment(tmp_path):
    ids = make_ids(20)
    chunk = make_chunk(ids)
    running = begin(Ledger(tmp_path, PARTITION), chunk)
    for index in running.missing_batches:
        running.write_batch(index, answer(running.ids_to_ask(index)))
    before = running.counts
    with pytest.raises(LedgerError, match="ids of another batch"):
        running.write_batch(0, answer(ids[10:11]))
    with pytest.raises(LedgerError, match="an id twice"):
        running.write_batch(0, pa.concat_tables([answer(ids[:1]), answer(ids[:1])]))
    assert running.counts == before
