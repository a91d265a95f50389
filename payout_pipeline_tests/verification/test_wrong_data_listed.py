"""Small inputs by which the pipeline once called wrong data a success, or right data wrong; over the commands."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from payout_pipeline.subgraph.generate import generate
from payout_pipeline.subgraph.server import SubgraphConfig, SubgraphServer
from payout_pipeline_tests.running import Place, truth_of
from payout_pipeline_tests.verification.test_wrong_data import (
    COLUMNS,
    MARKET,
    PNL,
    TABLE,
    VIEW,
    Finished,
    _states,
    _verdict,
    finished,
    place,
)

__all__ = ["finished", "place"]  # fixtures

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

_CLASS_NAME = re.compile(r"\b(?:[A-Z]+[a-z]+){2,}\b")


@pytest.fixture
def unfilled(finished: Finished) -> Place:
    """The user's tables and views as they were before the first backfill."""
    return finished.restore("before")


def _check(report: dict[str, Any], name: str) -> dict[str, Any]:
    """The one check of the view with this name."""
    (found,) = [check for check in report["checks"] if check["check"] == name]
    return dict(found)


def _words(text: str) -> str:
    return " ".join(text.split())


def assert_plain(printed: str) -> None:
    """``printed`` names no class and no inner module of Dagster, and fits 120 columns."""
    assert not {name for name in _CLASS_NAME.findall(printed) if hasattr(dg, name) or name.startswith("Dagster")}
    assert "dagster._core" not in printed
    assert "Traceback" not in printed
    assert max(len(line) for line in printed.splitlines()) <= 120


def assert_plain_and_whole(printed: str, report: dict[str, Any]) -> None:
    """``printed`` is plain, and has every cause of ``report`` with its repair to the last word."""
    assert_plain(printed)
    assert report["causes"]
    for cause in report["causes"]:
        for text in (cause["title"], cause["sentences"][0], cause["repair"]):
            assert _words(text) in _words(printed)


def test_2b_a_wallet_whose_new_market_makes_its_total_0_has_lost_nothing(finished: Finished, unfilled: Place) -> None:
    known = hashlib.sha256(b"known0").hexdigest()  # of the demo's market table
    new = next(i for i, vector in truth_of(finished.data.conditions).items() if vector == ((27, 23), 50))
    unfilled.execute(
        f"CREATE OR REPLACE VIEW {PNL} AS SELECT '0xabc' AS wallet, "
        f"sum(multiIf(condition_id = '{known}', 5., condition_id = '{new}', -5., 0.)) AS total_pnl FROM {VIEW}"
    )

    done = unfilled.run("backfill")

    assert done.returncode == 0, done.stdout
    settled = _check(_verdict(unfilled, "report")[1], "settled_pnl")
    assert settled["state"] == "passed"
    assert settled["description"] == "1 wallet has settled P&L of 0.00 USD in total (1 and 5.00 USD before)."


def test_2c_rows_without_a_wallet_fail_and_pay_nobody_twice(place: Place) -> None:
    place.execute(f"CREATE TABLE default.pnl_frozen ENGINE = MergeTree ORDER BY wallet AS SELECT * FROM {PNL}")
    place.execute(
        f"CREATE OR REPLACE VIEW {PNL} AS SELECT * FROM default.pnl_frozen UNION ALL "
        "SELECT * REPLACE (NULL AS wallet) FROM (SELECT * FROM default.pnl_frozen ORDER BY wallet LIMIT 2)"
    )

    code, report = _verdict(place)

    assert code == 1
    assert _states(report, "failed") == {"settled_pnl"}
    settled = _check(report, "settled_pnl")
    assert settled["description"].startswith(f"2 rows of {PNL} have no wallet.")
    assert settled["facts"]["paid twice"] == 0
    assert not re.search("twice|again", settled["description"])


def test_1b_a_new_view_without_the_market_rows_is_found_where_no_id_is_in_both_sources(place: Place) -> None:
    of_mine = {
        "PAYOUT_MARKET_RESOLUTIONS_TABLE": "default.market_mine",
        "PAYOUT_TRUTH_VIEW": "cascadian_clean.mine",
        "PAYOUT_PNL_VIEW": "",
    }
    place.execute(
        f"CREATE TABLE default.market_mine ENGINE = MergeTree ORDER BY condition_id_norm AS SELECT * FROM {MARKET} "
        f"WHERE toString(condition_id_norm) NOT IN (SELECT condition_id FROM {TABLE})"
    )
    built = place.materialize("vw_resolutions_truth", **of_mine)
    assert built.returncode == 0, built.stdout
    _, report = _verdict(place, "report", **of_mine)
    assert "and is new" in _check(report, "coverage_before_after")["description"]
    assert _check(report, "sources_agree")["facts"]["resolved by both"] == 0
    place.execute(f"CREATE OR REPLACE VIEW cascadian_clean.mine AS SELECT {COLUMNS} FROM {TABLE} FINAL")

    code, report = _verdict(place, **of_mine)

    assert code == 1
    assert {"market_rows_included", "view_equals_sources"} <= _states(report, "failed")
    assert not {"goldsky_rows_included", "no_null_payouts"} & _states(report, "failed"), "not caught by the overlap"


