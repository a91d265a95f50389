"""An answer of the subgraph as rows of the ledger: exact, and nothing of it larger than it has to be."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payout_pipeline.goldsky.answers import JSONNumber, RawCondition, SubgraphInfo
from payout_pipeline.goldsky.client import BatchAnswer
from payout_pipeline.ledger.answers import OddTimes, raw_text, resolution_seconds, rows_of_answer
from payout_pipeline.ledger.rows import fault_in_rows
from payout_pipeline.payouts import InvalidVector, Vector, parse_payouts

NOW = datetime(2025, 11, 9, 10, 30, tzinfo=timezone.utc)
IDS = [f"{number:064x}" for number in range(6)]


def info(kind: str = "payouts", times: bool = False) -> SubgraphInfo:
    return SubgraphInfo(kind, times, 1_250, None, "Qm", False)  # type: ignore[arg-type]


def rows(conditions: dict[str, RawCondition], about: SubgraphInfo | None = None, **failed: str) -> Any:
    answer = BatchAnswer(found=conditions, failed=failed, block_number=1_000)
    table = rows_of_answer([*conditions, *failed], answer, about or info(), NOW, OddTimes())
    assert fault_in_rows(table) is None
    return table.to_pylist()


_vectors = st.sampled_from(
    [["1", "0"], ["0", "1"], [1, 0], [True, False], ["0.5", "0.5"], [], None, "x", ["1", "1"], 7]
)


@settings(deadline=None)
@given(st.lists(_vectors, max_size=6))
def test_each_id_has_the_status_of_its_own_vector_whatever_its_neighbours_are(vectors: list[Any]) -> None:
    found = {i: RawCondition(vector, None, None, None) for i, vector in zip(IDS, vectors, strict=False)}

    for row, vector in zip(rows(found), vectors, strict=True):
        expected = parse_payouts(vector)
        if isinstance(expected, Vector):
            assert (row["status"], tuple(row["payout_numerators"])) == ("resolved", expected.numerators)
            assert (row["payout_denominator"], row["winning_index"]) == (expected.denominator, expected.winning_index)
        elif isinstance(expected, InvalidVector):
            assert (row["status"], row["error"]) == ("invalid", expected.reason)
        else:
            assert row["status"] == "unresolved"
        assert row["payouts"] == raw_text(vector)


def test_numerators_are_kept_with_their_denominator_and_what_is_not_resolved_is_not_invalid() -> None:
    found = [(["1", "0"], "1"), (None, "0"), ([], None), (["0", "0"], "0"), (["1", "0"], "2")]
    conditions = {i: RawCondition(None, *pair, None) for i, pair in zip(IDS, found, strict=False)}

    statuses = [(row["status"], row["payouts"]) for row in rows(conditions, info("numerators"))]

    assert statuses == [
        ("resolved", '[["1","0"],"1"]'),
        ("unresolved", '[null,"0"]'),
        ("unresolved", "[[],null]"),
        ("unresolved", '[["0","0"],"0"]'),
        ("invalid", '[["1","0"],"2"]'),
    ]


def test_absent_and_failed_ids_have_a_row_each() -> None:
    answer = BatchAnswer(found={}, failed={IDS[1]: "HTTP 503"}, block_number=1_000)

    table = rows_of_answer(IDS[:2], answer, info(), NOW, OddTimes())

    assert [(row["status"], row["error"]) for row in table.to_pylist()] == [("absent", None), ("failed", "HTTP 503")]


def test_a_text_of_fifty_megabytes_is_not_kept_whole_and_a_long_vector_is() -> None:
    long = ["0"] * 255 + ["1"]
    found = [["9" * 50_000_000, "0"], "x" * 50_000_000, long]
    conditions = {i: RawCondition(vector, None, None, None) for i, vector in zip(IDS, found, strict=False)}

    table = rows(conditions)

    assert [row["status"] for row in table] == ["invalid", "invalid", "resolved"]
    assert all(len(row["payouts"]) < 600 and len(row["error"]) < 300 for row in table[:2])
    assert "(50,000,008 characters)" in table[0]["payouts"]
    assert table[2]["payouts"] == raw_text(long)


def test_numbers_keep_the_digits_that_were_sent() -> None:
    assert raw_text([JSONNumber("0.50"), 1, "a", None, True]) == '[0.50,1,"a",null,true]'
    assert raw_text(None) is None
    assert raw_text(["é", 2**70]) == f'["é",{2**70}]'


@pytest.mark.parametrize(
    ("value", "seconds", "sane"),
    [
        ("1700000000", 1_700_000_000, True),
        (1_700_000_000, 1_700_000_000, True),
        ("1700000000123", 1_700_000_000, True),
        ("0", None, True),
        (None, None, True),
        ("-1", None, False),
        ("99999999999", None, False),
        (str(2**32), None, False),
        (str(10**30), None, False),
        ("soon", None, False),
        ("1.5", None, False),
        (JSONNumber("1.7e9"), None, False),
        ([], None, False),
        (True, None, False),
        ("9" * 100_000, None, False),
    ],
)
def test_a_resolution_time_is_seconds_or_milliseconds_and_anything_else_is_counted(
    value: object, seconds: int | None, sane: bool
) -> None:
    assert resolution_seconds(value) == (seconds, sane)
    odd = OddTimes()
    conditions = {i: RawCondition(["1", "0"], None, None, value) for i in IDS[:2]}

    table = rows_of_answer(IDS[:2], BatchAnswer(found=conditions, block_number=1), info(times=True), NOW, odd)

    found = {row["resolved_at"] for row in table.to_pylist()}
    assert found == {None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)}
    assert odd.count == (0 if sane else 2)
    assert sane or (IDS[0] in str(odd) and len(str(odd)) < 400)
