"""C1-C9 and D5 over the whole path. The load itself is tried harder in test_warehouse_load.py and its neighbours."""

from __future__ import annotations

import threading
import time

import pytest

from payout_pipeline.errors import (
    ConfigurationError,
    IncompleteError,
    WarehousePermanentError,
    WarehouseSchemaError,
    WarehouseUnavailableError,
)
from payout_pipeline.ingest import ingest_worker
from payout_pipeline.truth import rebuild_truth
from payout_pipeline_tests.chaos.fixtures import case, nursery, served  # noqa: F401
from payout_pipeline_tests.chaos.inline import inline
from payout_pipeline_tests.chaos.world import world
from payout_pipeline_tests.clickhouse_front import Faults

pytestmark = [pytest.mark.slow]


def test_c1_a_database_that_never_answers_costs_no_request_and_marks_nothing_as_stored(tmp_path, served):  # noqa: F811
    with inline(tmp_path, **{**served.env, "CLICKHOUSE_PORT": "1", "CLICKHOUSE_WAIT_SECONDS": "1"}) as place:
        began = time.monotonic()
        with pytest.raises((WarehouseUnavailableError, WarehousePermanentError, ConfigurationError)):
            place.fetch()
        assert time.monotonic() - began < 15
        assert len(place.server.log) == 0
        assert not (place.runtime / "warehouse-totals.json").exists()


def test_c1_a_database_that_dies_half_way_and_comes_back_is_waited_for(tmp_path, served):  # noqa: F811
    front = served.front
    with inline(tmp_path, **served.env) as place:
        place.fetch()
        front.stop(kill=True)
        back = threading.Timer(2.0, front.start)
        back.start()
        place.load()
        back.join()
        rebuild_truth(place.settings, log=place.log)
        place.assert_right()


def test_c1_a_database_that_stays_away_is_given_up_and_what_was_fetched_is_kept(tmp_path, served):  # noqa: F811
    with inline(tmp_path, **{**served.env, "CLICKHOUSE_WAIT_SECONDS": "1"}) as place:
        place.fetch()
        asked = len(place.server.log)
        served.front.stop(kill=True)
        with pytest.raises(WarehouseUnavailableError):
            place.load()
        served.front.start()
        place.load()
        rebuild_truth(place.settings, log=place.log)
        place.assert_right()
        assert len(place.server.log) == asked


def test_c2_an_insert_whose_answer_is_lost_leaves_every_row_once(tmp_path, served):  # noqa: F811
    with inline(tmp_path, workers=2, **served.env) as place:
        served.front.faults(Faults(matching="INSERT", times=2, lose_answer=True))
        place.backfill()
        place.assert_right()


def test_c2_an_insert_that_was_acknowledged_and_not_stored_is_no_success(tmp_path, served):  # noqa: F811
    with inline(tmp_path, **served.env) as place:
        place.fetch()
        served.front.faults(Faults(matching="INSERT", times=50, drop_rows=True))
        with pytest.raises(IncompleteError):
            place.load()
        served.front.faults()
        place.load()
        rebuild_truth(place.settings, log=place.log)
        place.assert_right()


@pytest.mark.parametrize("code", [252, 241, 999])
def test_c4_a_transient_code_during_the_load_is_waited_out(tmp_path, served, code):  # noqa: F811
    with inline(tmp_path, **served.env) as place:
        said = {"code": code, "message": "(total) memory limit exceeded" if code == 241 else "injected"}
        served.front.faults(Faults(matching="INSERT", times=1, **said), Faults(matching="SELECT", times=1, **said))
        place.backfill()
        place.assert_right()


def test_c4_a_permanent_code_ends_the_load_at_once_and_names_code_and_table(tmp_path, served):  # noqa: F811
    with inline(tmp_path, **served.env) as place:
        place.fetch()
        served.front.faults(Faults(matching="INSERT", times=50, code=497, message="writer: Not enough privileges"))
        began = time.monotonic()
        with pytest.raises(WarehousePermanentError, match=rf"497[\s\S]*{served.database}|{served.database}[\s\S]*497"):
            place.load()
        assert time.monotonic() - began < 10
        assert sum("INSERT" in s["sql"] for s in served.front.counters().statements if served.database in s["sql"]) == 1


def test_c5_a_table_of_other_types_is_found_before_the_first_request_with_the_ddl(tmp_path, served):  # noqa: F811
    served.ask(
        "CREATE TABLE {db}.resolutions_external_ingest (condition_id String, payout_numerators Array(UInt8), "
        "payout_denominator UInt8, winning_index Int32, resolved_at Nullable(DateTime), source String) "
        "ENGINE = Memory"
    )
    with inline(tmp_path, **served.env) as place:
        with pytest.raises(WarehouseSchemaError, match=r"CREATE TABLE|ALTER TABLE"):
            place.fetch()
        assert len(place.server.log) == 0


