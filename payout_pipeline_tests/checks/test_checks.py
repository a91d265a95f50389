"""Every check on the real engine: with data that passes, and with a defect of its own that it names."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pyarrow as pa
import pytest

from payout_pipeline.checks import make_verdicts
from payout_pipeline.checks.catalogue import FETCHED, STORED, VIEW, catalogue, checks_of
from payout_pipeline.errors import PayoutPipelineError
from payout_pipeline.ledger import Pin
from payout_pipeline.payouts import InvalidVector, Vector
from payout_pipeline.verdict import NO_ANSWER, Severity, Verdict
from payout_pipeline.verification.baseline import accept, measure
from payout_pipeline.warehouse.client import Warehouse
from payout_pipeline_tests.report_fixtures import (  # noqa: F401 - fixtures
    IDS,
    RESOLVED,
    House,
    condition,
    finished,
    house,
    open_engine,
    runtime,
)

PER_WORKER = IDS // 2
NOW = datetime.now(timezone.utc)


def failed(verdict: Verdict, *said: str) -> Verdict:
    """The verdict failed, its sentence names the defect, and it says what to do."""
    assert not verdict.passed, verdict.description
    for text in said:
        assert text in verdict.description, verdict.description
    assert verdict.repair
    assert verdict.description.endswith((".", "?"))
    return verdict


# --------------------------------------------------------------------------------------------------- goldsky_payouts


def test_every_check_passes_on_a_finished_backfill(finished: House) -> None:  # noqa: F811
    for worker in (1, 2):
        for info in checks_of(FETCHED, finished.settings):
            verdict = finished.fetched(info.name, worker)
            if info.name == "ids_are_known":  # two of twelve are absent, which is worth the warning
                assert failed(verdict, "2 of 12 ids").severity is Severity.WARN
                continue
            assert verdict.passed or verdict.nothing, verdict.description
            assert (verdict.check, verdict.severity, verdict.repair) == (info.name, info.severity, "")
        assert finished.stored(worker).passed
    finished.run(*PNL)
    for info in checks_of(VIEW, finished.settings):
        verdict = finished.view(info.name)
        assert verdict.passed or verdict.nothing, verdict.description
        assert (verdict.check, verdict.severity, verdict.repair) == (info.name, info.severity, "")


def test_the_ledger_of_a_worker_holds_each_id_once_and_says_so_with_numbers(finished: House) -> None:  # noqa: F811
    verdict = finished.fetched("every_id_accounted_for")
    assert verdict.description == (
        "12 of 12 ids of worker_1_of_2 are in the ledger, each once: "
        "8 resolved, 2 unresolved, 2 absent, 0 invalid, 0 failed."
    )
    assert (verdict.expected, verdict.actual) == (12, 12)


def test_a_lost_row_of_the_ledger_is_named(finished: House) -> None:  # noqa: F811
    finished.tamper(1, lambda table: pa.concat_tables([table.slice(0, 3), table.slice(4)]))
    verdict = failed(finished.fetched("every_id_accounted_for"), "1 missing", condition(3))
    assert verdict.tables[0].rows == (("missing", condition(3)),)
    assert (verdict.expected, verdict.actual) == (12, 11)
    assert finished.fetched("every_id_accounted_for", worker=2).passed


def test_a_doubled_row_of_the_ledger_is_named(finished: House) -> None:  # noqa: F811
    finished.tamper(1, lambda table: pa.concat_tables([table, table.slice(7, 1)]))
    verdict = failed(finished.fetched("every_id_accounted_for"), "1 there twice", condition(7))
    assert verdict.tables[0].rows == (("there twice", condition(7)),)


def test_ids_of_a_changed_input_are_missing_and_the_former_ones_not_asked_for(finished: House) -> None:  # noqa: F811
    lines = finished.settings.condition_ids_file.read_text().splitlines()
    lines[2] = condition(999)
    finished.settings.condition_ids_file.write_text("\n".join(lines))
    verdict = failed(finished.fetched("every_id_accounted_for"), "1 missing", "1 not asked for")
    assert verdict.tables[0].rows == (("missing", condition(999)), ("not asked for", condition(2)))


def test_a_worker_without_a_ledger_accounts_for_none_of_its_ids(house: House) -> None:  # noqa: F811
    verdict = failed(
        house.fetched("every_id_accounted_for"), "no finished ledger of worker_1_of_2", "none of its 12 ids"
    )
    assert verdict.expected == "a finished ledger"


def test_a_ledger_of_another_endpoint_accounts_for_nothing(finished: House) -> None:  # noqa: F811
    other = finished.with_settings(goldsky_endpoint="http://127.0.0.1:9/subgraphs/name/another")
    failed(other.fetched("every_id_accounted_for"), "worker_1_of_2", "another endpoint")


def test_failed_and_invalid_ids_within_the_limit_pass_and_are_listed(house: House) -> None:  # noqa: F811
    house.answers[4] = "HTTP 500: out of order"
    house.answers[5] = InvalidVector("the numerators sum to 0")
    house.write_ledger(1)
    verdict = house.with_settings(max_error_rate=0.5).fetched("error_rate")
    assert verdict.passed
    assert verdict.actual == pytest.approx(2 / 12)
    assert verdict.tables[0].rows == (
        (condition(4), "failed", "HTTP 500: out of order"),
        (condition(5), "invalid", "the numerators sum to 0"),
    )


def test_more_failures_than_the_limit_fail_and_name_the_first_with_its_error(house: House) -> None:  # noqa: F811
    house.answers[4] = "HTTP 500: out of order"
    house.write_ledger(1)
    verdict = failed(
        house.fetched("error_rate"), "1 of 12 ids", "8.33 %", condition(4), "out of order", "at most 1 % may"
    )
    assert (verdict.expected, verdict.actual) == (0.01, pytest.approx(1 / 12))


def test_a_stale_head_is_a_warning_with_its_age(house: House) -> None:  # noqa: F811
    old = int((NOW - timedelta(days=3, hours=5)).timestamp())
    house.write_ledger(1, Pin(1_000, "QmDeployment", "number", 1_250, old))
    verdict = failed(house.fetched("source_is_fresh"), "worker_1_of_2", "block 1,250", "3 d 5 h old")
    assert verdict.severity is Severity.WARN


def test_indexing_errors_and_an_unknown_age_are_warnings(house: House) -> None:  # noqa: F811
    house.write_ledger(1, Pin(1_000, "QmDeployment", "number", 1_250, int(NOW.timestamp()), has_indexing_errors=True))
    failed(house.fetched("source_is_fresh"), "indexing errors")
    house.write_ledger(2, Pin(1_000, "QmDeployment", "number", 1_250, None))
    failed(house.fetched("source_is_fresh", worker=2), "does not say how old")


def test_an_empty_chunk_passes_every_check_although_nothing_was_asked(house: House) -> None:  # noqa: F811
    house.write_input(1)  # two workers, one id: the second has nothing to do
    house.complete()
    verdicts = [house.fetched(info.name, 2) for info in checks_of(FETCHED, house.settings)] + [house.stored(2)]
    assert all(verdict.passed or verdict.nothing for verdict in verdicts)
    assert "has no ids" in house.fetched("source_is_fresh", 2).description
    assert house.view("all_workers_complete").passed


def test_without_a_ledger_nobody_knows_how_fresh_the_source_is(house: House) -> None:  # noqa: F811
    failed(house.fetched("source_is_fresh"), "no finished ledger of worker_1_of_2")


# --------------------------------------------------------------------------------------- resolutions_external_ingest


def test_a_row_lost_from_the_table_is_found(finished: House) -> None:  # noqa: F811
    finished.run(f"DELETE FROM {{db}}.resolutions_external_ingest WHERE condition_id = '{condition(3)}'")
    verdict = failed(finished.stored(), "1 missing", condition(3))
    assert (verdict.expected, verdict.actual) == (8, 7)
    assert finished.stored(worker=2).passed


def test_a_truncated_table_is_found_and_healed_by_loading_again(finished: House) -> None:  # noqa: F811
    finished.run("TRUNCATE TABLE {db}.resolutions_external_ingest")
    failed(finished.stored(), "8 missing")
    finished.load(1)
    assert finished.stored().passed


def test_a_rounded_vector_is_found_with_both_values(finished: House) -> None:  # noqa: F811
    finished.run(
        "INSERT INTO {db}.resolutions_external_ingest (condition_id, payout_numerators, payout_denominator, winning_index,"
        f" source, fetched_at) VALUES ('{condition(3)}', [54, 46], 101, 0, 'goldsky-api', now() + 10)"
    )
    verdict = failed(finished.stored(), "1 different", condition(3))
    row = dict(zip(verdict.tables[0].columns, verdict.tables[0].rows[0], strict=True))
    assert (row["fetched"], row["stored"]) == ("[27,23]/50", "[54,46]/101")


def test_a_row_that_is_not_resolved_any_more_is_found(finished: House) -> None:  # noqa: F811
    finished.run(
        "INSERT INTO {db}.resolutions_external_ingest (condition_id, payout_numerators, payout_denominator, winning_index,"
        f" source, fetched_at) VALUES ('{condition(4)}', [1, 0], 1, 0, 'goldsky-api', now())"
    )
    failed(finished.stored(), "1 stale", condition(4))


# ---------------------------------------------------------------------------------------------- vw_resolutions_truth


def test_too_few_conditions_fail_with_the_number_and_the_bar(finished: House) -> None:  # noqa: F811
    verdict = failed(
        finished.with_settings(min_unique_conditions=20).view("unique_conditions"),
        "16 of 24 conditions of the input have a payout vector from goldsky-api (66.66 %)",
        "at least 20 were expected",
    )
    assert (verdict.expected, verdict.actual) == (20, 16)
    assert verdict.tables[0].rows == (("goldsky-api", 16, 16),)


def test_numerators_that_do_not_sum_to_the_denominator_are_found(finished: House) -> None:  # noqa: F811
    finished.run(
        "INSERT INTO {db}.resolutions_external_ingest (condition_id, payout_numerators, payout_denominator, winning_index,"
        f" source, fetched_at) VALUES ('{condition(3)}', [54, 45], 100, 0, 'goldsky-api', now() + 10)"
    )
    verdict = failed(finished.view("payout_quality"), "In 15 of 16 rows", "they sum to 99 over 100", condition(3))
    assert (verdict.expected, verdict.actual) == (0, 2)  # the row of the table, and that of the view


def test_an_unsound_row_of_the_market_table_fails_also_where_goldsky_resolved_nothing(house: House) -> None:  # noqa: F811
    house.answers = dict.fromkeys(range(IDS))
    house.complete().run(
        "INSERT INTO {db}.market_resolutions_final (condition_id_norm, payout_numerators, payout_denominator, updated_at) "
        f"VALUES ('{condition(0)}', [7, 0], 1, now())"
    )
    verdict = failed(house.view("payout_quality"), "1 row of the view they do not")
    assert not verdict.nothing


def test_the_distribution_is_the_guides(finished: House) -> None:  # noqa: F811
    table = finished.view("payout_quality").tables[0]
    assert table.columns[:3] == ("count", "payout_denominator", "sum_check")
    assert {row[:4] for row in table.rows} == {(8, "1", "1", True), (4, "2", "2", True), (4, "50", "50", True)}


def test_a_winning_index_that_points_elsewhere_is_found_in_the_sample(finished: House) -> None:  # noqa: F811
    finished.run(
        "INSERT INTO {db}.resolutions_external_ingest (condition_id, payout_numerators, payout_denominator, winning_index,"
        " source, fetched_at) SELECT condition_id, payout_numerators, payout_denominator, 7, source, now() + 10"
        " FROM {db}.resolutions_external_ingest FINAL"
    )
    verdict = failed(finished.view("payout_sample"), "5 of 5 sampled rows are malformed", "winning index")
    assert len(verdict.tables[0].rows) == 5


def test_a_resolved_condition_that_the_view_lacks_is_named(finished: House) -> None:  # noqa: F811
    finished.run(f"DELETE FROM {{db}}.resolutions_external_ingest WHERE condition_id = '{condition(8)}'")
    verdict = failed(finished.view("no_null_payouts"), "1 of 16 conditions")
    assert verdict.tables[0].rows == ((condition(8),),)


def test_rows_without_a_vector_are_found(finished: House) -> None:  # noqa: F811
    replace_view(finished, f"SELECT '{condition(500)}', [], 0, -1, NULL, 'goldsky-api'")
    failed(finished.view("no_null_payouts"), "1 row of the view has no vector")


def test_the_guides_plain_union_doubles_conditions_and_is_found(finished: House) -> None:  # noqa: F811
    market(finished, (0, [1, 0], 1))
    replace_view(
        finished,
        "SELECT toString(condition_id_norm), arrayMap(x -> toUInt64(x), payout_numerators), toUInt64(payout_denominator),"
        " toInt32(winning_index), CAST(NULL, 'Nullable(DateTime(\\'UTC\\'))'), 'market_resolutions_final'"
        " FROM {db}.market_resolutions_final",
    )
    verdict = failed(
        finished.view("one_row_per_condition"),
        "17 rows for 16 conditions",
        "1 condition is there more than once",
        condition(0),
    )
    assert (verdict.expected, verdict.actual) == (16, 17)


def test_an_external_row_that_the_view_leaves_out_is_named(finished: House) -> None:  # noqa: F811
    finished.run(
        "CREATE OR REPLACE VIEW {db}_clean.vw_resolutions_truth AS SELECT toString(condition_id) AS condition_id,"
        " payout_numerators, payout_denominator, winning_index, resolved_at, toString(source) AS source"
        f" FROM {{db}}.resolutions_external_ingest FINAL WHERE condition_id != '{condition(9)}'"
    )
    verdict = failed(finished.view("goldsky_rows_included"), "15 of 16 conditions", "1 is missing", condition(9))
    assert verdict.tables[0].rows == ((condition(9),),)


def test_a_condition_that_comes_from_the_users_own_table_is_included(finished: House) -> None:  # noqa: F811
    market(finished, (0, [1, 0], 1))
    verdict = finished.view("goldsky_rows_included")
    assert verdict.passed
    assert verdict.facts == {"from the external table": 15, "from market_resolutions_final": 1}


def test_a_conflicting_source_is_a_warning_that_names_both_vectors(finished: House) -> None:  # noqa: F811
    market(finished, (0, [0, 1], 1), (1, [0, 1], 1), (2, [50, 50], 100))
    verdict = failed(
        finished.view("sources_agree"),
        "3 conditions are resolved by both",
        "1 of them differently",
        condition(0),
        "[0,1]/1",
    )
    assert verdict.severity is Severity.WARN
    assert verdict.tables[0].rows == ((condition(0), "[0,1]/1", "[1,0]/1"),)


def test_conditions_lost_by_the_rebuild_are_counted(house: House) -> None:  # noqa: F811
    house.run("CREATE DATABASE {db}_clean")
    everything = ", ".join(f"'{condition(number)}'" for number in range(40))
    house.run(
        "CREATE VIEW {db}_clean.vw_resolutions_truth AS SELECT arrayJoin([" + everything + "]) AS condition_id,"
        " [toUInt64(1), 0] AS payout_numerators, toUInt64(1) AS payout_denominator, toInt32(0) AS winning_index,"
        " CAST(NULL, 'Nullable(DateTime)') AS resolved_at, 'by hand' AS source"
    )
    house.complete()
    verdict = failed(house.view("coverage_before_after"), "covers 16 conditions", "40 before", "24 lost")
    assert (verdict.expected, verdict.actual) == (40, 16)
    assert [row[0] for row in verdict.tables[0].rows] == ["Before", "After Goldsky"]
    house.rebuild()
    failed(house.view("coverage_before_after"), "24 lost")  # a loss stays a loss


def test_coverage_gained_is_told_with_its_sources(house: House) -> None:  # noqa: F811
    house.run("CREATE DATABASE {db}", "CREATE DATABASE {db}_clean", MARKET)
    market(house, (100, [1, 0], 1), (0, [1, 0], 1))
    house.run(
        "CREATE VIEW {db}_clean.vw_resolutions_truth AS SELECT toString(condition_id_norm) AS condition_id,"
        " payout_numerators FROM {db}.market_resolutions_final FINAL"
    )
    house.complete()
    verdict = house.view("coverage_before_after")
    assert verdict.passed
    assert "covers 17 conditions; 2 before" in verdict.description
    assert "15 gained" in verdict.description


def test_a_rebuild_that_measured_nothing_cannot_pass(finished: House) -> None:  # noqa: F811
    for measured in (Path(finished.settings.runtime_dir) / "vw_resolutions_truth").glob("*.json"):
        measured.write_text("{ torn")
    failed(finished.view("coverage_before_after"), "was never measured")


def test_without_a_view_the_checks_that_read_it_fail_and_say_so(finished: House) -> None:  # noqa: F811
    finished.run("DROP VIEW {db}_clean.vw_resolutions_truth")
    for name in ("one_row_per_condition", "no_null_payouts", "goldsky_rows_included"):
        failed(finished.view(name), "does not exist")
    failed(finished.view("coverage_before_after"))


def test_a_column_of_the_market_table_that_was_renamed_is_one_fault(finished: House) -> None:  # noqa: F811
    finished.run("ALTER TABLE {db}.market_resolutions_final RENAME COLUMN payout_numerators TO numerators")
    names = {info.name for info in checks_of(VIEW, finished.settings)}
    found = make_verdicts(finished.settings, finished.instance, finished.worklist, VIEW, None, names)
    (said,) = {verdict.description for verdict in found if verdict.actual == NO_ANSWER}
    assert "market_resolutions_final cannot be read as resolutions: payout_numerators is missing" in said


def test_a_server_that_is_down_is_waited_for_once_a_run(finished: House) -> None:  # noqa: F811
    down = finished.with_settings(clickhouse_host="http://127.0.0.1:9", clickhouse_wait_seconds=1)
    unreachable: list[PayoutPipelineError] = []
    seconds, said = [], set()
    for asset, key in ((STORED, "worker_1_of_2"), (STORED, "worker_2_of_2"), (VIEW, None)):
        started = time.monotonic()
        wanted = {info.name for info in checks_of(asset, down.settings)} - {"all_workers_complete"}
        found = make_verdicts(down.settings, down.instance, down.worklist, asset, key, wanted, unreachable)
        seconds.append(time.monotonic() - started)
        said |= {(verdict.actual, verdict.description) for verdict in found}
        assert {verdict.check for verdict in found} == wanted
    assert seconds[0] > 1
    assert max(seconds[1:]) < 1, "the waiting budget"
    ((actual, description),) = said
    assert actual == NO_ANSWER
    assert "127.0.0.1:9" in description


# ----------------------------------------------------------------------------------------------------- settled P&L

MARKET = (
    "CREATE TABLE IF NOT EXISTS {db}.market_resolutions_final (condition_id_norm FixedString(64), payout_numerators"
    " Array(UInt8), payout_denominator UInt8, winning_index UInt16, updated_at DateTime DEFAULT now(), source String)"
    " ENGINE = ReplacingMergeTree(updated_at) ORDER BY condition_id_norm"
)
TRADES = (
    "CREATE TABLE {db}.trades (wallet String, condition_id String, outcome UInt8, shares Float64, cash Float64)"
    " ENGINE = MergeTree ORDER BY wallet"
)
# As the user's own view: it inner-joins the truth view, so every row too many there pays again.
PNL_VIEW = (
    "CREATE OR REPLACE VIEW {db}_clean.vw_wallet_pnl_settled AS SELECT wallet, sum(cash) AS trading_pnl,"
    " sum(shares * t.payout_numerators[outcome + 1] / t.payout_denominator) AS redemption_pnl,"
    " trading_pnl + redemption_pnl AS total_pnl, count() AS positions_settled"
    " FROM {db}.trades INNER JOIN {db}_clean.vw_resolutions_truth AS t USING (condition_id) GROUP BY wallet"
)
HOLDINGS = (
    "INSERT INTO {db}.trades VALUES "
    f"('alice', '{condition(0)}', 0, 10, -4), ('bob', '{condition(3)}', 1, 100, -20), ('carol', '{condition(4)}', 0, 5, -1)"
)
PNL = (TRADES, HOLDINGS, PNL_VIEW)


def with_pnl(house: House, *more: str) -> House:  # noqa: F811
    """A backfill whose P&L view existed before, over an older truth view that knew only the user's own table."""
    house.run("CREATE DATABASE {db}", "CREATE DATABASE {db}_clean", MARKET)
    house.run(
        "CREATE VIEW {db}_clean.vw_resolutions_truth AS SELECT toString(condition_id_norm) AS condition_id,"
        " payout_numerators, payout_denominator FROM {db}.market_resolutions_final FINAL"
    )
    house.run(*PNL, *more)
    return house.complete()


