"""Vectors: every answer is converted exactly or refused with a reason, never rounded and never wrapped."""

from __future__ import annotations

import csv
import decimal
import json
import time
from collections import Counter
from fractions import Fraction
from math import gcd

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from payout_pipeline.payouts import (
    MAX_UINT64,
    InvalidVector,
    Vector,
    parse_numerators,
    parse_payouts,
)
from payout_pipeline_tests.running import REPOSITORY

DATA = REPOSITORY.parent / "shared" / "data" / "resolutions.csv"

#: Every vector with a denominator up to here is told apart from every other storable one by 34 digits.
PROVABLE = 5 * 10**14


def graph_node(numerator: int, denominator: int) -> str:
    """What graph-node writes for a BigDecimal: 34 significant digits, half up, no trailing zeros, no exponent."""
    context = decimal.Context(prec=34, rounding=decimal.ROUND_HALF_UP, Emin=-999999, Emax=999999)
    text = f"{context.divide(decimal.Decimal(numerator), decimal.Decimal(denominator)):f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) or "0"


def answered(numerators: list[int]) -> list[str]:
    return [graph_node(numerator, sum(numerators)) for numerator in numerators]


def lowest(numerators: list[int]) -> Vector:
    divisor = gcd(*numerators)
    return Vector(tuple(numerator // divisor for numerator in numerators), sum(numerators) // divisor)


KNOWN = [
    (["1", "0"], [1, 0], 1, 0),
    (["0", "1"], [0, 1], 1, 1),
    (["0.5", "0.5"], [1, 1], 2, -1),
    (["0.54", "0.46"], [27, 23], 50, 0),
    (["0.3333333333333333333333333333333333"] * 3, [1, 1, 1], 3, -1),
    (["0.3333333333333333333333333333333333", "0.6666666666666666666666666666666667"], [1, 2], 3, 1),
    (["0.1428571428571428571428571428571429", "0.8571428571428571428571428571428571"], [1, 6], 7, 1),
    (["0", "0", "1"], [0, 0, 1], 1, 2),
    (["0.25", "0.25", "0.5"], [1, 1, 2], 4, 2),
    (["1.0", "0.00"], [1, 0], 1, 0),
    ([1, 0], [1, 0], 1, 0),
    (["0.000000000000000001", "0.999999999999999999"], [1, 10**18 - 1], 10**18, 1),
    (
        ["0.999999999999999999", "0.000000000000000000999999999999999999"],
        [10**18, 1],
        10**18 + 1,
        0,
    ),
    (["0"] * 255 + ["1"], [0] * 255 + [1], 1, 255),
    (["1e0", "0E-18"], [1, 0], 1, 0),
    (["1.", "0."], [1, 0], 1, 0),
    (["5E-1", "50e-2"], [1, 1], 2, -1),
    (["0.001E3", "0"], [1, 0], 1, 0),
    (["1e-18", "0.999999999999999999"], [1, 10**18 - 1], 10**18, 1),
]


@pytest.mark.parametrize(("raw", "numerators", "denominator", "winner"), KNOWN)
def test_known_answers_are_converted_exactly(
    raw: list[object], numerators: list[int], denominator: int, winner: int
) -> None:
    found = parse_payouts(raw)

    assert found == Vector(tuple(numerators), denominator)
    assert isinstance(found, Vector)
    assert found.winning_index == winner


REFUSED = [
    (["1", "1"], "sum to 2"),
    (["0", "0"], "all payouts are zero"),
    (["-1", "2"], "'-1' is no plain non-negative decimal"),
    (["-0", "1"], "'-0'"),
    (["NaN", "1"], "'NaN'"),
    (["Infinity", "0"], "'Infinity'"),
    (["1e400", "0"], "sum to 1000000000000000000000000000000"),
    (["1e4000", "0"], "'1e4000'"),
    (["1e", "0"], "'1e'"),
    (["1abc", "0"], "'1abc'"),
    (["", "1"], "''"),
    ([" 1", "0"], "' 1'"),
    (["1", "0\n"], "'0\\n'"),
    (["１", "0"], "no plain"),
    (["1_0", "0"], "no plain"),
    ([".5", "0.5"], "no plain"),
    (["0x1", "0"], "no plain"),
    ([None, "1"], "an element is null"),
    ([True, False], "an element is a boolean"),
    ([[], {}], "an element is a list"),
    ([0.5, 0.5], "JSON float"),
    ([1.0, 0.0], "JSON float"),
    ([10**18, 0], "sum to 1000000000000000000"),
    ([str(10**18), "0"], "sum to 1000000000000000000"),
    ([str(2**256 - 1), "0"], "sum to 1157920892373161954235709850086879"),
    ([2**256, 0], "beyond 256 bits"),
    (["9" * 5000, "0"], "5,000 characters"),
    (["1"], "one outcome only"),
    ([], "the list is empty"),
    (["0"] * 256 + ["1"], "257 outcomes"),
    (["0.333"] * 3, "sum to 0.999"),
    (["0.33333333333333333333333333333333"] * 3, "sum to 0.9999"),
    (["0.5", "0.4999999999999999999"], "sum to 0.9999999999999999999"),
    (["0." + "0" * 19 + "1", "0." + "9" * 20], "none or several"),
    ("10", "a string"),
    ({}, "an object"),
    (1, "a number"),
    (True, "a boolean"),
]


@pytest.mark.parametrize(("raw", "reason"), REFUSED, ids=[str(raw)[:30] for raw, _ in REFUSED])
def test_what_is_no_vector_is_refused_with_its_reason(raw: object, reason: str) -> None:
    found = parse_payouts(raw)

    assert isinstance(found, InvalidVector)
    assert any(part in found.reason for part in reason.split("|"))
    assert len(found.reason) < 250
    assert found.reason.isprintable()


def test_null_is_not_resolved_and_an_empty_list_is_not_null() -> None:
    assert parse_payouts(None) is None
    assert isinstance(parse_payouts([]), InvalidVector)


def test_booleans_do_not_share_the_cache_of_numbers() -> None:
    assert parse_payouts([1, 0]) == Vector((1, 0), 1)
    assert isinstance(parse_payouts([True, False]), InvalidVector)
    assert isinstance(parse_payouts([1.0, 0.0]), InvalidVector)


@given(st.lists(st.integers(0, 10**12), min_size=2, max_size=6).filter(any))
@example([1, 2])
@example([1] * 7)
@example([10**12, 1])
def test_any_vector_survives_the_rounding_of_graph_node(numerators: list[int]) -> None:
    assert parse_payouts(answered(numerators)) == lowest(numerators)


@settings(max_examples=400)
@given(denominator=st.integers(2, PROVABLE), data=st.data())
def test_every_denominator_up_to_the_proved_bound_is_recovered(denominator: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, denominator))

    assert parse_payouts(answered([first, denominator - first])) == lowest([first, denominator - first])


@settings(max_examples=400)
@given(st.lists(st.integers(0, 2**64), min_size=2, max_size=4).filter(any))
@example([2**63, 2**63 - 1])
@example([2**64 - 2, 1])
@example([10**18, 1])
@example([10**17 + 3, 10**16 + 61])
def test_a_larger_vector_is_exact_or_invalid_but_never_another_one(numerators: list[int]) -> None:
    found = parse_payouts(answered(numerators))

    assert isinstance(found, InvalidVector) or found == lowest(numerators)


@given(st.integers(1, 10**18 - 1))
def test_shares_of_a_token_of_18_decimals_are_exact(first: int) -> None:
    numerators = [first, 10**18 - first]

    assert parse_payouts(answered(numerators)) == lowest(numerators)


@settings(max_examples=200)
@given(st.lists(st.from_regex(r"\A[01]?(\.[0-9]{1,40})?\Z"), min_size=2, max_size=4))
def test_whatever_is_accepted_reads_like_the_answer(raw: list[str]) -> None:
    found = parse_payouts(raw)

    if isinstance(found, Vector):
        assert sum(found.numerators) == found.denominator <= MAX_UINT64
        assert gcd(*found.numerators) == 1
        for text, numerator in zip(raw, found.numerators, strict=True):
            assert abs(Fraction(text) - Fraction(numerator, found.denominator)) <= Fraction(1, 2 * 10**34)
    else:
        assert isinstance(found, InvalidVector)


@given(st.lists(st.one_of(st.text(max_size=12), st.integers(), st.none(), st.floats(), st.booleans()), max_size=5))
def test_no_answer_raises(raw: list[object]) -> None:
    for found in (parse_payouts(raw), parse_numerators(raw, "1"), parse_numerators(["1", "0"], raw)):
        assert found is None or isinstance(found, (Vector, InvalidVector))


def test_the_decimal_context_has_no_part_in_it() -> None:
    raw = ["0.3333333333333333333333333333333333", "0.6666666666666666666666666666666667", "0.000"]
    with decimal.localcontext() as context:
        context.prec = 2
        context.traps[decimal.Inexact] = True

        assert parse_payouts(raw) == Vector((1, 2, 0), 3)


# ---------------------------------------------------------------------------------------------------- integers


@pytest.mark.parametrize(
    ("numerators", "denominator", "expected"),
    [
        (["1", "0"], "1", Vector((1, 0), 1)),
        (["0", str(10**18)], str(10**18), Vector((0, 1), 1)),
        (["54", "46"], "100", Vector((27, 23), 50)),
        ([1, 1, 1], 3, Vector((1, 1, 1), 3)),
        ([str(2**256 - 1), "0"], str(2**256 - 1), Vector((1, 0), 1)),
        ([str(MAX_UINT64 - 1), "1"], str(MAX_UINT64), Vector((MAX_UINT64 - 1, 1), MAX_UINT64)),
        ([], "0", None),
        ([], 0, None),
        (None, None, None),
        (None, "0", None),
        (None, 0, None),
        ([], None, None),
        (["0", "0"], "0", None),
        ([0, 0], 0, None),
    ],
)
def test_integer_vectors_are_reduced_and_nothing_means_not_resolved(
    numerators: object, denominator: object, expected: Vector | None
) -> None:
    assert parse_numerators(numerators, denominator) == expected


@pytest.mark.parametrize(
    ("numerators", "denominator", "reason"),
    [
        ([], "1", "no numerators"),
        (["1", "0"], "0", "the denominator is 0"),
        (["1", "1"], "1", "sum to 2"),
        (["1", "0"], "2", "sum to 1, the denominator is 2"),
        (["1"], "1", "one outcome only"),
        (["0"] * 256 + ["1"], "1", "257 outcomes"),
        (["-1", "2"], "1", "'-1' is no non-negative integer"),
        (["0.5", "0.5"], "1", "'0.5' is no"),
        (["1e18", "0"], "1e18", "'1e18' is no"),
        (["NaN", "0"], "1", "'NaN' is no"),
        (["", "1"], "1", "'' is no"),
        ([None, "1"], "1", "null"),
        ([True, False], "1", "a boolean"),
        ([1.0, 0], "1", "JSON float"),
        (["1", "0"], None, "null"),
        (None, "1", "not a list"),
        (["1", "0"], True, "a boolean"),
        ([str(MAX_UINT64), "1"], str(MAX_UINT64 + 1), "does not fit UInt64"),
        ([str(2**256 - 1), "1"], str(2**256), "does not fit UInt64"),
    ],
)
def test_integers_that_are_no_vector_are_refused(numerators: object, denominator: object, reason: str) -> None:
    found = parse_numerators(numerators, denominator)

    assert isinstance(found, InvalidVector)
    assert reason in found.reason


@given(st.lists(st.integers(0, 2**256 - 1), min_size=2, max_size=8).filter(any))
def test_integer_vectors_are_exact_in_lowest_terms_or_too_large(numerators: list[int]) -> None:
    found = parse_numerators([str(number) for number in numerators], str(sum(numerators)))

    expected = lowest(numerators)
    if expected.denominator <= MAX_UINT64:
        assert found == expected
    else:
        assert isinstance(found, InvalidVector)


@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=6).filter(any))
def test_both_kinds_of_subgraph_give_the_same_vector(numerators: list[int]) -> None:
    assert parse_payouts(answered(numerators)) == parse_numerators(
        [str(number) for number in numerators], str(sum(numerators))
    )


@pytest.mark.skipif(not DATA.exists(), reason="the shared data is not here")
def test_the_vectors_of_real_markets_are_all_converted() -> None:
    with DATA.open(newline="") as file:
        found = Counter(parse_payouts(json.loads(row["payouts"])) for row in csv.DictReader(file))

    assert found == Counter({Vector((0, 1), 1): 9339, Vector((1, 0), 1): 2584, Vector((1, 1), 2): 4})


def test_common_vectors_are_converted_at_a_million_a_second() -> None:
    vectors = [["0", "1"], ["1", "0"], ["0.5", "0.5"]]
    best = float("inf")
    for _ in range(5):
        started = time.process_time()
        for _ in range(20_000):
            for raw in vectors:
                parse_payouts(raw)
        best = min(best, time.process_time() - started)
    # Half of what was measured, so that a busy machine does not fail it.
    assert 60_000 / best > 500_000