def test_c5_a_table_in_the_views_place_is_found_before_the_first_request_and_kept(tmp_path, served):  # noqa: F811
    served.ask("CREATE TABLE {db}.vw_resolutions_truth ENGINE = MergeTree ORDER BY n AS SELECT 1 AS n")
    with inline(tmp_path, **served.env) as place:
        with pytest.raises(WarehouseSchemaError, match="PAYOUT_TRUTH_VIEW"):
            place.fetch()
        assert len(place.server.log) == 0
    assert served.ask("SELECT n FROM {db}.vw_resolutions_truth") == b"1\n"


def test_every_insert_of_a_run_is_synchronous_and_names_run_and_asset(tmp_path, served):  # noqa: F811
    with inline(tmp_path, **served.env) as place:
        place.fetch()
        ingest_worker(place.settings, 1, log=place.log, run_id="run-1234")
    inserts = [s for s in served.front.counters().statements if s["sql"].startswith(f"INSERT INTO `{served.database}`")]
    assert inserts
    for sent in inserts:
        assert sent["settings"]["async_insert"] == "0"
        assert "resolutions_external_ingest worker_1_of_1 run run-1234" in sent["log_comment"]


def test_c7_a_user_who_may_not_create_views_ingests_and_only_the_view_fails(tmp_path, served):  # noqa: F811
    few = {**served.env, "CLICKHOUSE_USER": "ingester", "CLICKHOUSE_PASSWORD": "ingest-pass"}
    with inline(tmp_path, **few) as place:
        place.fetch()
        assert place.load().inserted_new == len(place.truth.resolved)
        with pytest.raises(WarehousePermanentError, match="the user may not create views") as error:
            rebuild_truth(place.settings, log=place.log)
        assert "What was ingested" in str(error.value)
        assert "GRANT CREATE VIEW" in str(error.value)
        assert "CREATE OR REPLACE VIEW" in str(error.value)  # for the administrator
        asked = len(place.server.log)
        assert (
            place.load().inserted_new == 0
        )  # what was ingested is there, and the next run of the worker works as well
        assert len(place.server.log) == asked
    with inline(tmp_path / "granted", **served.env) as place:
        place.backfill()
        place.assert_right()


def test_c9_a_condition_of_both_sources_has_one_row_and_the_conflict_is_counted(case):  # noqa: F811
    from payout_pipeline.ids.chunks import read_worklist
    from payout_pipeline.verification.vw_resolutions_truth import checks
    from payout_pipeline.warehouse.client import Warehouse

    case.backfill()
    both = next(i for i, vector in case.truth.resolved.items() if vector == ((0, 1), 1))
    case.command(
        "INSERT INTO default.market_resolutions_final (condition_id_norm, payout_numerators, payout_denominator, updated_at) "
        f"VALUES ('{both}', [1, 0], 1, now())"
    )
    rebuild_truth(case.settings, log=case.log)
    rows = case.rows(
        f"SELECT payout_numerators AS n, source FROM cascadian_clean.vw_resolutions_truth WHERE condition_id = '{both}'"
    )
    assert [(list(row["n"]), row["source"]) for row in rows] == [([1, 0], "market_resolutions_final")]
    with Warehouse(case.settings).session("test") as session:
        verdict = checks(case.settings, read_worklist(case.settings), session)["sources_agree"]()
    assert not verdict.passed
    assert both in str(verdict)


@pytest.mark.parametrize(
    "harm",
    ["TRUNCATE TABLE {t}", "ALTER TABLE {t} DELETE WHERE startsWith(condition_id, '1') SETTINGS mutations_sync=2"],
)
def test_d5_rows_that_are_gone_are_found_by_the_check_and_loaded_again(case, harm):  # noqa: F811
    from payout_pipeline.verification.resolutions_external_ingest import stored_equals_fetched

    case.backfill()
    case.command(harm.format(t="default.resolutions_external_ingest"))
    found = stored_equals_fetched(case.settings, "worker_1_of_1")
    assert not found.passed
    asked = len(case.server.log)
    case.load()
    found = stored_equals_fetched(case.settings, "worker_1_of_1")
    assert found.passed
    case.assert_right()
    assert len(case.server.log) == asked


@pytest.mark.slow
def test_d5_a_truncated_table_is_healed_by_the_next_backfill(tmp_path, nursery):  # noqa: F811
    with world(tmp_path, nursery, workers=1, ids=300) as place:
        assert place.run().code == 0
        place.command("TRUNCATE TABLE default.resolutions_external_ingest")
        assert place.run().code == 0
        place.assert_right()
