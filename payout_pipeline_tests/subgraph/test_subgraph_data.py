"""The data behind the local subgraph: files read, vectors in all their forms, ids found, demo data generated."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from datetime import datetime, timezone
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payout_pipeline.errors import InputError
from payout_pipeline.payouts import Vector, parse_payouts
from payout_pipeline.subgraph.chain import Chain
from payout_pipeline.subgraph.decimals import decimal_text, integer_vector, normalised
from payout_pipeline.subgraph.generate import expected_vectors, generate
from payout_pipeline.subgraph.store import ConditionStore
from payout_pipeline_tests.running import REPOSITORY

REAL_DATA = REPOSITORY.parent / "shared" / "data"
HEADER = "condition_id,payouts,resolved_at\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("10e-2", "0.1"),
        ("132400e4", "1324000000"),
        ("0e3", "0"),
        ("-0", "0"),
        ("1900.00", "1900"),
        ("0.000000000000000001", "0.000000000000000001"),
        ("123456789012345678901234567890123456789", "123456789012345678901234567890123500000"),
        ("0.33333333333333333333333333333333333333", "0.3333333333333333333333333333333333"),
    ],
)
def test_a_decimal_is_shown_as_graph_node_shows_it(text: str, shown: str) -> None:
    assert normalised(text) == shown


@pytest.mark.parametrize("text", ["", "x", "NaN", "Infinity", "1,5"])
def test_what_is_no_finite_decimal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        normalised(text)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=8).filter(any))
def test_the_integers_behind_rounded_shares_are_found_again(reported: list[int]) -> None:
    total = sum(reported)
    shares = [Fraction(value, total) for value in reported]
    numerators, denominator = integer_vector([decimal_text(share) for share in shares])
    assert [Fraction(value, denominator) for value in numerators] == shares
    assert sum(numerators) == denominator


def test_decimals_that_are_no_rounded_rationals_are_scaled_as_they_are() -> None:
    exact = ["0.123456789012345678", "0.876543210987654322"]
    assert integer_vector(exact) == ([61728394506172839, 438271605493827161], 500000000000000000)
    assert integer_vector(["1", "1"]) == ([1, 1], 2)
    assert integer_vector(["0.1", "0.25"]) == ([2, 5], 7)


def test_a_file_is_served_with_its_times_as_blocks(tmp_path: Path) -> None:
    chain = Chain(head_number=100_000_000)
    when = chain.timestamp(50_000_001) - 1
    conditions, unresolved = tmp_path / "conditions.csv", tmp_path / "unresolved.txt"
    stamp = datetime.fromtimestamp(when, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
    conditions.write_text(
        HEADER
        + f'{"A" * 64},"[""0.5"",""0.50""]",{stamp}Z\n'
        + f'0x{"b" * 64},"[""1"",""0""]",{stamp}+00:00\n'
        + f'{"c" * 64},"[""1"",""0""]",\n'
        + f"{'d' * 64},,\n\n"
        + f'{"e" * 64},"null",\n'
    )
    unresolved.write_text(f"# known\n\n{'d' * 64}\n0X{'F' * 64}\n")
    store = ConditionStore.from_files(conditions, unresolved, chain)
    assert store.ids == ["0x" + letter * 64 for letter in "abcdef"]
    rows = [store.rows[identity] for identity in store.ids]
    assert [row.payouts for row in rows] == [("0.5", "0.5"), ("1", "0"), ("1", "0"), None, None, None]
    assert [row.resolved_block for row in rows[:2]] == [50_000_001, 50_000_001]
    assert all(row.created_block < row.resolved_block < 3 for row in rows[2:])


def test_a_condition_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    conditions = tmp_path / "conditions.csv"
    conditions.write_text(HEADER + f"{'a' * 64},,\n0x{'A' * 64},,\n")
    with pytest.raises(InputError, match="aaaa is listed more than once"):
        ConditionStore.from_files(conditions, None, Chain(10))


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        ConditionStore.from_files(tmp_path / "nothing.csv", None, Chain(10))


@given(st.integers(0, 2**31 - 2))
def test_a_block_is_found_by_its_time(number: int) -> None:
    chain = Chain(head_number=10)
    assert chain.number_at(chain.timestamp(number)) == chain.number_at(chain.timestamp(number) - 1) == number


def test_generated_data_has_the_shares_and_shapes_that_are_promised(tmp_path: Path) -> None:
    data = generate(20_000, 1, tmp_path)
    ids = data.ids.read_text().split()
    with data.conditions.open(newline="") as file:
        rows = list(csv.DictReader(file))
    known = {row["condition_id"] for row in rows}
    assert (len(ids), len(set(ids)), len(rows), len(known)) == (20_000, 20_000, 19_600, 19_600)
    assert all(len(identity) == 64 and set(identity) <= set("0123456789abcdef") for identity in ids)
    assert known < set(ids)
    assert (data.resolved, data.unresolved, data.absent) == (15_000, 4_600, 400)
    assert Counter(bool(row["payouts"]) for row in rows) == {True: 15_000, False: 4_600}
    shapes = Counter(row["payouts"] for row in rows if row["payouts"])
    assert shapes['["0","1"]'] > shapes['["1","0"]'] > 2_000
    third = "0." + "3" * 34
    for rare in ('["0.5","0.5"]', '["0.54","0.46"]', f'["{third}","{third}","{third}"]', '["0","1","0"]'):
        assert shapes[rare] >= 1, rare
    # The order of the ids says nothing about their outcome.
    resolved = {row["condition_id"] for row in rows if row["payouts"]}
    assert 700 < sum(identity in resolved for identity in ids[:1_000]) < 800
    assert 9_000 < sum(left < right for left, right in pairwise(ids)) < 11_000


def test_generated_data_repeats_with_its_seed(tmp_path: Path) -> None:
    def digests(seed: int, name: str) -> list[str]:
        data = generate(1_000, seed, tmp_path / name)
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in (data.ids, data.conditions)]

    assert digests(5, "a") == digests(5, "b")
    assert digests(5, "a") != digests(6, "c")


def test_the_expected_vectors_are_what_the_decimals_mean(tmp_path: Path) -> None:
    data = generate(2_000, 3, tmp_path)
    with data.conditions.open(newline="") as file:
        texts = {row["condition_id"]: row["payouts"] for row in csv.DictReader(file) if row["payouts"]}
    expected = {
        identity: Vector(numerators, total) for identity, numerators, total in expected_vectors(data.conditions)
    }
    assert expected == {identity: parse_payouts(json.loads(text)) for identity, text in texts.items()}


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_handful_of_ids_can_be_generated(tmp_path: Path, count: int) -> None:
    data = generate(count, 0, tmp_path)
    assert len(set(data.ids.read_text().split())) == data.resolved + data.unresolved + data.absent == count
    assert data.resolved >= 1


@pytest.mark.skipif(not REAL_DATA.exists(), reason="the real data is not here")
def test_the_real_outcomes_are_all_served() -> None:
    chain = Chain.until_now()
    path = REAL_DATA / "resolutions.csv"
    store = ConditionStore.from_files(path, None, chain)
    assert len(store.ids) == 11_927
    assert all(1 < row.resolved_block < chain.head() - 250 for row in store.rows.values())
    with path.open(newline="") as file:
        texts = {row["condition_id"]: tuple(json.loads(row["payouts"])) for row in csv.DictReader(file)}
    assert {identity[2:]: row.payouts for identity, row in store.rows.items()} == texts
