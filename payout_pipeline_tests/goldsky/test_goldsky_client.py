"""The client against the local subgraph and its faults (RELIABILITY A1 to A11, F3, G1, G2), and against odd servers."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from payout_pipeline.errors import GoldskyPermanentError, GoldskyUnavailableError, SnapshotLostError
from payout_pipeline.goldsky.client import BatchAnswer, GoldskyClient, SnapshotGoneError
from payout_pipeline.goldsky.pacing import Pacer
from payout_pipeline.scrub import register_secret
from payout_pipeline.settings import RateLimit, Settings
from payout_pipeline.subgraph.generate import GeneratedData, generate
from payout_pipeline.subgraph.server import SubgraphConfig, SubgraphServer

COUNT = 400
CANARY = "canary-token-71c9e0d2"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> GeneratedData:
    return generate(COUNT, 5, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def ids(data: GeneratedData) -> list[str]:
    return [line.strip().removeprefix("0x") for line in data.ids.read_text().split()]


@pytest.fixture(scope="module")
def truth(data: GeneratedData) -> dict[str, list[str] | None]:
    """Every id that the subgraph knows, with its payouts (None: not resolved)."""
    with data.conditions.open() as file:
        return {
            row["condition_id"].removeprefix("0x"): json.loads(row["payouts"]) if row["payouts"] else None
            for row in csv.DictReader(file)
        }


@pytest.fixture(scope="module")
def shared_server(data: GeneratedData) -> Iterator[SubgraphServer]:
    with SubgraphServer(SubgraphConfig(conditions=data.conditions)) as server:
        yield server


@pytest.fixture
def server(shared_server: SubgraphServer) -> SubgraphServer:
    shared_server.faults.clear()
    shared_server.faults.random.seed(0)
    shared_server.log.clear()
    shared_server.configure(rate_limit=None, latency=0.0, token=None, retry_after="seconds")
    return shared_server


def make_client(url: str, runtime: Path, **options: Any) -> GoldskyClient:
    limit = options.pop("limit", RateLimit(requests=100_000, seconds=1))
    timeout = options.pop("timeout_seconds", 5.0)
    pacer = Pacer.open(
        url, limit, runtime_dir=runtime, request_timeout=timeout, max_retry_after=options.pop("max_retry_after", 2.0)
    )  # fmt: skip
    return GoldskyClient(
        url, pacer, timeout_seconds=timeout, first_pause=options.pop("first_pause", 0.01), circuit_first_pause=0.02,
        **options,
    )  # fmt: skip


def run(
    url: str, runtime: Path, work: Callable[[GoldskyClient], Awaitable[Any]], *, probe: bool = True, **options: Any
) -> Any:
    async def main() -> Any:
        async with make_client(url, runtime, **options) as client:
            if probe:
                await client.probe()
            return await work(client)

    return asyncio.run(asyncio.wait_for(main(), 90))


def fetch(url: str, runtime: Path, ids: list[str], **options: Any) -> BatchAnswer:
    async def work(client: GoldskyClient) -> BatchAnswer:
        assert client.info is not None
        return await client.fetch_batch(ids, client.make_pin(client.info, 0))

    answer: BatchAnswer = run(url, runtime, work, **options)
    assert sorted([*answer.found, *answer.absent, *answer.failed]) == sorted(ids)  # each id once
    return answer


def assert_true(answer: BatchAnswer, ids: list[str], truth: dict[str, list[str] | None]) -> None:
    assert answer.failed == {}
    assert {identifier: raw.payouts for identifier, raw in answer.found.items()} == {
        identifier: truth[identifier] for identifier in ids if identifier in truth
    }
    assert set(answer.absent) == {identifier for identifier in ids if identifier not in truth}


# --- the plain way ------------------------------------------------------------------------------------------------------


def test_one_request_answers_a_batch(
    server: SubgraphServer, tmp_path: Path, ids: list[str], truth: dict[str, Any]
) -> None:
    answer = fetch(server.url, tmp_path, ids)
    assert_true(answer, ids, truth)
    assert (answer.requests, answer.attempts) == (1, 1)
    assert answer.block_number > 0
    assert len(server.log.entries) == 2  # the probe is one request too


def test_the_other_schema_gives_numerators_and_a_denominator(
    data: GeneratedData, tmp_path: Path, ids: list[str], truth: dict[str, Any]
) -> None:
    two = [i for i in ids if truth.get(i) and set(truth[i]) <= {"0", "1"} and len(truth[i]) == 2]
    with SubgraphServer(SubgraphConfig(conditions=data.conditions, schema="numerators")) as server:
        answer = fetch(server.goldsky_url, tmp_path, two)
    assert set(answer.found) == set(two)
    for identifier, raw in answer.found.items():
        assert raw.payouts is None
        assert [value + "" for value in raw.payout_numerators] == truth[identifier]
        assert raw.payout_denominator == "1"


def test_the_pin_is_behind_the_head_and_every_request_asks_it(
    server: SubgraphServer, tmp_path: Path, ids: list[str]
) -> None:
    async def work(client: GoldskyClient) -> int:
        assert client.info is not None
        pin = client.make_pin(client.info, 250)
        assert pin.block_number == client.info.head_number - 250
        assert client.make_pin(client.info, 10**9).block_number == 0
        answers = await asyncio.gather(*[client.fetch_batch(ids[n : n + 50], pin) for n in range(0, 400, 50)])
        assert {answer.block_number for answer in answers} == {pin.block_number}
        return pin.block_number

    number = run(server.url, tmp_path, work)
    assert [entry.block for entry in server.log.entries[1:]] == [{"number": number}] * 8


def test_empty_and_impossible_batches(server: SubgraphServer, tmp_path: Path) -> None:
    assert fetch(server.url, tmp_path, []) == BatchAnswer(duration=pytest.approx(0, abs=1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at most 1000"):
        fetch(server.url, tmp_path, [f"{n:064x}" for n in range(1001)])
    with pytest.raises(ValueError, match="each once"):
        fetch(server.url, tmp_path, ["0" * 64] * 2)


def test_a_client_is_made_from_the_settings(server: SubgraphServer, tmp_path: Path, ids: list[str]) -> None:
    server.configure(token=CANARY)
    settings = Settings(
        condition_ids_file=tmp_path / "ids", runtime_dir=str(tmp_path), goldsky_endpoint=server.url,
        goldsky_api_token=CANARY, goldsky_timeout_seconds=7,
    )  # fmt: skip

    async def main() -> BatchAnswer:
        async with GoldskyClient.from_settings(settings) as client:
            info = await client.probe()
            return await client.fetch_batch(ids[:5], client.make_pin(info, 0))

    assert len(asyncio.run(main()).failed) == 0
    assert list((tmp_path / "rate-limit").iterdir())


# --- several batches in one request -------------------------------------------------------------------------------------

_SELECTION = """ {
    id
    payouts
    resolutionTimestamp
  }
