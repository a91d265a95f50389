"""One worker's run against a real server: what is asked, what is taken over, and what it says of itself."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from payout_pipeline.assets.metadata import fetch_metadata
from payout_pipeline.errors import ErrorRateError, GoldskyPermanentError
from payout_pipeline.ledger import Ledger
from payout_pipeline.questions import Questions
from payout_pipeline_tests.chaos.fixtures import case  # noqa: F401
from payout_pipeline_tests.chaos.inline import Inline, inline

BROKEN = "Type `Condition` has no field `payouts`"


def groups(batches: int, lanes: int, per_request: int, **shrinks: int) -> list[int]:
    """Sizes of the groups that a worker's missing batches are asked in; ``after``: when a request carries half."""
    client = SimpleNamespace(batches_per_request=per_request)
    questions = Questions(client, None, None, None, lanes=lanes, log=logging.getLogger())  # type: ignore[arg-type]
    sizes = []
    for group in questions._groups(range(batches), max(1, -(-batches // lanes))):
        sizes.append(len(group))
        if len(sizes) == shrinks.get("after"):
            client.batches_per_request //= 2
    assert sum(sizes) == batches
    return sizes


def test_batches_are_spread_so_that_no_request_in_flight_is_idle() -> None:
    assert groups(43, 8, 10) == [6] * 7 + [1]
    assert groups(500, 8, 10) == [10] * 50
    assert groups(3, 8, 10) == [1, 1, 1]
    assert groups(43, 8, 1) == [1] * 43
    assert groups(0, 8, 10) == []
    assert groups(43, 1, 10) == [10, 10, 10, 10, 3]


def test_a_request_that_carries_less_makes_the_groups_smaller_from_then_on() -> None:
    assert groups(60, 2, 10, after=2) == [10, 10, 5, 5, 5, 5, 5, 5, 5, 5]


def run_json(case: Inline) -> Path:  # noqa: F811
    return next(case.runtime.glob("goldsky_payouts/*/_running/run.json"))


def interrupted(case: Inline) -> None:  # noqa: F811
    """A run that dies after its first batch."""
    case.env.update(GOLDSKY_CONCURRENT_REQUESTS="1", GOLDSKY_BATCHES_PER_REQUEST="1")
    case.server.faults.add("errors", requests=range(3, 1000), message=BROKEN)
    with pytest.raises(GoldskyPermanentError, match="has no field"):
        case.fetch()
    case.server.faults.clear()


def test_a_pinned_block_beyond_a_head_that_went_back_is_given_up_and_pinned_anew(case: Inline) -> None:  # noqa: F811
    interrupted(case)
    facts = json.loads(run_json(case).read_text())
    facts["pin"]["block_number" if "block_number" in facts["pin"] else "number"] += 1_000_000
    run_json(case).write_text(json.dumps(facts))

    summary = case.fetch()

    assert summary.stats.batches_resumed == 0
    assert "the subgraph's head went back to" in case.log_text
    assert set(case.statuses()) == set(case.ids)


def test_a_run_that_died_asks_only_what_it_had_not(case: Inline) -> None:  # noqa: F811
    interrupted(case)
    done = len(list(case.runtime.glob("goldsky_payouts/*/_running/batch-*.parquet")))

    summary = case.fetch()

    assert summary.stats.batches_resumed == done > 0
    assert summary.stats.ids_asked == 300 - 100 * done
    assert set(case.statuses()) == set(case.ids)


def test_a_finished_ledger_that_was_never_delivered_is_taken_without_a_request(case: Inline) -> None:  # noqa: F811
    first = case.fetch(run_id="one", backfill_id="b")
    before = len(case.server.log)

    for options in ({"run_id": "one"}, {"backfill_id": "b"}, {"reuse_finished": lambda run: run == "one"}):
        again = case.fetch(**{"run_id": "two", **options})
        assert (again.info, again.stats) == (first.info, first.stats)
    assert len(case.server.log) == before

    case.fetch(run_id="two")
    assert len(case.server.log) > before


def test_a_chunk_without_ids_has_no_rows_and_asks_nothing(tmp_path: Path) -> None:
    with inline(tmp_path, ids=1, workers=2) as place:
        summary = place.fetch(2)

        assert (summary.info.ids, summary.stats.requests, summary.info.batches) == (0, 0, 0)
        assert len(place.server.log) == 0
        checkpoint = json.loads((place.runtime / "payout-backfill-worker2.checkpoint.json").read_text())
        assert (checkpoint["state"], checkpoint["totalIds"]) == ("complete", 0)


def spoil(case: Inline, payouts: Any, ids: list[str]) -> None:  # noqa: F811
    case.server.faults.add("raw", fields={f"0x{one}": {"payouts": payouts} for one in ids})


def test_what_changed_since_the_former_ledger_is_counted_and_shown(case: Inline) -> None:  # noqa: F811
    chosen = [one for one, vector in case.truth.resolved.items() if vector == ((1, 0), 1)][:3]
    first = case.fetch()
    assert first.changes is None
    assert fetch_metadata(first)["changes"] == "none: there was no finished ledger before"
    spoil(case, ["0", "1"], chosen[:1])
    spoil(case, None, chosen[1:2])
    second = case.fetch()
    case.server.faults.clear()
    third = case.fetch()

    counts = {"newly_resolved": 0, "vector_changed": 1, "became_absent": 0, "no_longer_resolved": 1}
    assert second.changes is not None
    assert third.changes is not None
    assert second.changes.counts == counts
    assert third.changes.counts == counts | {"newly_resolved": 1, "no_longer_resolved": 0}
    assert {row["condition_id"]: (row["before"], row["after"]) for row in second.changes.first} == {
        chosen[0]: ("[1, 0]/1", "[0, 1]/1"),
        chosen[1]: ("[1, 0]/1", ""),
    }
    metadata = fetch_metadata(second)
    assert (metadata["newly_resolved"], metadata["vectors_changed"], metadata["became_absent"]) == (0, 1, 0)
    assert len(metadata["changes"].records) == 2


def test_too_many_invalid_vectors_fail_the_run_and_the_next_one_asks_anew(case: Inline) -> None:  # noqa: F811
    spoil(case, ["1", "1"], list(case.truth.resolved)[:20])
    with pytest.raises(ErrorRateError, match=r"20 invalid[\s\S]*PAYOUT_MAX_ERROR_RATE higher"):
        case.fetch()
    case.server.faults.clear()

    summary = case.fetch()

    assert (summary.stats.ids_asked, summary.info.counts["invalid"]) == (300, 0)


def test_the_last_state_is_in_the_checkpoint_and_a_line_a_batch_in_the_progress_file(case: Inline) -> None:  # noqa: F811
    summary = case.fetch()

    checkpoint = json.loads((case.runtime / "payout-backfill-worker1.checkpoint.json").read_text())
    lines = (case.runtime / "payout-backfill-worker1.progress.jsonl").read_text().splitlines()
    info = Ledger(str(case.runtime), summary.info.partition).finished()
    assert info is not None
    assert (checkpoint["state"], checkpoint["batchesProcessed"], checkpoint["totalIdsProcessed"]) == (
        "complete",
        3,
        300,
    )
    assert checkpoint["totalPayoutsFound"] == info.counts["resolved"] == summary.info.counts["resolved"]
    assert sorted(json.loads(line)["batch_index"] for line in lines) == [0, 1, 2]