def test_a_wallet_that_is_newly_covered_passes_with_the_figures_of_before_and_after(house: House) -> None:  # noqa: F811
    verdict = with_pnl(house).view("settled_pnl")
    assert verdict.passed, verdict.description
    assert verdict.description == ("2 wallets have settled P&L of 32.00 USD in total (0 and 0.00 USD before).")
    assert verdict.tables[0].rows == (("Before", 0, 0.0, 0.0), ("After Goldsky", 2, 32.0, 56.0))
    assert (verdict.expected, verdict.actual) == (0, 2)


def test_a_wallet_paid_twice_for_one_condition_is_told_from_one_newly_covered(house: House) -> None:  # noqa: F811
    with_pnl(house)
    replace_view(house, f"SELECT '{condition(0)}', [1, 0], 1, 0, NULL, 'twice'")
    verdict = failed(house.view("settled_pnl"), "1 row too many", "twice")
    assert verdict.facts["paid twice"] == 1


def test_a_wallet_with_two_rows_in_the_pnl_view_is_named(house: House) -> None:  # noqa: F811
    with_pnl(house)
    house.run(PNL_VIEW.replace("GROUP BY wallet", "GROUP BY wallet UNION ALL SELECT 'bob', 1, 1, 2, 1"))
    verdict = failed(house.view("settled_pnl"), "1 row pays a wallet again (wallet bob has 2 rows)")
    assert verdict.tables[1].rows == (("bob", 2),)