"""
_META = """  _meta(block: {number: 900}) {
    deployment
    block {
      number
    }
    hasIndexingErrors
  }
}"""


def requests_of(tmp_path: Path, work: Callable[[GoldskyClient, Any], Awaitable[Any]], per_request: int) -> list[bytes]:
    """The bodies of what ``work`` asks of a server that answers none of it."""
    bodies: list[bytes] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.read())
        return web.Response(status=404)

    async def main() -> None:
        from payout_pipeline.goldsky.answers import SubgraphInfo

        async with odd_server(handler) as url, make_client(url, tmp_path, batches_per_request=per_request) as client:
            client.info = SubgraphInfo("payouts", True, 900, None, "Qm", False)
            with pytest.raises(GoldskyPermanentError):
                await work(client, client.make_pin(client.info, 0))

    asyncio.run(asyncio.wait_for(main(), 30))
    return bodies


def test_a_request_of_one_batch_is_what_it_was_before_there_were_several(tmp_path: Path) -> None:
    batch = [f"{n:064x}" for n in range(3)]
    query = (
        "query Conditions($ids: [ID!]!) {\n  conditions(first: 3, where: {id_in: $ids}, block: {number: 900})"
        + _SELECTION + _META
    )  # fmt: skip
    expected = {"query": query, "variables": {"ids": ["0x" + i for i in batch]}}
    bodies = requests_of(tmp_path, lambda client, pin: client.fetch_batches([batch, ["f" * 64]], pin), 1)
    assert bodies == [json.dumps(expected, separators=(",", ":")).encode()]
    page = (
        "query Resolved($after: ID!, $upper: ID!) {\n  conditions(\n    first: 1000\n    orderBy: id\n"
        "    orderDirection: asc\n    where: {id_gt: $after, id_lt: $upper, payouts_not: null}\n"
        "    block: {number: 900}\n  )" + _SELECTION + _META
    )
    expected = {"query": page, "variables": {"after": "0x0f", "upper": "0x20"}}
    bodies = requests_of(tmp_path, lambda client, pin: client.scan([("0f", "20")], pin), 1)
    assert bodies == [json.dumps(expected, separators=(",", ":")).encode()]


def test_each_batch_of_a_request_has_its_own_alias_and_first(tmp_path: Path) -> None:
    batches = [["1" * 64, "2" * 64], ["3" * 64]]
    (body,) = requests_of(tmp_path, lambda client, pin: client.fetch_batches(batches, pin), 10)
    query = (
        "query Conditions($b0: [ID!]!, $b1: [ID!]!) {\n"
        "  b0: conditions(first: 2, where: {id_in: $b0}, block: {number: 900})" + _SELECTION
        + "  b1: conditions(first: 1, where: {id_in: $b1}, block: {number: 900})" + _SELECTION + _META
    )  # fmt: skip
    variables = {"b0": ["0x" + "1" * 64, "0x" + "2" * 64], "b1": ["0x" + "3" * 64]}
    assert json.loads(body) == {"query": query, "variables": variables}


def fetch_in_tens(
    url: str, runtime: Path, ids: list[str], truth: dict[str, Any], *, size: int = 40, per_request: int = 10,
    options: dict[str, Any] | None = None,
) -> GoldskyClient:  # fmt: skip
    """All ids in batches of ``size``, and that the answers are the truth; returns the closed client."""
    clients: list[GoldskyClient] = []

    async def work(client: GoldskyClient) -> list[BatchAnswer]:
        assert client.info is not None
        clients.append(client)
        pin, batches = client.make_pin(client.info, 0), [ids[n : n + size] for n in range(0, len(ids), size)]
        answers = await client.fetch_batches(batches, pin)
        for batch, answer in zip(batches, answers, strict=True):
            assert sorted([*answer.found, *answer.absent, *answer.failed]) == sorted(batch)
            assert_true(answer, batch, truth)
        return answers

    run(url, runtime, work, batches_per_request=per_request, **(options or {}))
    return clients[0]


def test_ten_batches_are_one_request(
    server: SubgraphServer, tmp_path: Path, ids: list[str], truth: dict[str, Any]
) -> None:
    client = fetch_in_tens(server.url, tmp_path, ids, truth)
    assert (client.stats.requests, client.batches_per_request, client.shrunk_because) == (2, 10, "")
    assert [entry.aliases for entry in server.log.entries[1:]] == [10]


# --- A1, A7: answers that lie ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["foreign_id", "extra_id", "duplicate_id", "upper_case_id", "malformed_id"])
def test_a7_a_lying_answer_is_refused_and_asked_again(
    server: SubgraphServer, tmp_path: Path, ids: list[str], truth: dict[str, Any], kind: Any
) -> None:
    server.faults.add(kind, times=2, operation="conditions")
    answer = fetch(server.url, tmp_path, ids)
    assert_true(answer, ids, truth)
    assert (answer.requests, answer.attempts) == (3, 3)


def test_a7_an_answer_that_always_lies_is_never_stored(server: SubgraphServer, tmp_path: Path, ids: list[str]) -> None:
    server.faults.add("extra_id", operation="conditions")
    answer = fetch(server.url, tmp_path, ids[:4], max_retries=1)
    assert (answer.found, answer.absent) == ({}, [])
    assert set(answer.failed) == set(ids[:4])
    assert "not asked for" in answer.failed[ids[0]] or "rows for" in answer.failed[ids[0]]


# --- A3: 429 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("retry_after", ["1", "date", "rubbish", "100000", "-5", None])
def test_a3_a_429_is_waited_out_whatever_it_says(
    server: SubgraphServer, tmp_path: Path, ids: list[str], truth: dict[str, Any], retry_after: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    options = {} if retry_after is None else {"retry_after": retry_after}
    server.faults.add("status", status=429, text="slow down", times=1, operation="conditions", **options)
    started = time.monotonic()
    answer = fetch(server.url, tmp_path, ids, limit=RateLimit(requests=100, seconds=0.2), max_retry_after=1.2)
    took = time.monotonic() - started
    assert_true(answer, ids, truth)
    assert answer.attempts == 1  # a 429 is no retry
    if retry_after == "1":
        assert took >= 1.0
    if retry_after == "100000":
        assert 1.2 <= took < 6
        assert "GOLDSKY_MAX_RETRY_AFTER_SECONDS" in caplog.text


def test_a3_nothing_but_429_ends_within_its_budget(server: SubgraphServer, tmp_path: Path, ids: list[str]) -> None:
    server.faults.add("status", status=429, operation="conditions", retry_after="0")
    answer = fetch(
        server.url, tmp_path, ids[:3], limit=RateLimit(requests=100, seconds=0.1), outage_budget_seconds=0.8
    )  # fmt: skip
    assert "429" in answer.failed[ids[0]]


# --- A4, A5, A6: errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a4_server_errors_on_a_fifth_of_the_requests_lose_nothing(
    server: SubgraphServer, tmp_path: Path, ids: list[str], truth: dict[str, Any], status: int
) -> None:
    server.faults.add("status", status=status, probability=0.2)

    async def work(client: GoldskyClient) -> BatchAnswer:
        assert client.info is not None
        pin = client.make_pin(client.info, 0)
        merged = BatchAnswer()
        for answer in await asyncio.gather(*[client.fetch_batch(ids[n : n + 20], pin) for n in range(0, 400, 20)]):
            merged.found |= answer.found
            merged.absent += answer.absent
            merged.failed |= answer.failed
        return merged

    assert_true(run(server.url, tmp_path, work), ids, truth)


@pytest.mark.parametrize("form", ["html", "empty", "truncated", "object", "message", "null_data"])
def test_a5_odd_bodies_are_told_apart(
    server: SubgraphServer, tmp_path: Path, ids: list[str], truth: dict[str, Any], form: str
) -> None:
    server.faults.add("body", form=form, times=2, operation="conditions")
    if form in ("object", "message"):
        with pytest.raises(GoldskyPermanentError, match="GOLDSKY_ENDPOINT"):
            fetch(server.url, tmp_path, ids)
        assert len(server.log.entries) == 2
    else:
        assert_true(fetch(server.url, tmp_path, ids), ids, truth)


@pytest.mark.parametrize(
    "message",
    [
        "Store error: database unavailable",
        "Query timed out",
        "the chain was reorganized while executing the query",
        "an error of tomorrow",
    ],
)
@pytest.mark.parametrize("with_data", [False, True])
def test_a6_data_beside_an_error_is_never_used(
    server: SubgraphServer, tmp_path: Path, ids: list[str], truth: dict[str, Any], message: str, with_data: bool
) -> None:
    server.faults.add("errors", message=message, with_data=with_data, times=2, operation="conditions")
    answer = fetch(server.url, tmp_path, ids)
    assert_true(answer, ids, truth)
    assert answer.attempts == 3


def test_a6_a_statement_timeout_halves_the_batch(
    server: SubgraphServer, tmp_path: Path, ids: list[str], truth: dict[str, Any]
) -> None:
    server.faults.add("statement_timeout", max_ids=100)
    answer = fetch(server.url, tmp_path, ids)
    assert_true(answer, ids, truth)
    assert answer.requests == 6
    assert [entry.id_count for entry in server.log.entries[1:]] == [400, 200, 100, 100, 100, 100]


def test_a6_a_permanent_error_ends_the_run_at_once(server: SubgraphServer, tmp_path: Path, ids: list[str]) -> None:
    server.faults.add("errors", message="Type `Condition` has no field `payouts`", operation="conditions")
    with pytest.raises(GoldskyPermanentError, match="has no field"):
        fetch(server.url, tmp_path, ids)
    assert len(server.log.entries) == 2


def test_a6_an_indexing_error_at_the_pin_asks_for_another_pin(
    server: SubgraphServer, tmp_path: Path, ids: list[str]
) -> None:
    server.faults.add("errors", message="indexing_error", operation="conditions")
    with pytest.raises(SnapshotLostError, match="indexing_error"):
        fetch(server.url, tmp_path, ids)


@pytest.mark.parametrize("options", [{"message": "Store error: store error: x"}, {"status": 500}])
@pytest.mark.parametrize("poisoned", [[17], [0, 1, 399], [200]])
def test_a_poisoned_id_never_costs_its_neighbours(
    server: SubgraphServer, tmp_path: Path, ids: list[str], truth: dict[str, Any], options: Any, poisoned: list[int]
) -> None:
    bad = [ids[number] for number in poisoned]
    server.faults.add("poison", ids=["0x" + identifier for identifier in bad], **options)
    answer = fetch(server.url, tmp_path, ids, max_retries=2)
    assert set(answer.failed) == set(bad)
    assert set(answer.found) == {i for i in ids if i in truth and i not in bad}
    assert answer.requests <= 3 + len(bad) * (2 * 9 + 3)


# --- A8: vectors ------------------------------------------------------------------------------------------------------------


def test_a8_odd_vectors_come_raw_and_take_no_neighbour_along(
    server: SubgraphServer, tmp_path: Path, ids: list[str], truth: dict[str, Any]
) -> None:
    odd = {
        0: ["0.3333333333333333333333333333333333"] * 3, 1: ["1", "1"], 2: ["0", "0"], 3: ["-1", "2"], 4: ["NaN", "1"],
        5: ["1e400", "0"], 6: ["1abc", "0"], 7: ["", "1"], 8: [None, "1"], 9: [str(10**18), "0"],
        10: [str(2**256 - 1), "0"], 11: ["1"], 12: ["0"] * 256 + ["1"], 13: [], 14: None, 15: "text", 16: {"a": 1},
    }  # fmt: skip
    known = [identifier for identifier in ids if identifier in truth]
    fields = {"0x" + known[number]: {"payouts": value} for number, value in odd.items()}
    server.faults.add("raw", fields=fields)
    answer = fetch(server.url, tmp_path, known)
    assert answer.failed == {}
    assert {i: raw.payouts for i, raw in answer.found.items()} == {i: truth[i] for i in known} | {
        known[number]: value for number, value in odd.items()
    }


# --- A9: snapshots ----------------------------------------------------------------------------------------------------------


def test_a9_a_stale_or_failed_head_is_told(server: SubgraphServer, tmp_path: Path) -> None:
    async def work(client: GoldskyClient) -> Any:
        return await client.probe()

    fresh = run(server.url, tmp_path, work)
    server.faults.add("stale_head", seconds=5 * 86_400)
    stale = run(server.url, tmp_path, work)
    assert fresh.head_timestamp - stale.head_timestamp == pytest.approx(5 * 86_400, abs=10)
    server.faults.add("indexing_errors")
    assert run(server.url, tmp_path, work).has_indexing_errors
    server.faults.clear()
    server.faults.add("failed")
    assert run(server.url, tmp_path, work).has_indexing_errors


def test_a9_a_deployment_that_changes_is_never_mixed_in(server: SubgraphServer, tmp_path: Path, ids: list[str]) -> None:
    server.faults.add("deployment", deployment="QmAnother", operation="conditions")
    with pytest.raises(SnapshotGoneError, match="QmAnother") as caught:
        fetch(server.url, tmp_path, ids)
    assert not caught.value.history_not_kept


def test_a_pruned_block_asks_for_a_pin_without_history_and_that_works(
    data: GeneratedData, tmp_path: Path, ids: list[str], truth: dict[str, Any]
) -> None:
    head = 50_000_000

    async def work(client: GoldskyClient) -> BatchAnswer:
        assert client.info is not None
        with pytest.raises(SnapshotGoneError) as caught:
            await client.fetch_batch(ids, client.make_pin(client.info, 1_000_000))
        assert caught.value.history_not_kept
        pin = client.make_pin(client.info, 1_000_000, history_kept=False)
        answer = await client.fetch_batch(ids, pin)
        assert answer.block_number == client.info.head_number >= pin.block_number
        return answer

    with SubgraphServer(SubgraphConfig(conditions=data.conditions)) as probe:
        head = run(probe.url, tmp_path, lambda client: client.probe()).head_number
    with SubgraphServer(SubgraphConfig(conditions=data.conditions, earliest_block=head - 1000)) as server:
        assert_true(run(server.url, tmp_path, work), ids, truth)


# --- A10, A11: silence and outages ---------------------------------------------------------------------------------------


def test_a10_a_deadline_holds_to_the_second(server: SubgraphServer, tmp_path: Path, ids: list[str]) -> None:
    server.faults.add("hang", operation="conditions")
    started = time.monotonic()
    answer = fetch(server.url, tmp_path, ids[:1], timeout_seconds=1.5, max_retries=0)
    took = time.monotonic() - started
    assert "1.5 s" in answer.failed[ids[0]]
    assert 1.5 <= took < 3.5


@pytest.mark.parametrize("kind", ["hang", "drop", "reset"])
def test_a10_silence_and_resets_lose_nothing(
    server: SubgraphServer, tmp_path: Path, ids: list[str], truth: dict[str, Any], kind: Any
) -> None:
    server.faults.add(kind, times=2, operation="conditions")
    assert_true(fetch(server.url, tmp_path, ids, timeout_seconds=1.0), ids, truth)


@pytest.mark.parametrize("mode", [pytest.param("status", marks=pytest.mark.slow), "drop"])
@pytest.mark.slow
def test_a11_an_outage_is_waited_for_together_and_burns_no_retries(
    server: SubgraphServer, tmp_path: Path, ids: list[str], truth: dict[str, Any], mode: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)

    async def work(client: GoldskyClient) -> BatchAnswer:
        assert client.info is not None
        pin = client.make_pin(client.info, 0)
        server.faults.add("outage", seconds=2.5, mode=mode, times=1)
        merged = BatchAnswer()
        for answer in await asyncio.gather(*[client.fetch_batch(ids[n : n + 50], pin) for n in range(0, 400, 50)]):
            merged.found |= answer.found
            merged.absent += answer.absent
            merged.failed |= answer.failed
        assert not client.circuit.is_open
        return merged

    assert_true(run(server.url, tmp_path, work, max_retries=2), ids, truth)
    assert caplog.text.count("The outage is over") >= 1
    failed = [entry for entry in server.log.entries if "outage" in entry.faults]
    assert len(failed) <= 8 + 12  # those in flight, then one probe at a time with growing pauses


def test_a11_an_outage_for_good_ends_within_its_budget_and_the_next_run_completes(
    server: SubgraphServer, tmp_path: Path, ids: list[str], truth: dict[str, Any]
) -> None:
    async def work(client: GoldskyClient) -> list[BatchAnswer]:
        assert client.info is not None
        pin = client.make_pin(client.info, 0)
        server.faults.add("outage", seconds=1e6, mode="status")
        started = time.monotonic()
        first = await asyncio.gather(*[client.fetch_batch(ids[n : n + 50], pin) for n in range(0, 400, 50)])
        assert time.monotonic() - started < 8
        started = time.monotonic()
        later = await client.fetch_batch(ids[:3], pin)
        assert time.monotonic() - started < 0.5  # no second budget
        return [*first, later]

    answers = run(server.url, tmp_path, work, outage_budget_seconds=1.5, max_retries=2)
    assert all(answer.failed and not answer.found for answer in answers)
    assert "GOLDSKY_OUTAGE_BUDGET_SECONDS" in next(iter(answers[0].failed.values()))
    server.faults.clear()
    assert_true(fetch(server.url, tmp_path, ids), ids, truth)


def test_an_outage_is_shown_to_other_processes_while_it_lasts(
    server: SubgraphServer, tmp_path: Path, ids: list[str], truth: dict[str, Any]
) -> None:
    from payout_pipeline.goldsky.pacing import open_store, shared_status

    store = open_store(server.url, RateLimit(requests=1, seconds=1), runtime_dir=tmp_path)

    async def main() -> None:
        async with make_client(server.url, tmp_path) as client:
            pin = client.make_pin(await client.probe(), 0)
            outage = server.faults.add("outage", seconds=1e6, mode="status")
            asking = asyncio.ensure_future(asyncio.gather(*[client.fetch_batch(ids[n::8], pin) for n in range(8)]))
            while not shared_status(store)["outage_seconds"]:
                await asyncio.sleep(0.01)
            assert client.circuit.is_open
            assert "503" in shared_status(store)["outage_message"]
            server.faults.remove(outage)
            assert not any(answer.failed for answer in await asking)
            assert shared_status(store)["outage_seconds"] == 0

    asyncio.run(asyncio.wait_for(main(), 60))


def test_cancelled_requests_in_flight_end_within_moments(
    server: SubgraphServer, tmp_path: Path, ids: list[str]
) -> None:
    server.faults.add("hang", operation="conditions")

    async def main() -> float:
        async with make_client(server.url, tmp_path, timeout_seconds=60) as client:
            pin = client.make_pin(await client.probe(), 0)
            asking = [asyncio.ensure_future(client.fetch_batch(ids[n : n + 5], pin)) for n in range(0, 40, 5)]
            await asyncio.sleep(0.5)
            started = time.monotonic()
            for task in asking:
                task.cancel()
            results = await asyncio.gather(*asking, return_exceptions=True)
            assert {type(result) for result in results} == {asyncio.CancelledError}
            return time.monotonic() - started

    assert asyncio.run(asyncio.wait_for(main(), 30)) < 2


# --- F3: endpoints that are none -------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def odd_server(handler: Callable[[web.Request], Awaitable[web.StreamResponse]], **tls: Any) -> AsyncIterator[str]:
    app = web.Application(client_max_size=2**24)
    app.router.add_route("*", "/{tail:.*}", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, **tls)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield f"{'https' if tls else 'http'}://localhost:{port}/x/gn"
    finally:
        await runner.cleanup()


def answering(status: int, body: str, headers: dict[str, str] | None = None) -> tuple[Any, list[web.Request]]:
    asked: list[web.Request] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(request)
        return web.Response(status=status, text=body, headers=headers)

    return handler, asked


async def probe_of(url: str, tmp_path: Path, **options: Any) -> Any:
    async with make_client(url, tmp_path, **options) as client:
        return await client.probe()


_INTROSPECTION = {"__schema": {"queryType": {"fields": [{"name": "markets"}]}}, "__type": None, "_meta": None}


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (404, "not found", "404"),
        (200, "<!doctype html><title>hello</title>", "web page"),
        (405, "Method Not Allowed", "no GraphQL endpoint"),
        (200, '{"message":"Not found"}', "GOLDSKY_ENDPOINT"),
        (401, "who are you", "GOLDSKY_API_TOKEN"),
        (200, json.dumps({"data": _INTROSPECTION}), "no `conditions`"),
        (200, '{"errors":[{"message":"deployment `nope` does not exist"}]}', "does not exist"),
        (400, '{"error":"GraphQL server error (client error): no"}', "400"),
    ],
)
def test_f3_an_endpoint_that_is_no_subgraph_is_one_probe_and_one_clear_error(
    tmp_path: Path, status: int, body: str, words: str
) -> None:
    handler, asked = answering(status, body)

    async def main() -> None:
        async with odd_server(handler) as url:
            with pytest.raises(GoldskyPermanentError, match=words):
                await probe_of(url, tmp_path)

    asyncio.run(asyncio.wait_for(main(), 30))
    assert len(asked) == 1


def test_a_probe_does_not_wait_for_an_outage(tmp_path: Path) -> None:
    async def main() -> None:
        async with make_client("http://127.0.0.1:9/x", tmp_path, max_retries=1) as client:
            with pytest.raises(GoldskyUnavailableError, match="gave no usable answer"):
                await client.probe()

    asyncio.run(asyncio.wait_for(main(), 20))


# --- G1, G2, private endpoints -----------------------------------------------------------------------------------------------


def test_g1_a_token_is_sent_and_never_shown(
    server: SubgraphServer, tmp_path: Path, ids: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    register_secret(CANARY)
    caplog.set_level(logging.DEBUG)
    server.configure(token=CANARY)
    assert fetch(server.url, tmp_path, ids[:3], token=CANARY).failed == {}
    server.faults.add("status", status=500, echo=True, operation="conditions")
    answer = fetch(server.url, tmp_path, ids[:1], token=CANARY, max_retries=1)
    server.faults.clear()
    server.faults.add("errors", message=f"echo {CANARY}", echo=True, operation="conditions")
    again = fetch(server.url, tmp_path, ids[:1], token=CANARY, max_retries=1)
    server.configure(token="another")
    with pytest.raises(GoldskyPermanentError) as caught:
        run(server.url, tmp_path, lambda client: client.probe(), probe=False, token=CANARY)
    seen = caplog.text + str(answer.failed) + str(again.failed) + str(caught.value)
    assert "***" in seen
    assert CANARY not in seen


def test_g2_ids_travel_as_variables_only(tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        bodies.append(orjson.loads(await request.read()))
        return web.Response(status=404)

    async def main() -> None:
        async with odd_server(handler) as url, make_client(url, tmp_path) as client:
            from payout_pipeline.goldsky.answers import SubgraphInfo

            client.info = SubgraphInfo("payouts", False, 9, None, "Qm", False)
            evil = '"}){id}} #' + "\u2028"
            with pytest.raises(GoldskyPermanentError):
                await client.fetch_batch([evil], client.make_pin(client.info, 0))
            assert bodies[0]["variables"] == {"ids": ["0x" + evil]}
            assert evil not in bodies[0]["query"]

    asyncio.run(asyncio.wait_for(main(), 30))


@pytest.mark.parametrize("location", ["http://127.0.0.1:1/steal", "/elsewhere/gn"])
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_never_followed(tmp_path: Path, status: int, location: str) -> None:
    handler, asked = answering(status, "", {"Location": location})

    async def main() -> None:
        async with odd_server(handler) as url:
            with pytest.raises(GoldskyPermanentError, match="never followed"):
                await probe_of(url, tmp_path, token=CANARY)

    asyncio.run(asyncio.wait_for(main(), 30))
    assert len(asked) == 1


def test_tls_is_verified(tmp_path: Path) -> None:
    import ssl

    import trustme

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    handler, asked = answering(404, "here")

    async def main() -> None:
        async with odd_server(handler, ssl_context=context) as url:
            with pytest.raises(GoldskyPermanentError, match="certificate"):
                await probe_of(url, tmp_path)
            assert asked == []
            with pytest.raises(GoldskyPermanentError, match="404"):
                await probe_of(url, tmp_path, tls=trusting)

    asyncio.run(asyncio.wait_for(main(), 30))


def test_the_proxy_of_the_environment_is_used_and_no_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler, asked = answering(404, "from the proxy")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine subgraph.example login me password netrc-secret-1\n")
    monkeypatch.setenv("NETRC", str(netrc))

    async def main() -> None:
        async with odd_server(handler) as url:
            monkeypatch.setenv("http_proxy", re.sub("/x/gn$", "", url).replace("http://", "http://user:proxy-pass-9@"))
            monkeypatch.delenv("no_proxy", raising=False)
            with pytest.raises(GoldskyPermanentError, match="from the proxy"):
                await probe_of("http://subgraph.example/a/gn", tmp_path)
            monkeypatch.setenv("no_proxy", "subgraph.example")
            with pytest.raises(GoldskyUnavailableError):
                async with make_client("http://subgraph.example/a/gn", tmp_path, max_retries=0) as client:
                    await client.probe()

    asyncio.run(asyncio.wait_for(main(), 30))
    assert [request.host for request in asked] == ["subgraph.example"]
    assert asked[0].headers.get("Proxy-Authorization", "").startswith("Basic ")
    assert "Authorization" not in asked[0].headers


def test_an_https_proxy_is_a_tunnel_that_sees_no_token_and_changes_no_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ssl

    import trustme

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("subgraph.example").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    handler, asked = answering(404, "here")
    heads: list[bytes] = []

    async def main() -> None:
        async with odd_server(handler, ssl_context=context) as url:
            port = int(re.search(r":(\d+)/", url)[1])

            async def pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
                with contextlib.suppress(ConnectionError):
                    while part := await source.read(65536):
                        heads.append(part)
                        sink.write(part)
                        await sink.drain()
                sink.close()

            async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                heads.append(await reader.readuntil(b"\r\n\r\n"))
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await asyncio.gather(pipe(reader, far_writer), pipe(far_reader, writer))

            proxy = await asyncio.start_server(tunnel, "127.0.0.1", 0)
            monkeypatch.setenv("https_proxy", f"http://user:proxy-pass-9@127.0.0.1:{proxy.sockets[0].getsockname()[1]}")
            monkeypatch.delenv("no_proxy", raising=False)
            with pytest.raises(GoldskyPermanentError, match="404"):
                await probe_of("https://subgraph.example/a/gn", tmp_path, token=CANARY, tls=trusting)
            for host, tls in (("another.example", trusting), ("subgraph.example", None)):
                with pytest.raises(GoldskyPermanentError, match="certificate"):
                    await probe_of(f"https://{host}/a/gn", tmp_path, token=CANARY, tls=tls)
            proxy.close()

    asyncio.run(asyncio.wait_for(main(), 30))
    assert [request.headers["Authorization"] for request in asked] == [f"Bearer {CANARY}"]
    assert heads[0].startswith(b"CONNECT subgraph.example:443 ")
    assert b"Proxy-Authorization: Basic" in heads[0]
    assert not any(CANARY.encode() in part for part in heads)


def test_an_endless_answer_is_not_read_to_its_end(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                await response.write(b" " * 65_536)
        return response

    async def main() -> None:
        async with odd_server(handler) as url, make_client(url, tmp_path, max_retries=0) as client:
            client._transport.max_answer_bytes = 1_000_000
            with pytest.raises(GoldskyUnavailableError, match="larger than 1,000,000 bytes"):
                await client.probe()

    asyncio.run(asyncio.wait_for(main(), 30))


# --- scans ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_request", [1, 2, 10])
@pytest.mark.parametrize("cap", [None, 100, 7])
@pytest.mark.parametrize("schema", ["payouts", "numerators"])
def test_a_scan_finds_every_resolved_condition_once(
    data: GeneratedData, tmp_path: Path, truth: dict[str, Any], cap: int | None, schema: Any, per_request: int
) -> None:
    async def work(client: GoldskyClient) -> list[str]:
        assert client.info is not None
        pin = client.make_pin(client.info, 0)
        answers = await client.scan([("", "4"), ("4", "80"), ("80", None)], pin)
        assert {answer.block_number for answer in answers} == {pin.block_number}
        return [identifier for answer in answers for identifier in answer.found]

    with SubgraphServer(SubgraphConfig(conditions=data.conditions, schema=schema)) as server:
        if cap:
            server.faults.add("page_cap", rows=cap)
        found = run(server.url, tmp_path, work, batches_per_request=per_request)
    assert found == sorted(i for i, payouts in truth.items() if payouts is not None)


def test_a_scan_survives_faults(server: SubgraphServer, tmp_path: Path, truth: dict[str, Any]) -> None:
    server.faults.add("status", probability=0.2, operation="conditions")
    server.faults.add("duplicate_id", probability=0.2, operation="conditions")

    async def work(client: GoldskyClient) -> list[str]:
        assert client.info is not None
        client._rows_per_query = 20
        answers = await client.scan([("", "8"), ("8", None)], client.make_pin(client.info, 0))
        return [identifier for answer in answers for identifier in answer.found]

    found = run(server.url, tmp_path, work, max_retries=6, batches_per_request=2)
    assert found == sorted(i for i, payouts in truth.items() if payouts is not None)
