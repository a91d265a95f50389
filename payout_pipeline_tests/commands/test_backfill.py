"""``payout-pipeline backfill``: what is looked at before the workers, and when a backfill is continued or over."""

from __future__ import annotations

import signal
import time

import pytest
from rich.console import Console

from payout_pipeline.backfill import _continue_or_begin
from payout_pipeline.errors import PayoutPipelineError
from payout_pipeline.signals import StopRequest
from payout_pipeline.storage import open_store
from payout_pipeline.worker_pool import INTERRUPTED, Outcome, start, wait
from payout_pipeline_tests.chaos.fixtures import case, nursery  # noqa: F401
from payout_pipeline_tests.chaos.world import ask_front, world


@pytest.mark.slow
def test_c5_a_table_that_cannot_hold_the_vectors_ends_the_backfill_before_any_run_and_request(tmp_path, nursery):  # noqa: F811
    with world(tmp_path, nursery, ids=200, front=True) as place:
        assert place.front is not None
        ask_front(
            place.front,
            "CREATE TABLE default.resolutions_external_ingest (condition_id String, payout_numerators Array(UInt8), "
            "payout_denominator UInt8, winning_index Int32, resolved_at Nullable(DateTime), source String) "
            "ENGINE = Memory",
        )
        run = place.run()
        assert run.code == 1
        assert "CREATE TABLE" in run.text()
        assert len(place.server.log) == 0
        assert not list((place.runtime / "dagster" / "history" / "runs").glob("*-*.db")), "a run was begun"
        ask_front(place.front, "DROP TABLE default.resolutions_external_ingest")
        assert place.run().code == 0
        place.assert_right(exits=[0])


@pytest.mark.slow
def test_f4_a_database_that_is_not_there_ends_the_backfill_with_the_name_of_the_variable(tmp_path, nursery):  # noqa: F811
    with world(tmp_path, nursery, ids=200, front=True) as place:
        run = place.run(CLICKHOUSE_PORT="1", CLICKHOUSE_WAIT_SECONDS="1")
        assert run.code in (1, 2)
        assert "CLICKHOUSE_" in run.text()
        assert len(place.server.log) == 0


@pytest.mark.parametrize(
    ("first", "then", "continued"),
    [
        (None, None, True),
        ("unresolved", None, True),
        ("unresolved", "unresolved", True),
        (None, "all", False),
        (None, "unresolved", False),
        ("unresolved", "all", False),
    ],
)
def test_an_interrupted_backfill_is_continued_unless_another_refetch_is_asked_for(case, first, then, continued):  # noqa: F811
    begun = _continue_or_begin(case.settings, open_store(case.runtime), first, Console(quiet=True))
    again = _continue_or_begin(case.settings, open_store(case.runtime), then, Console(quiet=True))
    assert (again.id == begun.id) is continued
    assert again.refetch == (then or first or "all")


def test_a_backfill_is_over_when_the_view_is_built_by_whoever_builds_it(case):  # noqa: F811
    begun = _continue_or_begin(case.settings, open_store(case.runtime), None, Console(quiet=True))
    case.backfill()
    assert not (case.runtime / "backfill.json").exists()
    assert _continue_or_begin(case.settings, open_store(case.runtime), None, Console(quiet=True)).id != begun.id


def test_what_a_child_says_after_it_was_asked_to_stop_counts_as_interrupted(tmp_path):
    stop = StopRequest()
    children = [start(tmp_path, "fails", _fail_when_interrupted), start(tmp_path, "works", _work)]
    stop_when_started = iter([lambda: None] * 3)
    outcomes = wait(children, stop, lambda: next(stop_when_started, lambda: stop.request(signal.SIGINT))())
    assert outcomes == [Outcome("fails", INTERRUPTED), Outcome("works", 0)]


def _work() -> None:
    pass


def _fail_when_interrupted() -> None:
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        raise PayoutPipelineError("an internal word for it") from None
