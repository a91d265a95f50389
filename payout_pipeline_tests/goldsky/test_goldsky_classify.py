"""What an error of the subgraph means, and how long a 429 holds."""

from __future__ import annotations

import asyncio
import math
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payout_pipeline.goldsky.classify import (
    FaultKind,
    capped_wait,
    classify_body,
    classify_errors,
    classify_exception,
    classify_http,
    classify_message,
    is_indexing_error,
    parse_retry_after,
)
from payout_pipeline.scrub import register_secret

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)

MESSAGES = {
    "Store error: database unavailable": FaultKind.TRANSIENT,
    "service is overloaded and can not run the query right now. Please try again in a few minutes": FaultKind.TRANSIENT,
    "Query timed out": FaultKind.TRANSIENT,
    "the chain was reorganized while executing the query": FaultKind.TRANSIENT,
    "Failed to decode `block.number` value: `subgraph QmX has only indexed up to block number 12 and data for block "
    "number 13 is therefore not yet available`": FaultKind.BEHIND,
    "Store error: query execution failed: Subgraph `QmX` has not started syncing yet.": FaultKind.TRANSIENT,
    "panic processing query: x": FaultKind.TRANSIENT,
    "something nobody has seen before": FaultKind.TRANSIENT,
    "Failed to get entities from store: canceling statement due to statement timeout, query = /* x */": FaultKind.SPLIT,
    "Failed to get entities from store: error encoding message to server, query = x": FaultKind.SPLIT,
    "the result size of 373578 is larger than the allowed limit of 50000": FaultKind.SPLIT,
    "Failed to decode `block.number` value: `subgraph QmX only has data starting at block number 5 and data for block "
    "number 4 is therefore not available`": FaultKind.REPIN,
    "Failed to decode `block.hash` value: `no block with that hash found`": FaultKind.REPIN,
    "indexing_error": FaultKind.REPIN,
    "You have surpassed your query allowance": FaultKind.RATE_LIMITED,
    "Too many requests, please slow down": FaultKind.RATE_LIMITED,
    "Invalid value provided for argument `block`: Object({})": FaultKind.PERMANENT,
    "Type `Condition` has no field `payouts`": FaultKind.PERMANENT,
    "The `first` argument must be between 0 and 1000, but is 1001": FaultKind.PERMANENT,
    "Non-list value passed to `_in` filter": FaultKind.PERMANENT,
    "Filter must by an object": FaultKind.PERMANENT,
    "Cannot mix column filters with 'or' operator at the same level.": FaultKind.PERMANENT,
    "Ordering by `payouts` is not supported for type `Condition`": FaultKind.PERMANENT,
    "deployment `nope` does not exist": FaultKind.PERMANENT,
    "Not supported: Mutations are not supported": FaultKind.PERMANENT,
    "query is too expensive": FaultKind.SPLIT,
    "query potentially returns `2000` entities or more": FaultKind.SPLIT,
    "auth error: missing authorization header": FaultKind.PERMANENT,
    "Unauthorized": FaultKind.PERMANENT,
    "Unexpected end of input\nExpected }": FaultKind.PERMANENT,
    'Variable "$a" is never used.': FaultKind.PERMANENT,
    'Cannot query field "payouts" on type "Condition".': FaultKind.PERMANENT,
    "Failed to decode `Bytes` value: `Invalid character 'z' at position 0`": FaultKind.PERMANENT,
}


@pytest.mark.parametrize(("message", "kind"), MESSAGES.items())
def test_each_message_of_graph_node_has_its_class(message: str, kind: FaultKind) -> None:
    assert classify_message(message) is kind
    assert classify_errors([{"message": message}]).kind is kind


def test_the_most_final_of_several_errors_decides() -> None:
    fault = classify_errors([{"message": "Query timed out"}, {"message": "query has a depth of 101"}])
    assert fault.kind is FaultKind.PERMANENT
    assert "query has a depth" in fault.message
    assert "1 more" in fault.message


def test_a_pruned_block_asks_for_another_pin() -> None:
    pruned = "x only has data starting at block number 5 and data for block number 4 is therefore not available"
    assert classify_errors([{"message": pruned}]).history_not_kept
    assert not classify_errors([{"message": "no block with that hash found"}]).history_not_kept


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=50),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["message", "x"]), inner, max_size=2)
        ),
    )
)
def test_errors_of_any_shape_get_a_class_and_one_short_line(errors: object) -> None:
    fault = classify_errors(errors)
    assert fault.kind in FaultKind
    assert "\n" not in fault.message
    assert len(fault.message) < 1500
    assert is_indexing_error(errors) in (True, False)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (301, FaultKind.PERMANENT), (307, FaultKind.PERMANENT), (400, FaultKind.PERMANENT), (401, FaultKind.PERMANENT),
        (403, FaultKind.PERMANENT), (404, FaultKind.PERMANENT), (405, FaultKind.PERMANENT), (408, FaultKind.TRANSIENT),
        (413, FaultKind.SPLIT), (425, FaultKind.TRANSIENT), (429, FaultKind.RATE_LIMITED), (500, FaultKind.TRANSIENT),
        (502, FaultKind.TRANSIENT), (503, FaultKind.TRANSIENT), (504, FaultKind.TRANSIENT),
    ],
)  # fmt: skip
def test_each_status_has_its_class(status: int, kind: FaultKind) -> None:
    fault = classify_http(status, "x" * 500)
    assert fault.kind is kind
    assert str(status) in fault.message


