"""A1-A12: whatever the subgraph does, what is stored is the truth. Fetch, load and view run as a whole; a real HTTP server."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from payout_pipeline.errors import ErrorRateError, GoldskyPermanentError, PayoutPipelineError
from payout_pipeline.ledger import Ledger
from payout_pipeline_tests.chaos.fixtures import variants
from payout_pipeline_tests.chaos.inline import Inline
from payout_pipeline_tests.chaos.inline import inline as a_case
from payout_pipeline_tests.chaos.world import TOKEN
from payout_pipeline_tests.oracle import Truth, ledger_rows

HOSTILE = "Store error: database unavailable"
inline = partial(a_case, keep_engine_open=True)


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Inline]:
    """300 ids, one worker, batches of 100."""
    with inline(tmp_path) as made:
        yield made


@contextmanager
def at_once(seconds: float) -> Iterator[None]:
    """The block ends within ``seconds``."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def test_a1_a_server_that_cuts_every_answer_at_100_rows_costs_requests_and_no_id(tmp_path):
    with inline(tmp_path, ids=900, GOLDSKY_BATCH_SIZE="300") as case:
        case.server.faults.add("page_cap", rows=100)
        case.backfill()
        case.assert_right()
        assert max(request.rows for request in case.server.log.batches()) == 100


@pytest.mark.slow
@pytest.mark.parametrize("rows", [7, 77])
def test_a1_a_cap_of_any_size_is_noticed(tmp_path, rows):
    with inline(tmp_path, ids=900, GOLDSKY_BATCH_SIZE="300") as case:
        case.server.faults.add("page_cap", rows=rows)
        case.backfill()
        case.assert_right()


@pytest.mark.slow
def test_a2_with_the_limit_that_the_server_enforces_there_is_hardly_a_429_and_no_time_is_lost(tmp_path):
    """Scaled: 10 requests a second and 40 batches, so 3 s are the floor (41 requests, the first 10 at once)."""
    with inline(
        tmp_path, ids=400, config={"rate_limit": "10/1s"}, GOLDSKY_BATCH_SIZE="10", GOLDSKY_RATE_LIMIT="10/1s"
    ) as case:
        began = time.monotonic()
        case.fetch()
        wall = time.monotonic() - began
        log = case.server.log
        assert log.max_in_window(1.0) <= 10
        assert log.statuses()[429] <= 3
        requests = len(log)
        floor = (math.ceil(requests / 10) - 1) * 1.0
        assert log.entries[-1].arrived - log.entries[0].arrived <= 1.15 * floor + 0.5, (requests, wall)


@pytest.mark.slow
def test_a2_fifty_requests_in_ten_seconds_are_kept_and_used(tmp_path):
    with inline(
        tmp_path, ids=1_700, config={"rate_limit": "50/10s", "retry_after": "7"}, GOLDSKY_BATCH_SIZE="10",
        GOLDSKY_RATE_LIMIT="50/10s", GOLDSKY_BATCHES_PER_REQUEST="1",
    ) as case:  # fmt: skip
        case.backfill()
        case.assert_right(limit=(50, 10.0))
        entries = case.server.log.entries
        assert case.server.log.statuses()[429] <= 3
        floor = (math.ceil(len(entries) / 50) - 1) * 10.0
        assert entries[-1].arrived - entries[0].arrived <= 1.15 * floor


def test_a2_nothing_is_sent_before_the_time_that_a_429_asks_for(case):
    case.server.faults.add("status", requests=(2,), status=429, retry_after="2")
    case.backfill()
    case.assert_right()
    entries = case.server.log.entries
    refused = next(entry for entry in entries if entry.status == 429)
    answered_at = refused.arrived + (refused.seconds or 0)
    # What was on its way when the 429 came is not counted: the other lanes, and those at once.
    assert sum(answered_at < entry.arrived < answered_at + 0.5 for entry in entries) <= 8
    later = [entry.arrived - answered_at for entry in entries if entry.arrived >= answered_at + 0.5]
    assert min(later) >= 1.99