def test_wallets_that_lose_their_pnl_fail(house: House) -> None:  # noqa: F811
    with_pnl(house)
    with Warehouse(house.settings).session("test") as session:
        accept(house.settings, measure(session, house.settings))  # both wallets
    house.run(f"DELETE FROM {{db}}.resolutions_external_ingest WHERE condition_id = '{condition(3)}'")
    failed(house.view("settled_pnl"), "1 of 2 wallets lost their settled P&L")


def test_redemptions_that_are_no_part_of_the_total_fail(house: House) -> None:  # noqa: F811
    with_pnl(house)
    house.run(PNL_VIEW.replace("trading_pnl + redemption_pnl AS total_pnl", "trading_pnl AS total_pnl"))
    failed(house.view("settled_pnl"), "In 2 wallets the total is not trading plus redemption")


def test_the_guides_column_names_work_too(house: House) -> None:  # noqa: F811
    with_pnl(house)
    house.run(
        "CREATE OR REPLACE VIEW {db}_clean.vw_wallet_pnl_settled AS SELECT wallet AS wallet_address,"
        " cash + shares * t.payout_numerators[outcome + 1] / t.payout_denominator AS settled_pnl_usd"
        " FROM {db}.trades INNER JOIN {db}_clean.vw_resolutions_truth AS t USING (condition_id)"
    )
    verdict = house.view("settled_pnl")
    assert verdict.passed, verdict.description
    assert "2 wallets have settled P&L of 32.00 USD" in verdict.description