def test_a_bot_guard_may_let_the_next_request_pass() -> None:
    fault = classify_http(403, "<!DOCTYPE html><title>Attention Required!</title>")
    assert fault.kind is FaultKind.TRANSIENT
    assert "TOKEN" not in fault.message


def test_a_token_is_blamed_only_where_there_is_one() -> None:
    for status in (401, 403):
        assert "Check GOLDSKY_API_TOKEN" in classify_http(status, "no", has_token=True).message
        assert "GOLDSKY_API_TOKEN is not set" in classify_http(status, "no", has_token=False).message
    assert "Check GOLDSKY_API_TOKEN" in classify_errors([{"message": "auth error: API key not found"}]).message


@pytest.mark.parametrize("error", [asyncio.TimeoutError(), aiohttp.ServerDisconnectedError(), ConnectionResetError()])
def test_what_may_come_from_the_size_of_a_request_says_so(error: BaseException) -> None:
    assert classify_exception(error, 1).heavy
    assert classify_body(b'{"data":{"condi', None).heavy
    assert classify_errors([{"message": "Query timed out"}]).heavy
    assert not classify_http(503, "").heavy


def test_an_error_shows_200_characters_without_secrets_and_on_one_line() -> None:
    register_secret("canary-token-5af1")
    body = "a\x1b[31mb\nBearer canary-token-5af1 " + "y" * 1000
    message = classify_http(500, body).message
    assert "canary-token-5af1" not in message
    assert "\x1b" not in message
    assert "\n" not in message
    assert len(message) < 300


@pytest.mark.parametrize(
    ("body", "answer", "kind"),
    [
        (b"", None, FaultKind.TRANSIENT),
        (b"<html><title>502</title></html>", None, FaultKind.TRANSIENT),
        (b'{"data":{"condi', None, FaultKind.TRANSIENT),
        (b"{}", {}, FaultKind.PERMANENT),
        (b'{"message":"Not found"}', {"message": "Not found"}, FaultKind.PERMANENT),
        (b'{"message":"Too many requests"}', {"message": "Too many requests"}, FaultKind.RATE_LIMITED),
        (b'{"message":"upstream broke"}', {"message": "upstream broke"}, FaultKind.TRANSIENT),
        (b"[]", [], FaultKind.TRANSIENT),
    ],
)
def test_bodies_that_are_no_graphql_answer_have_their_class(body: bytes, answer: object, kind: FaultKind) -> None:
    assert classify_body(body, answer).kind is kind


def test_a_timeout_names_its_limit_and_a_bad_address_is_final() -> None:
    fault = classify_exception(asyncio.TimeoutError(), 60)
    assert (fault.kind, "GOLDSKY_TIMEOUT_SECONDS" in fault.message) == (FaultKind.TRANSIENT, True)
    assert classify_exception(aiohttp.ServerDisconnectedError(), 60).kind is FaultKind.TRANSIENT
    assert classify_exception(aiohttp.InvalidURL("x"), 60).kind is FaultKind.PERMANENT


# --- Retry-After ----------------------------------------------------------------------------------------------------


@given(st.text(max_size=120) | st.none())
def test_any_retry_after_is_read_as_a_finite_wait_or_as_nothing(value: str | None) -> None:
    seconds = parse_retry_after(value, NOW)
    assert seconds is None or (seconds >= 0 and math.isfinite(seconds))


@given(st.integers(min_value=0, max_value=10**14))
def test_seconds_are_read_exactly(seconds: int) -> None:
    assert parse_retry_after(f" {seconds} ", NOW) == float(seconds)


@given(st.integers(min_value=-(10**8), max_value=10**8))
def test_an_http_date_is_measured_from_now_and_never_negative(offset: int) -> None:
    header = format_datetime(NOW + timedelta(seconds=offset), usegmt=True)
    assert parse_retry_after(header, NOW) == max(0, offset)


@pytest.mark.parametrize(
    "value", ["soon", "", "1e3", "0x10", "1_000", "inf", "nan", "٣", "7 seconds", "Fri, 99 Foo 2026"]
)
def test_nonsense_says_nothing(value: str) -> None:
    assert parse_retry_after(value, NOW) is None


@given(
    st.none() | st.floats(min_value=0, max_value=1e15),
    st.floats(min_value=0.1, max_value=3600),
    st.floats(min_value=0.01, max_value=90_000),
)
def test_a_hold_is_never_longer_than_the_cap_and_never_shorter_than_asked_within_it(
    retry_after: float | None, cap: float, window: float
) -> None:
    seconds, _ = capped_wait(retry_after, cap=cap, window=window)
    assert min(window, cap) <= seconds <= cap
    if retry_after is not None:
        assert seconds >= min(retry_after, cap)


def test_a_capped_wait_names_the_variable() -> None:
    seconds, reason = capped_wait(86_400, cap=60, window=10)
    assert seconds == 60
    assert "86400" in reason
    assert "GOLDSKY_MAX_RETRY_AFTER_SECONDS" in reason