@pytest.mark.parametrize("header", ["99999999", *variants("soon", "Wed, 21 Oct 2099 07:28:00 GMT", None)])
def test_a3_a_wait_that_nobody_could_mean_is_capped(tmp_path, header):
    with inline(tmp_path, GOLDSKY_MAX_RETRY_AFTER_SECONDS="1") as case:
        options: dict[str, Any] = {"status": 429} | ({} if header is None else {"retry_after": header})
        case.server.faults.add("status", requests=(2,), **options)
        with at_once(15):
            case.backfill()
        case.assert_right()
        assert case.server.log.statuses()[429] == 1
        assert "429" in case.log_text or "limit" in case.log_text


@pytest.mark.slow
def test_a4_a_fifth_of_the_requests_failing_costs_attempts_and_no_id(tmp_path):
    with inline(tmp_path, ids=600, GOLDSKY_BATCH_SIZE="20", GOLDSKY_MAX_RETRIES="8") as case:
        faults = [case.server.faults.add("status", probability=0.05, status=status) for status in (500, 502, 503, 504)]
        case.backfill()
        case.assert_right()
        struck = sum(fault.struck for fault in faults)
        assert struck > 0
        assert len(case.server.log) <= 31 + 4 * struck


def test_a4_a_batch_that_never_works_gets_its_attempts_and_no_more(tmp_path):
    with inline(tmp_path, ids=3, GOLDSKY_MAX_RETRIES="2", GOLDSKY_OUTAGE_BUDGET_SECONDS="0") as case:
        case.server.faults.add("status", requests=range(2, 1000), status=500)
        with at_once(30), pytest.raises(ErrorRateError):
            case.fetch()
        assert (
            len(case.server.log) <= 2 + 3 * 5
        )  # the batch, its halves down to single ids, three attempts each at most


@pytest.mark.parametrize("form", ["html", *variants("empty", "truncated", "null_data")])
def test_a5_an_answer_that_is_none_is_asked_for_again(case, form):
    case.server.faults.add("body", requests=(2, 4), form=form)
    case.backfill()
    case.assert_right()


@pytest.mark.parametrize(("form", "shown"), [("message", "Not found"), ("object", "{}")])
def test_a5_what_only_a_wrong_address_answers_is_final_after_one_request(case, form, shown):
    case.server.faults.add("body", form=form)
    with at_once(5), pytest.raises(GoldskyPermanentError) as error:
        case.fetch()
    assert len(case.server.log) == 1
    assert shown in str(error.value)


def test_a5_the_message_shows_the_first_200_characters_without_the_token(tmp_path):
    with inline(tmp_path, GOLDSKY_MAX_RETRIES="0", GOLDSKY_OUTAGE_BUDGET_SECONDS="1") as case:
        case.server.faults.add("body", form="text", text=f"<p>{TOKEN} gateway</p>" + "x" * 500)
        with pytest.raises(PayoutPipelineError) as error:
            case.fetch()
        assert "gateway" in str(error.value)
        assert TOKEN not in str(error.value)
        assert "x" * 200 not in str(error.value)


@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize(
    "message", [HOSTILE, *variants("Failed to get entities from store: canceling statement due to user request")]
)
def test_a6_data_beside_an_error_is_never_stored(case, message, with_data):
    case.server.faults.add("errors", requests=(2, 3), message=message, with_data=with_data)
    case.backfill()
    case.assert_right()


def test_a6_a_statement_timeout_halves_the_batch(case):
    case.server.faults.add("statement_timeout", max_ids=30)
    case.backfill()
    case.assert_right()
    assert max(request.id_count for request in case.server.log.batches() if not request.faults) == 25
    assert len(case.server.log) <= 25  # at once: 3 batches in 1 + 2 + 4 requests, and no attempt is wasted on them


def test_a6_a_field_that_is_not_there_is_final(case):
    case.server.faults.add("errors", requests=range(2, 100), message="Type `Condition` has no field `payouts`")
    with at_once(5), pytest.raises(GoldskyPermanentError, match="has no field"):
        case.fetch()
    assert len(case.server.log.batches()) <= 3  # the lanes that were on their way


def test_a6_an_indexing_error_beside_data_ends_the_run_instead_of_being_stored(case):
    case.server.faults.add("errors", requests=range(2, 100), message="indexing_error", with_data=True)
    with pytest.raises(PayoutPipelineError, match="indexing_error"):
        case.fetch()
    assert ledger_rows(case.runtime, 1) == []


