"""An answer is checked before it is believed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from graphql import build_schema, parse, validate
from hypothesis import given
from hypothesis import strategies as st

from payout_pipeline.goldsky.answers import (
    AnswerFault,
    BatchAnswer,
    JSONNumber,
    RawCondition,
    SubgraphInfo,
    read_exactly,
    read_probe,
)
from payout_pipeline.goldsky.classify import FaultKind
from payout_pipeline.goldsky.pin import Pin
from payout_pipeline.goldsky.queries import HEAD as HEAD_QUERY
from payout_pipeline.goldsky.queries import PROBE, IdsQuery, PageQuery, Query, check_answer, document
from payout_pipeline.payouts import InvalidVector, parse_payouts

PIN = Pin(750, "QmX")


def about(kind: Any, times: bool) -> SubgraphInfo:
    return SubgraphInfo(kind, times, 1_000, None, "Qm", False)


SHARES, NUMERATORS = about("payouts", False), about("numerators", False)
META = {"block": {"number": 750}, "deployment": "QmX", "hasIndexingErrors": False}
IDS = [f"{number:064x}" for number in range(1, 6)]

SDL = """
scalar Bytes scalar BigInt scalar BigDecimal
input Block_height { hash: Bytes number: Int number_gte: Int }
input Condition_filter {
  id: ID id_gt: ID id_lt: ID id_in: [ID!] payouts_not: [BigDecimal!] payoutDenominator_gt: BigInt
}
enum Condition_orderBy { id } enum OrderDirection { asc desc }
type Condition {
  id: ID! payouts: [BigDecimal!] payoutNumerators: [BigInt!]! payoutDenominator: BigInt! resolutionTimestamp: BigInt
}
type _Block_ { hash: Bytes number: Int! timestamp: Int parentHash: Bytes }
type _Meta_ { block: _Block_! deployment: String! hasIndexingErrors: Boolean! }
type Query {
  conditions(skip: Int = 0, first: Int = 100, orderBy: Condition_orderBy, orderDirection: OrderDirection,
             where: Condition_filter, block: Block_height): [Condition!]!
  _meta(block: Block_height): _Meta_
}
"""


def test_every_query_is_valid_where_the_server_validates() -> None:
    schema = build_schema(SDL)
    documents = [PROBE, HEAD_QUERY]
    pages = [PageQuery("", None, BatchAnswer()), PageQuery("0f", "11", BatchAnswer())]
    groups: list[list[Query]] = [[batch(IDS)], [batch(IDS), batch(IDS[:1])], [pages[0]], [pages[1]], [*pages]]
    for fields in (about("payouts", True), about("numerators", False)):
        for pin in (PIN, Pin(3, "QmX", "number_gte")):
            documents += [document(group, fields, pin)[0] for group in groups]
    assert len(documents) == 22
    for text in documents:
        assert validate(schema, parse(text)) == []


def test_a_query_names_its_limit_and_asks_rows_and_meta_of_one_block() -> None:
    text, variables = document([batch(IDS[:2]), batch(IDS[2:])], SHARES, PIN)
    assert ("first: 2" in text, "first: 3" in text) == (True, True)
    assert text.count("block: {number: 750}") == 3
    assert "0x" not in text  # ids are variables
    assert variables == {"b0": ["0x" + i for i in IDS[:2]], "b1": ["0x" + i for i in IDS[2:]]}


@pytest.mark.parametrize("number", [-1, 2**31, True, "7", 1.0])
def test_a_pin_is_a_block_number_or_nothing(number: Any) -> None:
    with pytest.raises(ValueError, match="block number"):
        Pin(number, "QmX")


def batch(ids: list[str]) -> IdsQuery:
    return IdsQuery(ids, BatchAnswer())


def check(rows: Any, meta: Any = META, fields: SubgraphInfo = SHARES, pin: Pin = PIN) -> dict[str, RawCondition]:
    data = read_exactly(json.dumps({"conditions": rows, "_meta": meta}).encode())
    return check_answer(data, [batch(IDS)], pin, fields)[0][0]


def check_page(rows: Any) -> dict[str, RawCondition]:
    page = PageQuery(f"{0:064x}", f"{50:064x}", BatchAnswer(), size=3)
    return check_answer({"conditions": rows, "_meta": META}, [page], PIN, SHARES)[0][0]


def row(number: int, **fields: Any) -> dict[str, Any]:
    return {"id": f"0x{number:064x}", "payouts": ["1", "0"]} | fields


def test_a_good_answer_is_believed() -> None:
    found = check([row(1), row(3, payouts=None), row(4, payouts=[])])
    assert found == {
        IDS[0]: RawCondition(["1", "0"], None, None, None),
        IDS[2]: RawCondition(None, None, None, None),
        IDS[3]: RawCondition([], None, None, None),
    }


def test_numerators_and_times_are_taken_as_they_come() -> None:
    rows = [{"id": "0x" + IDS[1], "payoutNumerators": ["1", "2"], "payoutDenominator": "3", "resolutionTimestamp": "9"}]
    assert check(rows, fields=about("numerators", True)) == {IDS[1]: RawCondition(None, ["1", "2"], "3", "9")}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row(9)], "not asked for"),
        ([row(1), row(1)], "comes twice"),
        ([row(1, id="0X" + IDS[0])], "upper case"),
        ([row(1, id=IDS[0])], "not asked for"),
        ([row(1, id=None)], "not asked for"),
        ([row(1, id=["x"])], "not asked for"),
        ([{"payouts": []}], "no object with an id"),
        (["x"], "no object with an id"),
        ([None], "no object with an id"),
        ([{"id": "0x" + IDS[0]}], "lacks the field"),
        ({"a": 1}, "no list"),
        (None, "no list"),
        ([row(number) for number in (1, 2, 3, 4, 5, 6)], "6 rows for 5 ids"),
    ],
)
def test_an_answer_with_anything_not_asked_for_is_refused_as_a_whole(rows: Any, words: str) -> None:
    with pytest.raises(AnswerFault, match=words) as caught:
        check(rows)
    assert caught.value.fault.kind is FaultKind.REFUSED


@pytest.mark.parametrize(
    ("meta", "kind"),
    [
        (None, FaultKind.REFUSED),
        ({}, FaultKind.REFUSED),
        (META | {"block": {"number": 751}}, FaultKind.REFUSED),
        (META | {"block": {"number": "750"}}, FaultKind.REFUSED),
        (META | {"deployment": "QmY"}, FaultKind.REPIN),
        (META | {"hasIndexingErrors": True}, FaultKind.REPIN),
    ],
)
def test_an_answer_of_another_snapshot_is_not_believed(meta: Any, kind: FaultKind) -> None:
    with pytest.raises(AnswerFault) as caught:
        check([row(1)], meta)
    assert caught.value.fault.kind is kind


def test_without_kept_history_a_later_block_is_accepted_and_an_earlier_one_is_not() -> None:
    pin = Pin(740, "QmX", "number_gte")
    assert len(check([row(1)], pin=pin)) == 1
    with pytest.raises(AnswerFault, match="number_gte 760"):
        check([row(1)], pin=Pin(760, "QmX", "number_gte"))


def test_a_number_is_never_rounded_on_its_way() -> None:
    body = (
        b'{"data":{"conditions":[{"id":"0x%s","payouts":[0.54,0.46000000000000000001]},{"id":"0x%s","payouts":'
        b'["1",18446744073709551617]},{"id":"0x%s","payouts":1e400}],'
        b'"_meta":{"block":{"number":750},"deployment":"QmX","hasIndexingErrors":false}}}'
        % tuple(identifier.encode() for identifier in IDS[:3])
    )  # fmt: skip
    found = check_answer(read_exactly(body)["data"], [batch(IDS)], PIN, SHARES)[0][0]
    assert found[IDS[0]].payouts == ["0.54", "0.46000000000000000001"]
    assert {type(value) for value in found[IDS[0]].payouts} == {JSONNumber}
    assert found[IDS[1]].payouts == ["1", "18446744073709551617"]
    assert [type(value) for value in found[IDS[1]].payouts] == [str, JSONNumber]
    assert found[IDS[2]].payouts == "1e400"


@pytest.mark.parametrize("payouts", ["abc", {"a": "b"}, [None, "1"], [["1"], "0"], [{"x": 0.5}], [True], 7, False])
def test_a_bad_vector_is_kept_raw_and_takes_no_neighbour_along(payouts: Any) -> None:
    found = check([row(1), row(2, payouts=payouts), row(3)])
    assert found[IDS[0]].payouts == found[IDS[2]].payouts == ["1", "0"]
    assert repr(found[IDS[1]].payouts).replace("JSONNumber('0.5')", "0.5") == repr(payouts)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.integers(0, 2**60)
        | st.text(),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["conditions", "_meta", "id", "payouts", "block", "number"]), inner, max_size=4
            )
        ),
        max_leaves=20,
    )
)
def test_no_json_whatever_is_taken_for_an_answer_or_breaks_the_check(data: Any) -> None:
    queries: list[Query] = [batch(IDS), PageQuery("", None, BatchAnswer())]
    for some in ([queries[0]], [queries[1]], queries):
        with pytest.raises(AnswerFault):
            check_answer(data, some, PIN, SHARES)
    with pytest.raises(AnswerFault):
        read_probe(data, "http://x", failed=False)


@pytest.mark.parametrize("long", ["1" * 100_001, ["1" * 60_000] * 2, [["1"] * 60_000], {"a" * 100_001: 1}])
def test_a_value_that_is_too_long_to_keep_makes_its_own_vector_invalid(long: Any) -> None:
    found = check([row(1), row(2, payouts=long), row(3, payouts=["1" * 99_000, "0"])])
    assert "characters; up to 100,000 are kept" in found[IDS[1]].payouts
    assert len(found[IDS[2]].payouts[0]) == 99_000
    assert isinstance(parse_payouts(found[IDS[1]].payouts), InvalidVector)


@pytest.mark.parametrize("odd", ["\ud800", ["1", "\udfff"], {"\ud800": 1}])
def test_a_value_that_cannot_be_stored_as_text_makes_its_own_vector_invalid(odd: Any) -> None:
    found = check([row(1), row(2, payouts=odd)])
    assert found[IDS[1]].payouts == "(a value with half of a surrogate pair, which is no text)"
    assert found[IDS[0]].payouts == ["1", "0"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"b1": None}, "`b1` is no list"),
        ({"b1": [row(3), row(4), row(5), row(9)]}, "4 rows for 3 ids"),
        ({"b1": [row(1)]}, "not asked for"),  # of the other batch
        ({"b0": [row(1), row(1)]}, "comes twice"),
        ({"_meta": META | {"block": {"number": 751}}}, "block 751"),
    ],
)
def test_one_bad_alias_spoils_the_whole_answer(change: dict[str, Any], words: str) -> None:
    queries = [batch(IDS[:2]), batch(IDS[2:])]
    good = {"b0": [row(1), row(2)], "b1": [row(4)], "_meta": META}
    assert check_answer(good, queries, PIN, SHARES)[1] == 750
    with pytest.raises(AnswerFault, match=words):
        check_answer(good | change, queries, PIN, SHARES)
    missing = dict(good)
    del missing["b1"]
    with pytest.raises(AnswerFault, match="`b1` is no list"):
        check_answer(missing, queries, PIN, SHARES)


# --- scans and the probe ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row(2), row(1)], "ascending"),
        ([row(1), row(1)], "ascending"),
        ([row(0)], "ascending"),
        ([row(99)], "beyond the upper end"),
        ([row(1, id="0x" + "A" * 64)], "no condition id"),
        ([row(1, id="0x12")], "no condition id"),
        ([row(1, id=7)], "no condition id"),
        ([row(1), row(2), row(3), row(4)], "at most 3"),
    ],
)
def test_a_page_of_a_scan_is_in_order_and_within_its_range(rows: Any, words: str) -> None:
    with pytest.raises(AnswerFault, match=words):
        check_page(rows)


def test_a_good_page_is_believed() -> None:
    assert list(check_page([row(1), row(2)])) == IDS[:2]


HEAD = {
    "block": {"number": 900, "hash": "0xab", "timestamp": 1_700_000_000},
    "deployment": "QmX",
    "hasIndexingErrors": False,
}


def probe(
    fields: list[str] | None, root: tuple[str, ...] = ("conditions", "_meta"), meta: Any = HEAD
) -> dict[str, Any]:
    condition = None if fields is None else {"kind": "OBJECT", "fields": [{"name": name} for name in fields]}
    return {
        "__schema": {"queryType": {"fields": [{"name": name} for name in root]}},
        "__type": condition,
        "_meta": meta,
    }


def test_the_probe_tells_schema_and_head() -> None:
    info = read_probe(probe(["id", "payouts", "resolutionTimestamp"]), "http://x", failed=False)
    assert (info.schema_kind, info.has_resolution_timestamp) == ("payouts", True)
    assert (info.head_number, info.head_timestamp) == (900, 1_700_000_000)
    assert not info.has_indexing_errors
    numerators = read_probe(probe(["id", "payoutNumerators", "payoutDenominator"]), "http://x", failed=True)
    assert (numerators.schema_kind, numerators.has_resolution_timestamp) == ("numerators", False)
    assert numerators.has_indexing_errors


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (probe(["id", "payouts"], root=("markets",)), "no `conditions`"),
        (probe(["id"]), "neither `payouts`"),
        (probe(["id", "payoutNumerators"]), "neither `payouts`"),
        (probe(None), "no type `Condition`"),
        (probe(["id", "payouts"], meta=None), "no `_meta`"),
        ({}, "introspection"),
    ],
)
def test_what_is_no_subgraph_of_payouts_is_refused_for_good(data: Any, words: str) -> None:
    with pytest.raises(AnswerFault, match=words) as caught:
        read_probe(data, "http://x", failed=False)
    assert caught.value.fault.kind is FaultKind.PERMANENT