def test_6_a_loss_of_the_users_own_500_conditions_stays_a_loss_when_the_view_is_built_again(unfilled: Place) -> None:
    own = {
        "PAYOUT_MARKET_RESOLUTIONS_TABLE": "default.no_market",
        "PAYOUT_TRUTH_VIEW": "cascadian_clean.own",
        "PAYOUT_PNL_VIEW": "",
    }
    unfilled.execute(
        "CREATE VIEW cascadian_clean.own AS SELECT lower(hex(SHA256(toString(number)))) AS condition_id, "
        "[1, 0] AS payout_numerators, 1 AS payout_denominator, toInt32(0) AS winning_index, "
        "toDateTime(0, 'UTC') AS resolved_at, 'mine' AS source FROM numbers(500)"
    )

    done = unfilled.run("backfill", **own)

    assert done.returncode == 1
    assert "500 before, 320 lost" in _words(done.stdout)
    assert_plain(done.stdout)

    assert unfilled.materialize("vw_resolutions_truth", **own).returncode == 1
    code, report = _verdict(unfilled, "report", **own)
    assert code == 1
    assert _states(report, "failed") == {"coverage_before_after"}
    assert "500 before, 320 lost" in _check(report, "coverage_before_after")["description"]


def test_7_after_a_missed_bar_the_next_backfill_asks_anew(finished: Finished, unfilled: Place) -> None:
    bar = {"PAYOUT_MIN_UNIQUE_CONDITIONS": "170"}
    resolved = list(truth_of(finished.data.conditions))
    assert len(resolved) == 180
    finished.server.faults.add("raw", fields={"0x" + i: {"payouts": None} for i in resolved[:20]})
    missed = unfilled.run("backfill", **bar)
    assert missed.returncode == 1
    assert "160 of 240 conditions of the input have a payout vector" in _words(missed.stdout)
    assert_plain(missed.stdout)
    finished.server.faults.clear()
    finished.server.log.clear()

    done = unfilled.run("backfill", **bar)

    assert done.returncode == 0, done.stdout
    assert "Continuing" not in done.stdout
    assert len(finished.server.log.asked_ids(200)) == 240
    assert unfilled.ledger_counts()["resolved"] == 180
    assert {row[0] for row in unfilled.stored()} == set(resolved)


def test_7_refetch_on_the_command_line_wins_over_an_interrupted_backfill(finished: Finished, place: Place) -> None:
    ids = ["0x" + i for i in place.ids_file.read_text().split()]
    finished.server.faults.add("poison", ids=ids[120:], status=404)
    interrupted = place.run("backfill")
    assert interrupted.returncode == 1
    assert "worker_1_of_2: done." in interrupted.stdout
    assert "worker_2_of_2: FAILED." in interrupted.stdout
    finished.server.faults.clear()
    finished.server.log.clear()

    done = place.run("backfill", "--refetch", "unresolved")

    assert done.returncode == 0, done.stdout
    assert "Continuing" not in done.stdout
    resolved = {"0x" + i for i in truth_of(finished.data.conditions)}
    assert set(finished.server.log.asked_ids(200)) == set(ids) - resolved, "of both workers, and no resolved one"


def test_8_rows_of_an_older_input_do_not_count_for_todays(place: Place, tmp_path: Path) -> None:
    place.execute(f"DELETE FROM {TABLE} WHERE condition_id NOT IN (SELECT condition_id FROM {TABLE} LIMIT 100)")
    new = generate(40, 77, tmp_path / "new")
    other = generate(10, 78, tmp_path / "other")
    with SubgraphServer(SubgraphConfig(conditions=other.conditions, unresolved=new.ids)) as server:
        today = {"CONDITION_IDS_FILE": str(new.ids), "GOLDSKY_ENDPOINT": server.url}
        done = place.run("backfill", **today)
        code, report = _verdict(place, "report", **today)

    assert done.returncode == code == 1
    unique = _check(report, "unique_conditions")
    assert (unique["state"], unique["actual"]) == ("failed", 0)
    assert unique["description"].startswith("0 of 40 conditions of the input have a payout vector from goldsky-api")
    assert unique["tables"][0]["rows"] == [["goldsky-api", 100, 100]]
    assert_plain_and_whole(done.stdout, report)