@pytest.mark.parametrize("kind", ["foreign_id", "upper_case_id", *variants("extra_id", "duplicate_id", "malformed_id")])
def test_a7_an_answer_with_a_wrong_id_is_refused_as_a_whole(case, kind):
    case.server.faults.add(kind, requests=(2, 3))
    case.backfill()
    case.assert_right()
    entries = case.server.log.entries
    for struck in (entry for entry in entries if kind in entry.faults):
        later = {i for entry in entries[struck.number :] if not entry.faults for i in entry.ids}
        assert set(struck.ids) <= later  # all of it was asked again, not only the wrong row


def test_a7_an_existing_id_that_is_left_out_once_is_not_taken_for_absent(case):
    case.server.faults.add("omit_id", requests=(2, 3))
    case.backfill()
    case.assert_right()


@contextmanager
def mostly_unknown(root: Path) -> Iterator[tuple[Inline, Truth]]:
    """60 known ids and 200 unknown ones behind them, in batches of 20, one request at a time."""
    with inline(root, ids=60, GOLDSKY_BATCH_SIZE="20", GOLDSKY_CONCURRENT_REQUESTS="1") as case:
        unknown = [f"{number:064x}" for number in range(1, 201)]
        case.ids_file.write_text("\n".join([*case.ids, *unknown]) + "\n")
        yield case, replace(case.truth, absent=case.truth.absent | set(unknown))


def test_a7_absent_ids_are_asked_for_exactly_once_more(tmp_path):
    with mostly_unknown(tmp_path) as (case, truth):
        case.backfill()
        case.assert_right(truth=truth)
        batches = [[i.removeprefix("0x") for i in entry.ids] for entry in case.server.log.entries if entry.ids]
        asked = Counter(i for ids in batches for i in ids)
        assert {i: asked[i] for i in truth.absent} == dict.fromkeys(truth.absent, 2)


def test_a7_an_id_that_was_left_out_is_found_by_the_second_question_and_then_no_two_answers_are_enough(tmp_path):
    with mostly_unknown(tmp_path) as (case, truth):
        case.server.faults.add("omit_id", requests=(2,))
        case.backfill()
        case.assert_right(truth=truth)
        asked = Counter(i.removeprefix("0x") for entry in case.server.log.entries for i in entry.ids)
        assert min(asked[i] for i in truth.absent) >= 3


@pytest.mark.slow
def test_a7_one_poisoned_id_never_costs_its_neighbours(tmp_path):
    with inline(tmp_path, GOLDSKY_MAX_RETRIES="1") as case:
        victim = next(iter(case.truth.resolved))
        case.server.faults.add("poison", ids=["0x" + victim], message=HOSTILE)
        case.fetch()
        statuses = case.statuses()
        expected = case.truth.status_of() | {victim: "failed"}
        assert statuses == expected
        (row,) = [row for row in ledger_rows(case.runtime, 1) if row["condition_id"] == victim]
        assert HOSTILE in row["error"]


RAW: dict[str, tuple[Any, Any]] = {
    "thirds": (["0.3333333333333333333333333333333333"] * 3, ((1, 1, 1), 3)),
    "both one": (["1", "1"], "vector"),
    "both zero": (["0", "0"], "invalid"),
    "negative": (["-1", "2"], "invalid"),
    "NaN": (["NaN", "1"], "invalid"),
    "1e400": (["1e400", "0"], "invalid"),
    "1abc": (["1abc", "0"], "invalid"),
    "empty text": (["", "1"], "invalid"),
    "null inside": ([None, "1"], "invalid"),
    "one element": (["1"], "vector"),
    "257 elements": (["1"] + ["0"] * 256, "vector"),
    "no elements": ([], "not resolved"),
    "null": (None, "unresolved"),
    "10^18": (
        ["0.123456789012345678", "0.876543210987654322"],
        ((61728394506172839, 438271605493827161), 500000000000000000),
    ),
    "2^256-1": ([str(2**256 - 1), "0"], "vector"),
    "an object": ({"a": 1}, "invalid"),
    "a float": ([0.54, 0.46], ((27, 23), 50)),
    "SQL": (["1'); DROP TABLE resolutions_external_ingest; --", "0"], "invalid"),
}


