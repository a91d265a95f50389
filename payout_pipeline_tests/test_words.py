"""How numbers, shares and spans of time read in sentences: pure functions over all sorts of numbers."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from payout_pipeline.words import counted, duration, listed, share, verb


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
    assert [verb(number, "hold") for number in (0, 1, 2)] == ["hold", "holds", "hold"]
    assert listed([], 0) == ""
    assert listed(["a", "b", "c", "d"], 1_000) == "a, b, c and 997 more"
    assert listed(["a"], 1) == "a"
