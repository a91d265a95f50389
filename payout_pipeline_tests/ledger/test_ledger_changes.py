"""What a finished ledger changed against the one before it."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pandas as pd
import pytest

from payout_pipeline.ledger import Ledger, Pin, SnapshotInfo, start_run
from payout_pipeline.payouts import InvalidVector, Vector
from payout_pipeline_tests.ledger_fixtures import make_chunk, make_rows

NOW = datetime(2025, 11, 9, 10, 30, tzinfo=timezone.utc)
PARTITION = "worker_1_of_1"
IDS = [f"{number:064x}" for number in range(12)]
YES, NO, HALF = Vector((1, 0), 1), Vector((0, 1), 1), Vector((1, 1), 2)
Answer = Vector | InvalidVector | str | None


def finish(
    root: Path, answers: dict[str, Answer], refetch: str = "all", partition: str = PARTITION, day: int = 0
) -> SnapshotInfo:
    """A finished ledger in which the ids have these answers: a vector, None, ``absent``, or the text of a failure."""
    chunk = make_chunk(list(answers))
    ledger = Ledger(root, partition)
    plan = SnapshotInfo.planned(
        partition,
        chunk,
        endpoint="http://goldsky/gn",
        batch_size=5,
        schema_kind="payouts",
        pin=Pin(1, "Qm"),
        refetch=refetch,  # type: ignore[arg-type]
    )
    running = start_run(ledger, plan, chunk)
    for index in running.missing_batches:
        ids = running.ids_to_ask(index)
        found = {i: answers[i] for i in ids if not isinstance(answers[i], str)}
        failed = {i: str(answers[i]) for i in ids if isinstance(answers[i], str) and answers[i] != "absent"}
        running.write_batch(
            index,
            make_rows(ids, found, raw={}, block_number=1, fetched_at=NOW + timedelta(days=day), failed=failed),  # type: ignore[arg-type]
        )
    return running.finish()


def changes(root: Path, partition: str = PARTITION) -> dict[str, tuple[str, str, str]]:
    table = Ledger(root, partition).changes()
    assert table is not None
    assert table.column_names == ["condition_id", "change", "before", "after"]
    return {row["condition_id"]: (row["change"], row["before"], row["after"]) for row in table.to_pylist()}


BEFORE: list[Answer] = [
    YES,
    YES,
    YES,
    YES,
    YES,
    None,
    None,
    "absent",
    "absent",
    "no answer",
    InvalidVector("odd"),
    HALF,
]
AFTER: list[Answer] = [
    YES,
    NO,
    None,
    "absent",
    "no answer",
    YES,
    "absent",
    HALF,
    None,
    "absent",
    "absent",
    InvalidVector("x"),
]


def test_every_change_is_named_with_its_vectors_and_nothing_else_is_a_change(tmp_path: Path) -> None:
    finish(tmp_path, dict(zip(IDS, BEFORE, strict=True)))
    finish(tmp_path, dict(zip(IDS, AFTER, strict=True)))

    assert changes(tmp_path) == {
        IDS[1]: ("vector_changed", "[1, 0]/1", "[0, 1]/1"),
        IDS[2]: ("no_longer_resolved", "[1, 0]/1", ""),
        IDS[3]: ("became_absent", "[1, 0]/1", ""),
        IDS[5]: ("newly_resolved", "", "[1, 0]/1"),
        IDS[6]: ("became_absent", "", ""),
        IDS[7]: ("newly_resolved", "", "[1, 1]/2"),
        IDS[10]: ("became_absent", "", ""),
    }


def test_the_first_ledger_has_nothing_to_compare_with_and_an_equal_one_changed_nothing(tmp_path: Path) -> None:
    answers = dict(zip(IDS, BEFORE, strict=True))
    assert Ledger(tmp_path, PARTITION).changes() is None
    first = finish(tmp_path, answers)
    assert Ledger(tmp_path, PARTITION).changes() is None

    second = finish(tmp_path, answers)

    assert changes(tmp_path) == {}
    assert first.identity != second.identity
    finished = Ledger(tmp_path, PARTITION).finished()
    assert finished is not None
    assert finished.identity == second.identity


def test_a_vector_that_changed_while_the_id_had_no_usable_answer_is_a_changed_vector(tmp_path: Path) -> None:
    for odd in ("no answer", InvalidVector("odd")):
        finish(tmp_path, {IDS[0]: YES, IDS[1]: YES, IDS[2]: None})
        for _ in range(2):
            finish(tmp_path, {IDS[0]: odd, IDS[1]: odd, IDS[2]: odd})
            assert changes(tmp_path) == {}
        finish(tmp_path, {IDS[0]: NO, IDS[1]: YES, IDS[2]: HALF})

        assert changes(tmp_path) == {
            IDS[0]: ("vector_changed", "[1, 0]/1", "[0, 1]/1"),
            IDS[2]: ("newly_resolved", "", "[1, 1]/2"),
        }


def test_an_id_that_is_new_in_the_list_is_newly_resolved_and_one_that_left_it_is_no_change(tmp_path: Path) -> None:
    finish(tmp_path, {IDS[0]: YES, IDS[1]: YES})
    finish(tmp_path, {IDS[1]: NO, IDS[2]: YES, IDS[3]: None})

    assert changes(tmp_path) == {
        IDS[1]: ("vector_changed", "[1, 0]/1", "[0, 1]/1"),
        IDS[2]: ("newly_resolved", "", "[1, 0]/1"),
    }


def test_an_id_that_comes_back_in_another_workers_chunk_is_compared_with_its_last_vector(tmp_path: Path) -> None:
    one, two = "worker_1_of_2", "worker_2_of_2"
    finish(tmp_path, {IDS[0]: YES, IDS[1]: YES}, partition=one, day=0)
    finish(tmp_path, {IDS[2]: YES}, partition=two, day=0)
    finish(tmp_path, {IDS[0]: NO}, partition=two, day=1)
    assert changes(tmp_path, two) == {IDS[0]: ("vector_changed", "[1, 0]/1", "[0, 1]/1")}
    for day in (2, 3):
        finish(tmp_path, {IDS[3]: None}, partition=one, day=day)
        finish(tmp_path, {IDS[4]: None}, partition=two, day=day)

    finish(tmp_path, {IDS[0]: NO, IDS[1]: HALF}, partition=one, day=4)

    assert changes(tmp_path, one) == {IDS[1]: ("vector_changed", "[1, 0]/1", "[1, 1]/2")}


def test_another_number_of_workers_is_no_new_beginning(tmp_path: Path) -> None:
    finish(tmp_path, {IDS[0]: YES, IDS[1]: YES, IDS[2]: None})

    finish(tmp_path, {IDS[0]: YES, IDS[1]: NO}, partition="worker_1_of_2", day=1)

    assert changes(tmp_path, "worker_1_of_2") == {IDS[1]: ("vector_changed", "[1, 0]/1", "[0, 1]/1")}


def test_a_refresh_names_what_it_resolved(tmp_path: Path) -> None:
    answers: dict[str, Answer] = dict(zip(IDS, BEFORE, strict=True))
    finish(tmp_path, answers)
    finish(tmp_path, {**answers, IDS[5]: HALF}, refetch="unresolved")

    assert changes(tmp_path) == {IDS[5]: ("newly_resolved", "", "[1, 1]/2")}


def test_the_changes_are_no_part_of_what_pandas_reads_and_one_file_is_kept(tmp_path: Path) -> None:
    for answer in (YES, NO, YES):
        finish(tmp_path, {IDS[0]: answer, IDS[1]: None})

    directory = tmp_path / "goldsky_payouts" / PARTITION
    assert sorted(pd.read_parquet(directory)["condition_id"]) == IDS[:2]
    assert len(list((directory / "_changes").iterdir())) == 1
    assert changes(tmp_path) == {IDS[0]: ("vector_changed", "[0, 1]/1", "[1, 0]/1")}


@pytest.mark.parametrize("died", ["before the ledger", "after the ledger"])
def test_a_death_while_finishing_leaves_changes_that_belong_to_the_ledger(
    tmp_path: Path, died: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(tmp_path, {IDS[0]: YES})
    finish(tmp_path, {IDS[0]: NO})
    store = type(Ledger(tmp_path, PARTITION).store)
    write = store.write

    def dies(self: object, key: str, data: bytes) -> None:
        if key.endswith("ledger.parquet"):
            if died == "after the ledger":
                write(self, key, data)  # type: ignore[arg-type]
            raise KeyboardInterrupt
        write(self, key, data)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        finish(tmp_path, {IDS[0]: HALF})
    monkeypatch.undo()

    after = "[0, 1]/1" if died == "before the ledger" else "[1, 1]/2"
    assert changes(tmp_path)[IDS[0]][2] == after
    if died == "before the ledger":
        finish(tmp_path, {IDS[0]: HALF})
        assert changes(tmp_path) == {IDS[0]: ("vector_changed", "[0, 1]/1", "[1, 1]/2")}


def test_reading_what_changed_starts_no_threads_of_arrow(tmp_path: Path) -> None:
    """A process in which Arrow has started threads aborts in one of some twenty exits, whatever its exit status was."""
    finish(tmp_path, dict.fromkeys(IDS, YES))
    finish(tmp_path, dict.fromkeys(IDS[:6], NO), day=1)
    script = (
        "import os, sys\n"
        "import numpy, pyarrow.parquet\n"
        "from payout_pipeline.ledger import Ledger\n"
        "from payout_pipeline.ledger.known import last_known\n"
        "from payout_pipeline_tests.ledger_fixtures import make_chunk\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "ledger = Ledger(sys.argv[1], sys.argv[2])\n"
        "assert len(ledger.changes()) == 6\n"
        "last_known(ledger.store, make_chunk(sys.argv[3:]))\n"
        "assert len(os.listdir('/proc/self/task')) == before\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), PARTITION, *IDS]
    subprocess.run(command, check=True, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