def test_a8_every_odd_vector_is_exact_or_invalid_and_none_takes_its_neighbours_along(case):
    victims = dict(zip(list(case.truth.resolved)[: len(RAW)], RAW, strict=True))
    fields = {"0x" + identity: {"payouts": RAW[name][0]} for identity, name in victims.items()}
    case.server.faults.add("raw", fields=fields)
    case.env["PAYOUT_MAX_ERROR_RATE"] = "0.5"
    case.backfill()
    rows = {row["condition_id"]: row for row in ledger_rows(case.runtime, 1)}
    resolved, invalid, unresolved = dict(case.truth.resolved), set(), set(case.truth.unresolved)
    for identity, name in victims.items():
        row, expected = rows[identity], RAW[name][1]
        if isinstance(expected, tuple):
            resolved[identity] = expected
            continue
        del resolved[identity]
        if expected == "vector" and row["status"] == "resolved":
            numerators = tuple(int(n) for n in row["payout_numerators"])
            assert sum(numerators) == row["payout_denominator"]
            assert len(numerators) == len(RAW[name][0])
            resolved[identity] = (numerators, int(row["payout_denominator"]))
        elif expected == "unresolved" or (expected == "not resolved" and row["status"] == "unresolved"):
            unresolved.add(identity)
        else:
            assert row["status"] == "invalid", (name, row)
            assert row["error"], name
            assert row["payouts"], name
            invalid.add(identity)
    case.assert_right(truth=Truth(resolved, frozenset(unresolved), case.truth.absent, frozenset(invalid)))
    assert {name for i, name in victims.items() if i in invalid} >= {n for n, (_, e) in RAW.items() if e == "invalid"}


def test_a9_a_head_that_is_days_old_fails_its_check(case):
    from payout_pipeline.ids.chunks import read_worklist
    from payout_pipeline.verification.goldsky_payouts import checks

    case.server.faults.add("stale_head", seconds=3 * 86_400)
    case.backfill()
    case.assert_right()
    verdict = checks(case.settings, read_worklist(case.settings), "worker_1_of_1")["source_is_fresh"]()
    assert not verdict.passed
    assert "old" in verdict.description


def test_a9_indexing_errors_at_the_pinned_block_are_said_and_nothing_is_stored(case):
    case.server.faults.add("indexing_errors")
    with at_once(30), pytest.raises(PayoutPipelineError, match="indexing errors at block"):
        case.fetch()
    assert ledger_rows(case.runtime, 1) == []


def test_a9_a_deployment_that_changes_in_the_middle_is_never_mixed_into_one_snapshot(tmp_path):
    with inline(
        tmp_path, ids=600, GOLDSKY_BATCH_SIZE="50", GOLDSKY_CONCURRENT_REQUESTS="2", GOLDSKY_BATCHES_PER_REQUEST="2"
    ) as case:
        other = "QmOtherDeployment" + "1" * 29
        case.server.faults.add("deployment", requests=range(6, 1000), deployment=other)
        case.backfill()
        case.assert_right()
        info = Ledger(str(case.runtime), "worker_1_of_1").finished()
        assert info is not None
        assert info.pin.deployment == other
        asked_after = Counter(i for entry in case.server.log.batches() if entry.number >= 6 for i in entry.ids)
        assert {identity.removeprefix("0x") for identity in asked_after} == set(
            case.ids
        )  # nothing kept of the former one


@pytest.mark.parametrize("kind", ["hang", *variants("drop", "reset")])
def test_a10_a_connection_that_never_answers_or_breaks_ends_at_its_deadline(tmp_path, kind):
    with inline(tmp_path, GOLDSKY_TIMEOUT_SECONDS="1.5") as case:
        case.server.faults.add(kind, requests=(3,), **({"seconds": 60} if kind == "hang" else {}))
        with at_once(12):
            case.backfill()
        case.assert_right()
        struck = next(entry for entry in case.server.log.entries if kind in entry.faults)
        if kind == "hang":
            assert struck.seconds == pytest.approx(1.5, abs=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["status", "drop"])