def test_9a_of_two_spellings_the_normal_form_counts_in_the_view_and_in_sources_agree(
    finished: Finished, place: Place
) -> None:
    mine = {"PAYOUT_MARKET_RESOLUTIONS_TABLE": "default.market_mine"}
    won = [i for i, vector in truth_of(finished.data.conditions).items() if vector == ((0, 1), 1)]
    k = won[-1]  # the demo's market table has the first quarter of them
    place.execute(
        "CREATE TABLE default.market_mine ENGINE = ReplacingMergeTree(updated_at) ORDER BY condition_id AS "
        "SELECT toString(condition_id_norm) AS condition_id, payout_numerators, payout_denominator, "
        f"toInt32(winning_index) AS winning_index, resolved_at, updated_at FROM {MARKET} UNION ALL "
        f"SELECT '{k}', [1, 0], 1, 0, NULL, toDateTime('2025-01-01 00:00:00') UNION ALL "
        f"SELECT '0x{k}', [0, 1], 1, 1, NULL, toDateTime('2025-06-01 00:00:00')"
    )

    built = place.materialize("vw_resolutions_truth", **mine)

    code, report = _verdict(place, "report", **mine)
    assert code == 0, built.stdout
    paid = place.query(f"SELECT payout_numerators AS n, source FROM {VIEW} WHERE condition_id = '{k}'")
    assert [([int(n) for n in row["n"]], row["source"]) for row in paid] == [([1, 0], "market_mine")]
    agree = _check(report, "sources_agree")
    assert (agree["state"], agree["severity"]) == ("failed", "WARN")
    assert agree["tables"][0]["rows"] == [[k, "[1,0]/1", "[0,1]/1"]]


def test_9b_thirds_as_floats_agree_with_exact_ones(place: Place) -> None:
    mine = {"PAYOUT_MARKET_RESOLUTIONS_TABLE": "default.market_float"}
    place.execute(
        f"INSERT INTO {TABLE} (condition_id, payout_numerators, payout_denominator, winning_index, source, fetched_at) "
        "VALUES (repeat('ab', 32), [2, 1], 3, 0, 'goldsky-api', now64(3))"  # of an older input
    )
    place.execute(
        "CREATE TABLE default.market_float ENGINE = MergeTree ORDER BY condition_id AS "
        "SELECT toString(condition_id_norm) AS condition_id, CAST(payout_numerators, 'Array(Float64)') AS payout_numerators, "
        f"toFloat64(payout_denominator) AS payout_denominator, resolved_at FROM {MARKET} "
        f"WHERE toString(condition_id_norm) NOT IN (SELECT condition_id FROM {TABLE}) UNION ALL "
        "SELECT repeat('ab', 32), [0.6666666666666666, 0.3333333333333333], 1, NULL"
    )

    built = place.materialize("vw_resolutions_truth", **mine)

    code, report = _verdict(place, "report", **mine)
    assert code == 0, built.stdout
    agree = _check(report, "sources_agree")
    assert agree["state"] == "passed"
    assert agree["description"] == "1 condition is resolved by both sources, all with the same vector."


def test_12c_a_pnl_view_with_other_columns_does_not_keep_the_view_from_being_rebuilt(place: Place) -> None:
    place.execute(f"CREATE OR REPLACE VIEW {PNL} AS SELECT 1 AS one")
    place.execute(f"DROP VIEW {VIEW}")

    place.materialize("vw_resolutions_truth")

    code, report = _verdict(place, "report")
    assert code == 1
    assert _states(report, "failed") == {"settled_pnl"}
    assert "has no wallet" in _check(report, "settled_pnl")["description"]
    assert {"view_equals_sources", "coverage_before_after"} <= _states(report, "passed")


def test_15b_after_a_reset_and_a_backfill_in_which_all_workers_fail_no_worker_is_called_complete(
    finished: Finished, place: Place
) -> None:
    assert place.run("reset", "--yes").returncode == 0
    finished.server.faults.add("drop")

    done = place.run("backfill", GOLDSKY_OUTAGE_BUDGET_SECONDS="1", GOLDSKY_MAX_RETRIES="1")

    assert done.returncode == 1
    assert "worker_1_of_2: FAILED." in done.stdout
    assert "worker_2_of_2: FAILED." in done.stdout
    assert "workers are complete" not in _words(done.stdout)
    code, report = _verdict(place, "report")
    assert code == 1
    assert _check(report, "all_workers_complete")["state"] == "outdated"
    assert_plain_and_whole(done.stdout, report)


def test_18a_ids_that_are_all_unknown_are_asked_to_be_question_or_token_ids(place: Place, tmp_path: Path) -> None:
    questions = generate(60, 99, tmp_path)
    today = {"CONDITION_IDS_FILE": str(questions.ids)}

    done = place.run("backfill", **today)

    assert done.returncode == 1
    assert "Are these question or token ids?" in _words(done.stdout)
    _, report = _verdict(place, "report", **today)
    known = [check for check in report["checks"] if check["check"] == "ids_are_known"]
    assert [check["state"] for check in known] == ["failed", "failed"]
    assert known[0]["description"].startswith("30 of 30 ids of worker_1_of_2 (100.00 %) are unknown to the subgraph")
    assert known[0]["description"].endswith("Are these question or token ids?")
    assert "question or token ids" in _check(report, "unique_conditions")["repair"]
    assert_plain_and_whole(done.stdout, report)
