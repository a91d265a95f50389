"""Tables and servers by which the pipeline once lost rows, saw conflicts that are none, or did not run; over the commands."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from payout_pipeline.subgraph.generate import expected_vectors
from payout_pipeline_tests.chaos.fixtures import Served, served
from payout_pipeline_tests.clickhouse_front import Faults
from payout_pipeline_tests.running import Place, Vectors, as_counter
from payout_pipeline_tests.verification.test_wrong_data import MARKET, TABLE, Finished, finished, place

__all__ = ["finished", "place", "served"]  # fixtures

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

MINE = "default.mine"
_DDL = (
    f"CREATE TABLE {MINE} (condition_id String, payout_numerators Array(UInt64), payout_denominator UInt64, "
    "winning_index Int32, resolved_at Nullable(DateTime('UTC')), source LowCardinality(String), "
    "fetched_at DateTime64(3, 'UTC'), block_number UInt64) "
    "ENGINE = ReplacingMergeTree(fetched_at) ORDER BY (condition_id)"
)


def _truth(finished: Finished) -> Vectors:
    return {
        condition_id: (numerators, of) for condition_id, numerators, of in expected_vectors(finished.data.conditions)
    }


def _filled(finished: Finished, place: Place) -> dict[str, str]:
    """A finished backfill into a table that is sorted by ``(condition_id)``."""
    into = {"PAYOUT_TARGET_TABLE": MINE, "PAYOUT_PNL_VIEW": ""}
    place.execute(_DDL)
    done = place.run("backfill", **into)
    assert done.returncode == 0, done.stdout
    assert place.stored(MINE) == as_counter(_truth(finished))
    return into


def _changed(finished: Finished) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """An id that is resolved as [1,0], its numerators, and those that the subgraph gives from now on."""
    condition_id = next(i for i, vector in _truth(finished).items() if vector == ((1, 0), 1))
    finished.server.faults.add("raw", fields={"0x" + condition_id: {"payouts": ["0", "1"]}})
    return condition_id, (1, 0), (0, 1)


def test_13a_a_changed_row_of_a_table_sorted_by_the_id_in_parentheses_is_replaced(
    finished: Finished, place: Place
) -> None:
    into = _filled(finished, place)
    condition_id, _, new = _changed(finished)

    done = place.run("backfill", **into)

    assert done.returncode == 0, done.stdout
    truth = as_counter({**_truth(finished), condition_id: (new, 1)})
    assert place.stored(f"{MINE} FINAL") == truth
    raw = place.query(
        f"SELECT payout_numerators AS n FROM {MINE} WHERE condition_id = '{condition_id}' ORDER BY fetched_at"
    )
    assert [int(n) for n in raw[-1]["n"]] == list(new)
    assert not place.query(
        f"SELECT 1 FROM system.mutations WHERE table = 'mine' AND command LIKE '%{condition_id}%'"
    ), "no row was deleted"


def test_13b_an_insert_that_a_constraint_refuses_leaves_every_stored_row(finished: Finished, place: Place) -> None:
    into = _filled(finished, place)
    place.execute(f"ALTER TABLE {MINE} ADD CONSTRAINT kept CHECK fetched_at < toDateTime('2020-01-01 00:00:00')")
    _changed(finished)

    done = place.run("backfill", **into)

    assert done.returncode == 1
    assert "kept" in done.stdout, "the message names the constraint"
    assert place.stored(MINE) == as_counter(_truth(finished))


def test_14a_another_spelling_of_the_same_vector_by_another_source_is_no_conflict(
    finished: Finished, place: Place
) -> None:
    condition_id = next(i for i, vector in _truth(finished).items() if vector == ((0, 1), 1))
    place.execute(
        f"INSERT INTO {TABLE} (condition_id, payout_numerators, payout_denominator, winning_index, source, fetched_at) "
        f"VALUES ('0x{condition_id}', [0, 100], 100, 1, 'another', now64(3))"
    )

    done = place.run("backfill")

    assert done.returncode == 0, done.stdout
    expected = as_counter(_truth(finished))
    expected["0x" + condition_id, (0, 100), 100] += 1
    assert place.stored(f"{TABLE} FINAL") == expected


def test_14b_placeholders_of_another_source_are_no_conflicts_and_everything_loads(
    finished: Finished, place: Place
) -> None:
    truth = _truth(finished)
    into = {"PAYOUT_TARGET_TABLE": MINE, "PAYOUT_PNL_VIEW": ""}
    place.execute(_DDL.replace("(condition_id)", "(condition_id, source)"))
    place.execute(
        f"INSERT INTO {MINE} (condition_id, payout_numerators, payout_denominator, winning_index, source, fetched_at) "
        f"SELECT condition_id, [], 0, 0, 'another', now64(3) FROM {TABLE}"
    )

    done = place.run("backfill", **into)

    assert done.returncode == 0, done.stdout
    expected = as_counter(truth) + Counter({(condition_id, (), 0): 1 for condition_id in truth})
    assert place.stored(MINE) == expected


def test_14c_the_market_table_as_the_target_is_refused_before_any_request_and_gets_no_row(
    finished: Finished, place: Place
) -> None:
    before = place.query(f"SELECT count() AS rows, sum(cityHash64(*)) AS hash FROM {MARKET}")
    finished.server.log.clear()

    done = place.run("backfill", PAYOUT_TARGET_TABLE=MARKET)

    assert done.returncode == 2, done.stdout
    assert "PAYOUT_TARGET_TABLE" in done.stdout
    assert len(finished.server.log) == 0
    assert place.query(f"SELECT count() AS rows, sum(cityHash64(*)) AS hash FROM {MARKET}") == before


@pytest.fixture
def on_a_server(finished: Finished, served: Served, tmp_path: Path) -> Place:
    """A place whose ClickHouse is the front; nothing done yet."""
    extra = {**served.env, "PAYOUT_WORKERS": "2", "PAYOUT_PNL_VIEW": "", "CLICKHOUSE_WAIT_SECONDS": "40"}
    finished.server.faults.clear()
    return Place(tmp_path, finished.server.url, finished.data.ids, extra, finished.place.nursery)


def test_19a_a_user_whose_profile_limits_the_execution_time_can_do_everything(
    finished: Finished, served: Served, on_a_server: Place
) -> None:
    limited = {"CLICKHOUSE_USER": "limited", "CLICKHOUSE_PASSWORD": "limited-pass"}
    on_a_server.extra.update(limited)

    done = on_a_server.run("backfill")

    assert done.returncode == 0, done.stdout
    table = on_a_server.extra["PAYOUT_TARGET_TABLE"]
    assert on_a_server.stored(table) == as_counter(_truth(finished))


@pytest.mark.parametrize("statement", ["SELECT condition_id", "REPLACE VIEW"])
def test_19b_a_connection_that_dies_silently_costs_a_part_of_the_waiting_and_not_the_run(
    finished: Finished, served: Served, on_a_server: Place, statement: str
) -> None:
    served.front.faults(Faults(matching=statement, times=1, hang=True))

    done = on_a_server.run("backfill")

    assert done.returncode == 0, done.stdout
    table, view = on_a_server.extra["PAYOUT_TARGET_TABLE"], on_a_server.extra["PAYOUT_TRUTH_VIEW"]
    truth = as_counter(_truth(finished))
    assert on_a_server.stored(table) == on_a_server.stored(view) == truth
