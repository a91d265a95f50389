"""H1 to H5: after a finished backfill something beneath it is wrong, and no command may call that a success.

One small backfill is made once with the real commands; each case starts from a copy of what it left, makes one kind of wrong
data by SQL or by a setting, and runs ``payout-pipeline verify`` or ``report`` as a user does.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from payout_pipeline.subgraph.generate import GeneratedData, generate
from payout_pipeline.subgraph.server import SubgraphConfig, SubgraphServer
from payout_pipeline_tests.chaos.processes import Nursery
from payout_pipeline_tests.running import Place, prepare_pnl

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

VIEW = "cascadian_clean.vw_resolutions_truth"
PNL = "cascadian_clean.vw_wallet_pnl_settled"
TABLE = "default.resolutions_external_ingest"
MARKET = "default.market_resolutions_final"
FROZEN = f"CREATE TABLE default.frozen ENGINE = MergeTree ORDER BY condition_id AS SELECT * FROM {VIEW}"
COLUMNS = "condition_id, payout_numerators, payout_denominator, winning_index, resolved_at, source"


def _view(select: str) -> list[str]:
    return [FROZEN, f"CREATE OR REPLACE VIEW {VIEW} AS {select}"]


@dataclass
class Finished:
    """The backfill that all cases start from; ``data`` are its ids and what the subgraph knows of them."""

    place: Place
    server: SubgraphServer
    data: GeneratedData

    def restore(self, state: str = "after") -> Place:
        """A fresh copy of what the backfill left, at the same paths; with ``before``, of what it found."""
        for name in ("runtime", "home"):
            shutil.rmtree(self.place.directory / name, ignore_errors=True)
            shutil.copytree(self.place.directory / state / name, self.place.directory / name, symlinks=True)
        self.server.faults.clear()
        self.server.log.clear()
        return self.place


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    directory = tmp_path_factory.mktemp("finished")
    data = generate(240, 3, directory / "data")
    with SubgraphServer(SubgraphConfig(conditions=data.conditions)) as server, Nursery() as nursery:
        place = Place(directory, server.url, data.ids, {"PAYOUT_WORKERS": "2"}, nursery)
        prepare_pnl(place, data.conditions)
        _keep(directory, "before")
        done = place.run("backfill")
        assert done.returncode == 0, done.stdout
        _keep(directory, "after")
        yield Finished(place, server, data)


def _keep(directory: Path, state: str) -> None:
    for name in ("runtime", "home"):
        shutil.copytree(directory / name, directory / state / name, symlinks=True)


@pytest.fixture
def place(finished: Finished) -> Place:
    return finished.restore()


def _verdict(place: Place, *command: str, **extra: str) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of ``verify`` (or another command); NaN and Infinity are no JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    code, text = place.json(*(command or ("verify",)), **extra)
    return code, json.loads(text, parse_constant=refuse)


def _states(report: dict[str, Any], state: str) -> set[str]:
    return {check["check"] for check in report["checks"] if check["state"] == state}


WRONG: dict[str, tuple[list[str], set[str]]] = {
    "the view is a frozen copy with reversed vectors": (
        _view(
            "SELECT condition_id, arrayReverse(payout_numerators) AS payout_numerators, payout_denominator, "
            "toInt32(1 - winning_index) AS winning_index, resolved_at, source FROM default.frozen"
        ),
        {"view_equals_sources"},
    ),
    "the view lacks the market rows": (
        _view(f"SELECT {COLUMNS} FROM default.frozen WHERE source != 'market_resolutions_final'"),
        {"market_rows_included", "view_equals_sources"},
    ),
    "the view lacks one Goldsky row": (
        _view(
            f"SELECT {COLUMNS} FROM default.frozen WHERE condition_id != "
            "(SELECT max(condition_id) FROM default.frozen WHERE source = 'goldsky-api')"
        ),
        {"goldsky_rows_included", "view_equals_sources"},
    ),
    "the view has one foreign row more": (
        _view(
            f"SELECT {COLUMNS} FROM default.frozen UNION ALL SELECT repeat('ab', 32), [1, 0], 1, toInt32(0), NULL, "
            "'goldsky-api'"
        ),
        {"view_equals_sources"},
    ),
    "the view has a row [0,0]/1 more": (
        _view(
            f"SELECT {COLUMNS} FROM default.frozen UNION ALL SELECT repeat('cd', 32), [0, 0], 1, toInt32(-1), NULL, "
            "'goldsky-api'"
        ),
        {"view_equals_sources", "no_null_payouts"},
    ),
    "the view has a NaN in its vectors": (
        _view(
            "SELECT condition_id, arrayMap(x -> if(condition_id = (SELECT max(condition_id) FROM default.frozen), nan, "
            "toFloat64(x)), payout_numerators) AS payout_numerators, payout_denominator, winning_index, resolved_at, "
            "source FROM default.frozen"
        ),
        {"view_equals_sources"},
    ),
    "the view has every row twice": (
        _view(f"SELECT {COLUMNS} FROM default.frozen UNION ALL SELECT {COLUMNS} FROM default.frozen"),
        {"one_row_per_condition"},
    ),
    "the view names another winner": (
        _view(
            "SELECT condition_id, payout_numerators, payout_denominator, toInt32(winning_index + 1) AS winning_index, "
            "resolved_at, source FROM default.frozen"
        ),
        {"view_equals_sources"},
    ),
    "the view has invented times": (
        _view(
            "SELECT condition_id, payout_numerators, payout_denominator, winning_index, now() AS resolved_at, source "
            "FROM default.frozen"
        ),
        {"view_equals_sources"},
    ),
    "the view names another source": (
        _view(
            "SELECT condition_id, payout_numerators, payout_denominator, winning_index, resolved_at, 'other' AS source "
            "FROM default.frozen"
        ),
        {"view_equals_sources"},
    ),
    "the view writes ids with 0x": (
        _view(
            "SELECT concat('0x', condition_id) AS condition_id, payout_numerators, payout_denominator, winning_index, "
            "resolved_at, source FROM default.frozen"
        ),
        {"view_equals_sources"},
    ),
    "the view is empty": (_view(f"SELECT {COLUMNS} FROM default.frozen WHERE 0"), {"view_equals_sources"}),
    "the view is gone": ([f"DROP VIEW {VIEW}"], {"view_equals_sources", "one_row_per_condition"}),
    "the table is empty": ([f"TRUNCATE TABLE {TABLE}"], {"stored_equals_fetched", "payout_quality", "payout_sample"}),
    "the table is gone": ([f"DROP TABLE {TABLE}"], {"stored_equals_fetched", "unique_conditions"}),
    "a row of the table is deleted": (
        [f"DELETE FROM {TABLE} WHERE condition_id = (SELECT max(condition_id) FROM {TABLE})"],
        {"stored_equals_fetched"},
    ),
    "a vector of the table is edited": (
        [
            f"INSERT INTO {TABLE} SELECT condition_id, arrayReverse(payout_numerators), payout_denominator, "
            f"winning_index, resolved_at, source, fetched_at + 1, block_number FROM {TABLE} "
            "WHERE payout_numerators = [0, 1] ORDER BY condition_id LIMIT 1"
        ],
        {"stored_equals_fetched"},
    ),
    "the table has a row of ours in upper case": (
        [
            f"INSERT INTO {TABLE} SELECT upper(condition_id), arrayReverse(payout_numerators), payout_denominator, "
            f"winning_index, resolved_at, source, fetched_at + 1, block_number FROM {TABLE} "
            "WHERE payout_numerators = [0, 1] AND match(condition_id, '[a-f]') ORDER BY condition_id LIMIT 1"
        ],
        {"stored_equals_fetched"},
    ),
    "the market table is empty": ([f"TRUNCATE TABLE {MARKET}"], {"coverage_before_after"}),
    "the market table holds zero vectors": (
        [
            f"INSERT INTO {MARKET} SELECT * REPLACE (arrayMap(x -> 0, payout_numerators) AS payout_numerators, "
            f"updated_at + 1 AS updated_at) FROM {MARKET}"
        ],
        {"no_null_payouts"},
    ),
    "the market table holds wrapped vectors": (
        [
            f"INSERT INTO {MARKET} SELECT * REPLACE (arrayMap(x -> x * 7, payout_numerators) AS payout_numerators, "
            f"updated_at + 1 AS updated_at) FROM {MARKET}"
        ],
        {"payout_quality"},
    ),
    "the P&L view says NaN": (
        [
            f"CREATE TABLE default.pnl_frozen ENGINE = MergeTree ORDER BY wallet AS SELECT * FROM {PNL}",
            f"CREATE OR REPLACE VIEW {PNL} AS SELECT * REPLACE (if(wallet = (SELECT max(wallet) FROM "
            "default.pnl_frozen), nan, trading_pnl) AS trading_pnl) FROM default.pnl_frozen",
        ],
        {"settled_pnl"},
    ),
    "the P&L view has a wallet twice": (
        [
            f"CREATE TABLE default.pnl_frozen ENGINE = MergeTree ORDER BY wallet AS SELECT * FROM {PNL}",
            f"CREATE OR REPLACE VIEW {PNL} AS SELECT * FROM default.pnl_frozen UNION ALL SELECT * FROM "
            "(SELECT * FROM default.pnl_frozen ORDER BY wallet LIMIT 1)",
        ],
        {"settled_pnl"},
    ),
    "the P&L view lost a wallet": (
        [
            f"CREATE TABLE default.pnl_frozen ENGINE = MergeTree ORDER BY wallet AS SELECT * FROM {PNL}",
            f"CREATE OR REPLACE VIEW {PNL} AS SELECT * FROM default.pnl_frozen ORDER BY wallet LIMIT 1",
        ],
        {"settled_pnl"},
    ),
    "the P&L view has other columns": ([f"CREATE OR REPLACE VIEW {PNL} AS SELECT 1 AS one"], {"settled_pnl"}),
}


def assert_named(place: Place, statements: list[str], named: set[str]) -> None:
    """After these statements ``verify`` is no success, and these checks say so."""
    for statement in statements:
        place.execute(statement)

    code, report = _verdict(place)

    assert code == 1
    assert named <= _states(report, "failed"), report["headline"]
    assert "SUCCESS" not in report["headline"].replace("NOT A SUCCESS", "")


@pytest.mark.parametrize(("statements", "named"), WRONG.values(), ids=WRONG.keys())
def test_h1_wrong_data_is_named_by_a_check(place: Place, statements: list[str], named: set[str]) -> None:
    assert_named(place, statements, named)


def test_a_finished_backfill_verifies_and_its_report_is_a_success(place: Place) -> None:
    code, report = _verdict(place)
    assert code == 0, report["headline"]
    assert _verdict(place, "report")[0] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"PAYOUT_MIN_UNIQUE_CONDITIONS": "0.1"},
        {"PAYOUT_MAX_ERROR_RATE": "0.5"},
        {"PAYOUT_PNL_VIEW": "default.another"},
        {"PAYOUT_MARKET_RESOLUTIONS_TABLE": "default.another"},
        {"PAYOUT_TARGET_TABLE": "default.another"},
        {"PAYOUT_TRUTH_VIEW": "default.another"},
        {"GOLDSKY_ENDPOINT": "http://127.0.0.1:9/another"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_h2_a_setting_that_changed_after_the_checks_passed_makes_them_outdated(
    place: Place, change: dict[str, str]
) -> None:
    code, report = _verdict(place, "report", **change)

    assert code == 1
    outdated = [check for check in report["checks"] if check["state"] == "outdated"]
    assert outdated
    assert all(check["reason"] for check in outdated)


def test_h2_another_input_makes_the_results_outdated(place: Place) -> None:
    text = place.ids_file.read_text()
    try:
        place.ids_file.write_text(text + "f" * 64 + "\n")
        code, report = _verdict(place, "report")
    finally:
        place.ids_file.write_text(text)
    assert code == 1
    assert "every_id_accounted_for" in _states(report, "outdated")


def test_h2_the_ledger_of_a_worker_deleted_after_a_passed_run_is_no_success(place: Place) -> None:
    shutil.rmtree(place.runtime / "goldsky_payouts" / "worker_1_of_2")
    assert _verdict(place, "report")[0] == 1
    code, report = _verdict(place)
    assert code == 1
    assert {"every_id_accounted_for", "error_rate", "all_workers_complete"} <= _states(report, "failed")


def test_h2_reset_makes_every_result_outdated(place: Place) -> None:
    assert place.run("reset", "--yes").returncode == 0
    code, report = _verdict(place, "report")
    assert code == 1
    assert "all_workers_complete" not in _states(report, "passed")


def test_h2_fetched_again_with_other_vectors_and_not_loaded_is_no_success(finished: Finished, place: Place) -> None:
    ids = place.ids_file.read_text().split()
    finished.server.faults.add("raw", fields={"0x" + i: {"payouts": ["0.25", "0.75"]} for i in ids[:20]})
    done = place.materialize("goldsky_payouts", "worker_1_of_2")
    assert done.returncode == 0, done.stdout

    code, report = _verdict(place, "report")
    assert code == 1
    assert {"stored_equals_fetched", "view_equals_sources"} <= _states(report, "outdated")
    changed = [c for c in report["checks"] if c["check"] == "vectors_unchanged" and c["state"] == "failed"]
    assert [c["partition"] for c in changed] == ["worker_1_of_2"]

    code, report = _verdict(place)
    assert code == 1
    assert "stored_equals_fetched" in _states(report, "failed")


def test_h3_an_endpoint_that_knows_none_of_the_ids_takes_no_stored_vector_away(
    finished: Finished, place: Place, tmp_path: Path
) -> None:
    before = place.stored()
    other = generate(50, 99, tmp_path)
    with SubgraphServer(SubgraphConfig(conditions=other.conditions)) as server:
        done = place.run("backfill", GOLDSKY_ENDPOINT=server.url)
        assert done.returncode == 1
        for partition in ("worker_1_of_2", "worker_2_of_2"):
            assert place.materialize("goldsky_payouts", partition, GOLDSKY_ENDPOINT=server.url).returncode == 0
            loaded = place.materialize("resolutions_external_ingest", partition, GOLDSKY_ENDPOINT=server.url)
            assert loaded.returncode == 1
            assert "allow" in loaded.stdout
        code, report = _verdict(place, "report", GOLDSKY_ENDPOINT=server.url)
    assert place.stored() == before
    assert code == 1
    assert "ids_are_known" in _states(report, "failed")


def test_h3_an_invalid_answer_takes_no_stored_vector_away(finished: Finished, place: Place) -> None:
    before = place.stored()
    ids, known = place.ids_file.read_text().split(), {row[0] for row in before}
    one_a_worker = [next(i for i in chunk if i in known) for chunk in (ids[:120], ids[120:])]
    finished.server.faults.add("raw", fields={"0x" + i: {"payouts": ["0.5", "0.6"]} for i in one_a_worker})

    done = place.run("backfill")

    assert place.stored() == before
    assert place.ledger_counts()["invalid"] == 2, done.stdout
    assert done.returncode == 0, "1 of 120 ids of a worker is within PAYOUT_MAX_ERROR_RATE, and no vector is missing"


def test_h4_a_loss_in_the_view_stays_a_loss_when_the_view_is_built_again(place: Place) -> None:
    place.execute(f"TRUNCATE TABLE {MARKET}")
    for _ in range(2):
        place.materialize("vw_resolutions_truth")
        code, report = _verdict(place, "report")
        assert code == 1
        assert "coverage_before_after" in _states(report, "failed")

    assert place.run("verify", "--accept-loss").returncode == 0
    assert _verdict(place)[0] == 0


@pytest.mark.parametrize(
    "statements",
    [
        [f"DROP VIEW {VIEW}"],
        [f"CREATE OR REPLACE VIEW {VIEW} AS SELECT condition_id AS condition_id_norm, 1 AS other FROM {TABLE}"],
        [f"CREATE OR REPLACE VIEW {VIEW} AS SELECT throwIf(number = 0) AS condition_id FROM numbers(1)"],
        [f"CREATE OR REPLACE VIEW {PNL} AS SELECT throwIf(number = 0) AS wallet, 1 AS total_pnl FROM numbers(1)"],
    ],
    ids=["view dropped", "view with condition_id_norm", "view that throws", "P&L view that throws"],
)
def test_h5_a_broken_view_is_healed_by_the_rebuild(place: Place, statements: list[str]) -> None:
    for statement in statements:
        place.execute(statement)

    place.materialize("vw_resolutions_truth")
    _, report = _verdict(place, "report")

    broken_pnl = PNL in statements[0]
    assert _states(report, "failed") == ({"settled_pnl"} if broken_pnl else set())


def test_a_foreign_source_that_says_the_same_in_other_terms_is_no_conflict_and_a_placeholder_no_vector(
    place: Place,
) -> None:
    place.execute(
        f"INSERT INTO {MARKET} (condition_id_norm, payout_numerators, payout_denominator, winning_index, updated_at) "
        f"SELECT condition_id, [0, 100], 100, 1, now() FROM {TABLE} WHERE payout_numerators = [0, 1] LIMIT 3"
    )
    code, report = _verdict(place)
    assert code == 0, report["headline"]
    assert "sources_agree" in _states(report, "passed")