def test_a11_an_outage_pauses_everybody_and_costs_no_id(tmp_path, mode):
    with inline(tmp_path, ids=600, GOLDSKY_BATCH_SIZE="20", GOLDSKY_OUTAGE_BUDGET_SECONDS="30") as case:
        case.server.faults.add("outage", requests=(8,), times=1, seconds=4, mode=mode)
        case.backfill()
        case.assert_right()
        struck = [entry for entry in case.server.log.entries if entry.faults]
        assert len(struck) <= 25  # waiting together, not every batch burning its retries: 8 lanes at most a few times
        assert "outage" in case.log_text.lower() or "waiting" in case.log_text


@pytest.mark.slow
def test_a11_an_outage_for_good_stops_within_its_budget_and_a_later_run_completes(tmp_path):
    few = {"GOLDSKY_OUTAGE_BUDGET_SECONDS": "2", "GOLDSKY_CONCURRENT_REQUESTS": "2", "GOLDSKY_BATCHES_PER_REQUEST": "2"}
    with inline(tmp_path, ids=600, GOLDSKY_BATCH_SIZE="20", **few) as case:
        outage = case.server.faults.add("outage", requests=(8,), times=1, seconds=3_600)
        with at_once(30), pytest.raises(ErrorRateError) as error:
            case.fetch()
        assert "start worker_1_of_1 again" in str(error.value)
        answered = {i for entry in case.server.log.batches() if entry.status == 200 for i in entry.ids}
        assert answered
        case.server.faults.remove(outage)
        before = len(case.server.log)
        case.backfill()
        case.assert_right()
        again = {i for entry in case.server.log.entries[before:] for i in entry.ids}
        settled = {
            i for i in answered if i.removeprefix("0x") not in case.truth.absent
        }  # an absence has a second answer
        assert not again & settled  # what was saved is not asked again


def test_a12_a_second_backfill_over_an_unchanged_source_changes_no_row(tmp_path):
    with inline(tmp_path, workers=2) as case:
        first = case.backfill()
        assert sum(load.inserted_new for load in first) == len(case.truth.resolved)
        query = "SELECT *, _part FROM default.resolutions_external_ingest ORDER BY condition_id"
        before = case.rows(query)
        second = case.backfill()
        assert [(load.inserted_new, load.inserted_changed, load.removed) for load in second] == [(0, 0, 0)] * 2
        assert case.rows(query) == before
        case.assert_right()


@pytest.mark.parametrize(
    ("limit", "size", "words"),
    [
        ({"max_complexity": 250}, 5, "potentially returns"),
        ({"max_body_bytes": 20_000}, 5, "413"),
        ({"max_aliases": 5}, 5, "connection failed"),
        ({"alias_timeout": 5}, 5, "timed out"),
    ],
)
def test_a13_what_a_subgraph_refuses_is_learned_and_the_ledger_says_why(tmp_path, limit, size, words):
    with inline(
        tmp_path, ids=1_000, config=limit, GOLDSKY_BATCH_SIZE="50", GOLDSKY_CONCURRENT_REQUESTS="2",
        GOLDSKY_BATCHES_PER_REQUEST="10",
    ) as case:  # fmt: skip
        case.backfill()
        case.assert_right()
        info = Ledger(str(case.runtime), "worker_1_of_1").finished()
        assert info is not None
        assert info.stats["batches_per_request"] == size
        assert words in info.stats["shrunk_because"]


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "foreign_id"},
        {"kind": "omit_id", "times": 1},
        {"kind": "missing_alias"},
        {"kind": "errors", "message": "Store error: x"},
        {"kind": "body", "form": "truncated"},
    ],
    ids=lambda fault: fault["kind"],
)
def test_a13_one_bad_alias_of_ten_loses_nothing_and_stores_nothing_wrong(tmp_path, fault):
    with inline(tmp_path, ids=1_000, GOLDSKY_BATCH_SIZE="50", GOLDSKY_CONCURRENT_REQUESTS="2") as case:
        case.server.faults.add(**fault, alias=6)
        case.backfill()
        case.assert_right()