def test_a_view_without_a_wallet_column_fails_and_names_its_columns(house: House) -> None:  # noqa: F811
    with_pnl(house)
    house.run("CREATE OR REPLACE VIEW {db}_clean.vw_wallet_pnl_settled AS SELECT 1 AS something")
    failed(house.view("settled_pnl"), "no wallet")


def test_without_a_pnl_view_there_is_nothing_to_compare_and_empty_means_no_check(finished: House) -> None:  # noqa: F811
    verdict = finished.view("settled_pnl")
    assert verdict.nothing
    assert not verdict.passed
    assert "There is no view" in verdict.description
    names = [info.name for info in catalogue(finished.with_settings(pnl_view="").settings)]
    assert len(names) == len(catalogue(finished.settings)) - 1
    assert "settled_pnl" not in names


# ------------------------------------------------------------------------------------------------- all_workers_complete


def test_a_missing_worker_is_named(house: House) -> None:  # noqa: F811
    house.write_ledger(1)
    house.load(1)
    house.materialized(FETCHED, 1)
    house.materialized(STORED, 1)
    verdict = failed(house.view("all_workers_complete"), "1 of 2 workers is complete", "worker_2_of_2: never fetched")
    assert (verdict.expected, verdict.actual) == (2, 1)
    assert "--workers 2" in verdict.repair


