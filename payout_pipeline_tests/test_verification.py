"""What the numbers of a check mean, and how numbers read in sentences: pure functions over all sorts of numbers."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st
from payout_pipeline.warehouse.queries import OneRowPerCondition, SourceTotal, UniqueConditions

from payout_pipeline import verification as judge
from payout_pipeline.verdict import Severity
from payout_pipeline.verification import CoverageNumbers, PnlDefects, PnlNumbers, WorkerState
from payout_pipeline.words import counted, duration, listed, share

NUMBERS = st.integers(0, 10**9)
NOW = datetime(2025, 11, 9, 12, tzinfo=timezone.utc)


@given(st.integers(1, 10**9), st.data())
def test_a_share_reads_as_all_or_nothing_only_where_it_is(whole: int, data: st.DataObject) -> None:
    part = data.draw(st.integers(0, whole))
    text = share(part, whole)
    assert (text == "100.00 %") == (part == whole)
    assert (text == "0.00 %") == (part == 0)
    assert abs(float(text.removesuffix(" %")) - 100 * part / whole) <= 0.01 + 1e-9


@given(st.integers(0, 10**8))
def test_a_duration_names_its_two_largest_units_and_never_rounds_up(seconds: int) -> None:
    text = duration(timedelta(seconds=seconds))
    sizes = {"d": 86_400, "h": 3_600, "min": 60, "s": 1}
    words = text.split()
    told = sum(int(words[i]) * sizes[words[i + 1]] for i in range(0, len(words), 2))
    smallest = sizes[words[-1]]
    assert told <= seconds < told + smallest


def test_counts_and_lists_read_as_sentences_do() -> None:
    assert [counted(0, "row"), counted(1, "row"), counted(2_345, "row")] == ["0 rows", "1 row", "2,345 rows"]
    assert counted(2, "query", "queries") == "2 queries"
    assert listed([], 0) == ""
    assert listed(["a", "b", "c", "d"], 1_000) == "a, b, c and 997 more"
    assert listed(["a"], 1) == "a"


@given(st.integers(0, 1_000), st.integers(0, 1_000), st.integers(0, 1_000))
def test_the_error_rate_passes_exactly_up_to_its_limit(good: int, failed: int, invalid: int) -> None:
    counts = {"resolved": good, "failed": failed, "invalid": invalid}
    verdict = judge.error_rate(counts, [], 0.01, "worker_1_of_4")
    total = good + failed + invalid
    assert verdict.passed == (100 * (failed + invalid) <= total)
    assert bool(verdict.repair) != verdict.passed


@given(NUMBERS, NUMBERS)
def test_unique_conditions_compares_with_the_bar_and_tells_both(conditions: int, bar: int) -> None:
    found = UniqueConditions(conditions, conditions, (SourceTotal("goldsky-api", conditions, conditions),), "SELECT 1")
    verdict = judge.unique_conditions(found, bar, 10**9)
    assert verdict.passed == (conditions >= bar)
    assert f"{conditions:,} of" in verdict.description
    assert f"{bar:,} were expected" in verdict.description


@given(NUMBERS, NUMBERS)
def test_any_row_too_many_or_too_few_fails(rows: int, conditions: int) -> None:
    verdict = judge.one_row_per_condition(OneRowPerCondition(rows, conditions, 0, (), "SELECT 1"))
    assert verdict.passed == (rows == conditions)


@given(st.none() | NUMBERS, st.none() | NUMBERS)
def test_coverage_passes_only_where_a_view_exists_and_lost_nothing(before: int | None, after: int | None) -> None:
    verdict = judge.coverage_before_after(CoverageNumbers(1, 1, 1, before), CoverageNumbers(1, 1, 1, after), "SELECT 1")
    assert verdict.passed == (after is not None and after >= (before or 0))
    assert not judge.coverage_before_after(None, CoverageNumbers(1, 1, 1, after), "SELECT 1").passed


@given(NUMBERS, NUMBERS, st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_settled_pnl_fails_for_each_of_its_reasons_and_no_other(
    before: int, after: int, wallets: int, conditions: int, off: int
) -> None:
    verdict = judge.settled_pnl(
        "a.pnl", PnlNumbers(before, 1.0, None), PnlNumbers(after, 2.0, None), PnlDefects(wallets, conditions, off), ""
    )
    assert verdict.passed == (after >= before and not (wallets or conditions or off))
    assert verdict.facts["paid twice"] == wallets + conditions
    assert bool(verdict.repair) != verdict.passed
    assert verdict.severity is Severity.ERROR


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=9))
def test_all_workers_are_complete_only_where_each_is(facts: list[tuple[bool, bool, bool, bool]]) -> None:
    workers = [
        WorkerState(
            f"worker_{n}_of_{len(facts)}", 3, fetched, todays, loaded, {"resolved": 3}, ("error_rate",) * failed
        )
        for n, (fetched, todays, loaded, failed) in enumerate(facts, 1)
    ]
    verdict = judge.all_workers_complete(workers)
    complete = [fetched and todays and loaded and not failed for fetched, todays, loaded, failed in facts]
    assert verdict.passed == all(complete)
    assert verdict.actual == sum(complete)
    assert len(verdict.tables[0].rows) == len(facts)
    for worker, good in zip(workers, complete, strict=True):
        assert good or worker.partition in verdict.description or "more" in verdict.description


@given(st.integers(0, 10**6), st.booleans())
def test_a_head_is_fresh_for_24_hours(age: int, errors: bool) -> None:
    verdict = judge.source_is_fresh(5, NOW - timedelta(seconds=age), NOW, errors, "worker_1_of_1")
    assert verdict.passed == (age <= 86_400 and not errors)
    assert verdict.severity is Severity.WARN
