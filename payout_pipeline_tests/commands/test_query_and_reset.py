"""The two small commands: a question about a few ids, and a clean restart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from payout_pipeline.commands.query import query_command
from payout_pipeline.commands.reset import reset_command
from payout_pipeline.errors import ConfigurationError, LockHeldError
from payout_pipeline.ledger import DIRECTORY, Ledger
from payout_pipeline.locks import FileLocks
from payout_pipeline.query import ask, normalised
from payout_pipeline.reset import plan_reset, remove
from payout_pipeline.subgraph.server import SubgraphConfig, SubgraphServer
from payout_pipeline_tests.report_fixtures import (  # noqa: F401 - fixtures
    House,
    condition,
    finished,
    house,
    open_engine,
    runtime,
)


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("subgraph")
    (directory / "known.csv").write_text(
        f'condition_id,payouts,resolved_at\n{condition(0)},"[""1"",""0""]",\n{condition(3)},"[""0.54"",""0.46""]",\n'
    )
    (directory / "open.txt").write_text(f"{condition(4)}\n")
    return directory / "known.csv", directory / "open.txt"


@pytest.fixture(scope="module", params=["payouts", "numerators"])
def subgraph(request: pytest.FixtureRequest, csv: tuple[Path, Path]) -> Iterator[SubgraphServer]:
    with SubgraphServer(SubgraphConfig(*csv, schema=request.param)) as server:
        yield server


def test_a_question_shows_the_vector_beside_what_is_stored(finished: House, subgraph: SubgraphServer) -> None:  # noqa: F811
    settings = finished.settings.model_copy(update={"goldsky_endpoint": subgraph.url})
    found = ask(settings, [f"0x{condition(3).upper()}", condition(4), condition(5), condition(3)])
    assert [(row.condition_id, row.status, row.vector) for row in found.rows] == [
        (condition(3), "resolved", "[27,23]/50"),
        (condition(4), "unresolved", ""),
        (condition(5), "absent", ""),
    ]
    assert found.exit_code == 0
    stored = found.rows[0].stored
    assert {(place["table"], place["winning_index"]) for place in stored} == {
        (settings.target_table, 0),
        (settings.truth_view, 0),
    }
    assert found.rows[1].stored == ()


def test_a1_an_id_that_an_answer_cut_off_is_not_shown_as_absent(finished: House, subgraph: SubgraphServer) -> None:  # noqa: F811
    settings = finished.settings.model_copy(update={"goldsky_endpoint": subgraph.url})
    subgraph.faults.add("page_cap", rows=1)
    try:
        found = ask(settings, [condition(number) for number in (0, 3, 4, 5)])
    finally:
        subgraph.faults.clear()
    assert [row.status for row in found.rows] == ["resolved", "resolved", "unresolved", "absent"]


def test_a_vector_that_cannot_be_stored_is_shown_as_it_came(finished: House, subgraph: SubgraphServer) -> None:  # noqa: F811
    settings = finished.settings.model_copy(update={"goldsky_endpoint": subgraph.url})
    bad = {"payouts": ["1", "1"], "payoutNumerators": ["1", "1"], "payoutDenominator": "1"}
    subgraph.faults.add("raw", fields={f"0x{condition(0)}": bad})
    try:
        found = ask(settings, [condition(0)])
    finally:
        subgraph.faults.clear()
    assert (found.rows[0].status, found.exit_code) == ("invalid", 1)
    assert found.rows[0].error
    assert '"1","1"' in found.rows[0].raw


def test_what_is_no_id_is_refused_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="2 of 3 arguments are no condition id "):
        normalised([condition(0), "12", "\x1b[31mx"])
    assert normalised([condition(1), f"0X{condition(1).upper()}"]) == [condition(1)]


def test_the_query_command_prints_json(
    finished: House,  # noqa: F811
    subgraph: SubgraphServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GOLDSKY_ENDPOINT", subgraph.url)
    monkeypatch.setenv("PAYOUT_RUNTIME_DIR", finished.settings.runtime_dir)
    monkeypatch.setenv("PAYOUT_TARGET_TABLE", finished.settings.target_table)
    result = CliRunner().invoke(query_command, ["--json", condition(0)])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["rows"][0]["vector"] == "[1,0]/1"
    shown = CliRunner().invoke(query_command, [condition(0)])
    assert "[1,0]/1" in shown.output


# ------------------------------------------------------------------------------------------------------------ reset


def files(house: House) -> set[str]:  # noqa: F811
    root = Path(house.settings.runtime_dir)
    return {
        path.relative_to(root).parts[0] if path.parent == root else "/".join(path.relative_to(root).parts[:2])
        for path in (*root.glob("payout-backfill-*"), *(root / DIRECTORY).glob("*"))
    }


@pytest.fixture
def with_files(finished: House) -> House:  # noqa: F811
    root = Path(finished.settings.runtime_dir)
    for worker in (1, 2):
        (root / f"payout-backfill-worker{worker}.checkpoint.json").write_text("{}")
        (root / f"payout-backfill-worker{worker}.progress.jsonl").write_text("")
    (root / "payout-backfill-worker1.checkpoint.json.corrupt-20251109T103000.000000Z").write_text("?")
    return finished


def test_a_reset_of_one_worker_removes_its_files_and_nothing_else(with_files: House) -> None:
    before = files(with_files)
    assert "Removed 4 files and directories" in remove(plan_reset(with_files.settings, 1))
    assert before - files(with_files) == {
        "payout-backfill-worker1.checkpoint.json",
        "payout-backfill-worker1.progress.jsonl",
        "payout-backfill-worker1.checkpoint.json.corrupt-20251109T103000.000000Z",
        "goldsky_payouts/worker_1_of_2",
    }
    assert Ledger(with_files.settings.runtime_dir, "worker_2_of_2").finished() is not None
    assert with_files.stored(2).passed, "the database is as it was"


def test_a_reset_of_all_removes_every_worker_and_leaves_the_database(with_files: House) -> None:
    rows = with_files.view("unique_conditions").actual
    remove(plan_reset(with_files.settings))
    assert files(with_files) == set()
    assert with_files.view("unique_conditions").actual == rows == 16
    assert plan_reset(with_files.settings).keys == ()


def test_a_reset_refuses_while_a_run_is_going_and_removes_nothing(with_files: House) -> None:
    before = files(with_files)
    locks = Path(with_files.settings.runtime_dir) / "locks"
    with (
        FileLocks(locks).hold("worker_2_of_2", purpose="goldsky_payouts"),
        pytest.raises(LockHeldError, match="process"),
    ):
        remove(plan_reset(with_files.settings))
    assert files(with_files) == before


def test_the_reset_command_asks_first(with_files: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAYOUT_RUNTIME_DIR", with_files.settings.runtime_dir)
    monkeypatch.setenv("PAYOUT_WORKERS", "2")
    before = files(with_files)
    refused = CliRunner().invoke(reset_command, [], input="n\n")
    assert refused.exit_code == 1
    assert files(with_files) == before
    done = CliRunner().invoke(reset_command, ["--worker", "2", "--yes"])
    assert done.exit_code == 0, done.output
    assert "goldsky_payouts/worker_2_of_2" not in files(with_files)
    assert CliRunner().invoke(reset_command, ["--worker", "2", "--yes"]).output == "Nothing to remove.\n"


def test_a_worker_that_does_not_exist_is_a_wrong_usage(finished: House) -> None:  # noqa: F811
    with pytest.raises(ConfigurationError, match="use 1 to 2"):
        plan_reset(finished.settings, 3)
