"""An answer becomes ledger rows by shape; the table is the one that the way row by row gives."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payout_pipeline.answer_rows import raw_text, rows_by_shape
from payout_pipeline.goldsky.answers import JSONNumber, RawCondition
from payout_pipeline.ledger import rows_from_answer
from payout_pipeline.payouts import parse_numerators, parse_payouts

NOW = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=timezone.utc)
BLOCK = 71_000_000

_texts = st.one_of(
    st.sampled_from(
        ["0", "1", "0.5", "0.54", "0.46", "0." + "3" * 34, "0." + "6" * 33 + "7", "-1", "NaN", "", "1e400"]
    ),
    st.text(max_size=5),
)
_vectors = st.one_of(st.none(), st.lists(_texts, max_size=4))
_ids = st.integers(0, 2**256 - 1).map(lambda number: f"{number:064x}")


def _by_rows(
    asked: list[str], found: dict[str, RawCondition], numerators: bool, times: dict[str, int | None] | None = None
) -> Any:
    answered, raw = {}, {}
    for condition_id, c in found.items():
        if numerators:
            answered[condition_id] = parse_numerators(c.payout_numerators, c.payout_denominator)
            raw[condition_id] = raw_text([c.payout_numerators, c.payout_denominator])
        else:
            answered[condition_id] = parse_payouts(c.payouts)
            raw[condition_id] = raw_text(c.payouts)
    return rows_from_answer(asked, answered, raw=raw, block_number=BLOCK, fetched_at=NOW, resolved_at=times)


@settings(deadline=None)
@given(st.dictionaries(_ids, _vectors, max_size=30), st.lists(_ids, max_size=5), st.randoms(use_true_random=False))
def test_rows_by_shape_are_the_rows_that_one_gets_one_by_one(
    vectors: dict[str, Any], unknown: list[str], random: Any
) -> None:
    found = {condition_id: RawCondition(vector, None, None, None) for condition_id, vector in vectors.items()}
    asked = sorted({*found, *unknown})
    random.shuffle(asked)
    times = {condition_id: random.choice([None, 1_700_000_000]) for condition_id in found}
    table = rows_by_shape(asked, found, numerators=False, block_number=BLOCK, fetched_at=NOW, resolved_at=times)
    assert table is not None
    assert table.equals(_by_rows(asked, found, False, times))
    table.validate(full=True)


@settings(deadline=None)
@given(
    st.dictionaries(_ids, st.tuples(_vectors, st.one_of(st.none(), st.sampled_from(["0", "1", "2", "50"]), _texts))),
    st.lists(_ids, max_size=5),
)
def test_numerators_and_denominators_become_the_same_rows_as_one_by_one(
    vectors: dict[str, Any], unknown: list[str]
) -> None:
    found = {i: RawCondition(None, tops, bottom, None) for i, (tops, bottom) in vectors.items()}
    asked = [*found, *(i for i in dict.fromkeys(unknown) if i not in found)]
    table = rows_by_shape(asked, found, numerators=True, block_number=BLOCK, fetched_at=NOW)
    assert table is not None
    assert table.equals(_by_rows(asked, found, True))


@pytest.mark.parametrize(
    "vector",
    [[1, 0], ["1", 0], [True, False], [None, "1"], [["1"], "0"], "1", 5, {"0": "1"}, [JSONNumber("0.5"), "0.5"]],
    ids=repr,
)
def test_what_is_no_list_of_plain_strings_is_left_to_the_way_row_by_row(vector: Any) -> None:
    found = {"0" * 64: RawCondition(["1", "0"], None, None, None), "1" * 64: RawCondition(vector, None, None, None)}
    assert rows_by_shape(list(found), found, numerators=False, block_number=BLOCK, fetched_at=NOW) is None


def test_a_denominator_that_is_a_number_is_left_to_the_way_row_by_row() -> None:
    found = {"0" * 64: RawCondition(None, ["1", "0"], 1, None)}
    assert rows_by_shape(list(found), found, numerators=True, block_number=BLOCK, fetched_at=NOW) is None


def test_one_invalid_vector_takes_none_of_its_neighbours_along() -> None:
    found = {
        "a" * 64: RawCondition(["0.54", "0.46"], None, None, None),
        "b" * 64: RawCondition(["0", "0"], None, None, None),
        "c" * 64: RawCondition(None, None, None, None),
    }
    asked = ["c" * 64, "d" * 64, "b" * 64, "a" * 64]
    table = rows_by_shape(asked, found, numerators=False, block_number=BLOCK, fetched_at=NOW)
    assert table is not None
    rows = [(r["status"], r["payouts"], r["payout_numerators"], r["payout_denominator"], r["winning_index"], r["error"])
            for r in table.to_pylist()]  # fmt: skip
    assert rows == [
        ("unresolved", None, None, None, None, None),
        ("absent", None, None, None, None, None),
        ("invalid", '["0","0"]', None, None, None, "all payouts are zero"),
        ("resolved", '["0.54","0.46"]', [27, 23], 50, 0, None),
    ]


def test_an_empty_batch_has_no_rows() -> None:
    table = rows_by_shape([], {}, numerators=False, block_number=BLOCK, fetched_at=NOW)
    assert table is not None
    assert table.num_rows == 0
