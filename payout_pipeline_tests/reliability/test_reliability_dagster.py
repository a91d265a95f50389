"""What Dagster makes of a fault: the failed worker fails alone, the view waits, and nothing is retried twice over."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from typing import Any

import pytest

from payout_pipeline_tests.chaos.fixtures import nursery  # noqa: F401
from payout_pipeline_tests.chaos.world import world

pytestmark = [pytest.mark.slow]


def test_a_failed_worker_fails_alone_the_view_waits_and_the_next_run_asks_for_that_worker_only(tmp_path, nursery):  # noqa: F811
    with world(
        tmp_path, nursery, workers=2, ids=400, GOLDSKY_BATCH_SIZE="50", GOLDSKY_CONCURRENT_REQUESTS="2"
    ) as place:
        first, second = place.ids[:200], place.ids[200:]
        place.server.faults.add(
            "poison", ids=["0x" + i for i in second], message="Type `Condition` has no field `payouts`"
        )
        run = place.run()
        assert run.code == 1
        assert "worker_1_of_2: done" in run.text()
        assert "worker_2_of_2: FAILED" in run.text()
        assert "has no field" in run.text()
        assert not place.rows("SELECT name AS view_name FROM system.tables WHERE name = 'vw_resolutions_truth'")
        stored = {
            row["condition_id"] for row in place.rows("SELECT condition_id FROM default.resolutions_external_ingest")
        }
        assert stored == set(first) & place.truth.resolved.keys()
        # A permanent fault is repeated by no layer: two lanes, one request each, in one step of one run.
        assert sum("poison" in entry.faults for entry in place.server.log.entries) <= 2
        place.server.faults.clear()
        before = len(place.server.log)
        assert place.run().code == 0
        again = {i.removeprefix("0x") for entry in place.server.log.entries[before:] for i in entry.ids}
        assert again == set(second)
        place.assert_right()


def test_a4_the_attempts_of_request_step_and_run_do_not_multiply(tmp_path, nursery):  # noqa: F811
    few = {"GOLDSKY_MAX_RETRIES": "2", "GOLDSKY_OUTAGE_BUDGET_SECONDS": "0"}
    with world(tmp_path, nursery, workers=1, ids=3, **few) as place:
        place.server.faults.add("status", requests=range(2, 1000), status=500)
        run = place.run()
        assert run.code == 1
        # The batch and its halves down to single ids, three attempts each: what one fetch without Dagster sends (row A4).
        assert 3 <= len(place.server.log) <= 2 + 3 * 5
        said = (place.runtime / "logs" / "worker_1_of_1.log").read_text()
        assert said.count("goldsky_payouts - STEP_START") == 1
        assert not re.search("STEP_UP_FOR_RETRY|STEP_RESTARTED", said)


def test_a11_an_outage_is_said_in_the_log_and_in_status_while_it_lasts(tmp_path, nursery):  # noqa: F811
    with world(
        tmp_path, nursery, workers=1, ids=600, GOLDSKY_BATCH_SIZE="20", GOLDSKY_OUTAGE_BUDGET_SECONDS="60"
    ) as place:
        outage = place.server.faults.add("outage", requests=(8,), times=1, seconds=3_600, mode="status")
        run = place.start()
        deadline = time.monotonic() + 60
        status: dict[str, Any] = {}
        while not status.get("outage_seconds") and time.monotonic() < deadline:
            status = json.loads(place.run("status", "--json").text())
        assert status["outage_seconds"] > 0
        assert "503" in status["outage_message"]
        assert "OUTAGE for" in place.run("status").text()
        place.server.faults.remove(outage)
        place.exits.append(run.wait(90))
        said = (place.runtime / "logs" / "worker_1_of_1.log").read_text()
        assert "Outage: " in said
        assert "The outage is over after" in said
        assert json.loads(place.run("status", "--json").text())["outage_seconds"] == 0
        place.assert_right()


@pytest.mark.slow
def test_failed_ids_within_the_allowed_rate_are_listed_and_asked_again_by_the_next_backfill(tmp_path, nursery):  # noqa: F811
    rate = {"PAYOUT_MAX_ERROR_RATE": "0.02", "GOLDSKY_MAX_RETRIES": "0", "GOLDSKY_OUTAGE_BUDGET_SECONDS": "5"}
    with world(tmp_path, nursery, workers=1, ids=300, **rate) as place:
        victim = next(iter(place.truth.resolved))
        place.server.faults.add("poison", ids=["0x" + victim], message="Store error: database unavailable")
        run = place.run()
        assert run.code == 0, run.text()
        resolved = {i: v for i, v in place.truth.resolved.items() if i != victim}
        place.assert_right(truth=replace(place.truth, resolved=resolved, failed=frozenset({victim})))
        assert victim in place.run("report", "--json").text()
        place.server.faults.clear()
        before = len(place.server.log)
        assert place.run("backfill", "--refetch", "unresolved").code == 0
        asked = {i.removeprefix("0x") for entry in place.server.log.entries[before:] for i in entry.ids}
        assert victim in asked
        assert not asked & resolved.keys()
        place.assert_right()