def test_a_worker_fetched_for_another_input_is_named(finished: House) -> None:  # noqa: F811
    lines = finished.settings.condition_ids_file.read_text().splitlines()
    finished.settings.condition_ids_file.write_text("\n".join([*lines[:-1], condition(999)]))
    verdict = failed(finished.view("all_workers_complete"), "worker_2_of_2: fetched for another input")
    assert verdict.actual == 1


def test_a_worker_fetched_again_but_not_loaded_is_named(finished: House) -> None:  # noqa: F811
    finished.materialized(FETCHED, 2)
    failed(finished.view("all_workers_complete"), "worker_2_of_2: fetched but not loaded since")


def test_a_failed_check_of_one_worker_stays_after_the_other_passed(finished: House) -> None:  # noqa: F811
    finished.run(f"DELETE FROM {{db}}.resolutions_external_ingest WHERE condition_id = '{condition(3)}'")
    finished.checked(finished.stored(1), 1)
    finished.checked(finished.stored(2), 2)
    verdict = failed(finished.view("all_workers_complete"), "worker_1_of_2: failed stored_equals_fetched")
    assert next(row[-1] for row in verdict.tables[0].rows) == "failed stored_equals_fetched"


def test_the_table_of_workers_has_a_row_each_with_the_counts(finished: House) -> None:  # noqa: F811
    verdict = finished.view("all_workers_complete")
    assert verdict.description == "2 of 2 workers are complete for today's input, with 24 ids accounted for."
    assert verdict.tables[0].rows == tuple(
        (f"worker_{worker}_of_2", 12, 8, 2, 2, 0, 0, True, "complete") for worker in (1, 2)
    )


# -------------------------------------------------------------------------------------------------------- helpers


def market(house: House, *rows: tuple[int, list[int], int]) -> None:  # noqa: F811
    """Rows of the user's own table."""
    house.run(
        "INSERT INTO {db}.market_resolutions_final (condition_id_norm, payout_numerators, payout_denominator) VALUES "
        + ", ".join(f"('{condition(number)}', {json.dumps(vector)}, {total})" for number, vector, total in rows)
    )


def replace_view(house: House, more: str) -> None:  # noqa: F811
    """The truth view as somebody else would write it: our external rows, and ``more`` behind them."""
    house.run(
        "CREATE OR REPLACE VIEW {db}_clean.vw_resolutions_truth AS SELECT toString(condition_id) AS condition_id,"
        " payout_numerators, payout_denominator, winning_index, resolved_at, toString(source) AS source"
        f" FROM {{db}}.resolutions_external_ingest FINAL UNION ALL {more}"
    )


def test_the_answers_of_the_house_are_what_the_tests_count_on() -> None:
    assert len(RESOLVED) == 16
    assert PER_WORKER == 12
    assert isinstance(Vector((1, 0), 1).winning_index, int)
