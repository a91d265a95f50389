"""Several batches in one request: what a subgraph refuses is learned, and a spoilt answer costs nothing that was sound."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import re
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from payout_pipeline.errors import GoldskyPermanentError, GoldskyUnavailableError
from payout_pipeline.goldsky.client import BatchAnswer, GoldskyClient, SnapshotGoneError
from payout_pipeline.subgraph.generate import GeneratedData
from payout_pipeline.subgraph.server import SubgraphConfig, SubgraphServer
from payout_pipeline_tests.goldsky.test_goldsky_client import (  # noqa: F401 - fixtures
    assert_true,
    data,
    fetch_in_tens,
    ids,
    make_client,
    odd_server,
    run,
    server,
    shared_server,
    truth,
)

BATCH = 40  # ten batches of the 400 ids


# --- what is refused for its size ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "size", "words"),
    [
        ({"max_complexity": 100}, 2, "potentially returns"),
        ({"max_body_bytes": 12_000}, 2, "413"),
        ({"max_aliases": 5}, 5, "connection failed"),
        ({"alias_timeout": 3}, 2, "timed out"),
        ({"max_aliases": 1}, 1, "connection failed"),
    ],
)
def test_a13_a_limit_of_the_subgraph_is_learned(
    data: GeneratedData, ids: list[str], truth: dict[str, Any], tmp_path: Path, limit: Any, size: int, words: str  # noqa: F811
) -> None:  # fmt: skip
    with SubgraphServer(SubgraphConfig(conditions=data.conditions, **limit)) as limited:
        client = fetch_in_tens(limited.url, tmp_path, ids, truth)
        aliases = [entry.aliases for entry in limited.log.entries[1:]]
    assert client.batches_per_request == size
    assert words in client.shrunk_because
    assert max(aliases[-(10 // size) :]) == size  # nothing larger once it was learned
    assert client.stats.requests <= 8 + 10 // size


def test_a13_the_learned_size_is_kept_for_the_run(
    data: GeneratedData, ids: list[str], truth: dict[str, Any], tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    async def work(client: GoldskyClient) -> None:
        assert client.info is not None
        pin = client.make_pin(client.info, 0)
        batches = [ids[n : n + BATCH] for n in range(0, len(ids), BATCH)]
        for _ in range(3):
            for batch, answer in zip(batches, await client.fetch_batches(batches, pin), strict=True):
                assert_true(answer, batch, truth)

    with SubgraphServer(SubgraphConfig(conditions=data.conditions, max_complexity=5 * BATCH)) as limited:
        run(limited.url, tmp_path, work, batches_per_request=10)
        assert [entry.aliases for entry in limited.log.entries[2:]] == [5] * 6  # after the probe and the refused one


def test_ids_that_are_too_many_for_one_list_are_asked_in_halves_from_then_on(
    server: SubgraphServer, tmp_path: Path, ids: list[str], truth: dict[str, Any]  # noqa: F811
) -> None:  # fmt: skip
    server.faults.add("statement_timeout", max_ids=100)
    client = fetch_in_tens(server.url, tmp_path, ids, truth, size=200)
    assert [entry.id_count for entry in server.log.entries[1:]] == [400, 200, 100, 100, 100, 100]
    assert client.batches_per_request == 1


@pytest.mark.parametrize("fault", [{"kind": "status"}, {"kind": "drop"}, {"kind": "reset"}])
def test_one_passing_failure_shrinks_nothing(
    server: SubgraphServer, tmp_path: Path, ids: list[str], truth: dict[str, Any], fault: dict[str, Any]  # noqa: F811
) -> None:  # fmt: skip
    server.faults.add(**fault, times=1, operation="conditions")
    client = fetch_in_tens(server.url, tmp_path, ids, truth)
    assert (client.batches_per_request, client.stats.requests) == (10, 3)


# --- spoilt answers -----------------------------------------------------------------------------------------------------

SPOILT = [
    {"kind": "foreign_id"},
    {"kind": "extra_id"},
    {"kind": "duplicate_id"},
    {"kind": "upper_case_id"},
    {"kind": "malformed_id"},
    {"kind": "missing_alias"},
    {"kind": "errors", "message": "Store error: x"},
    {"kind": "body", "form": "truncated"},
]


@pytest.mark.parametrize("fault", SPOILT, ids=lambda fault: fault["kind"])
def test_a13_a_spoilt_answer_is_asked_again_as_a_whole(
    server: SubgraphServer, tmp_path: Path, ids: list[str], truth: dict[str, Any], fault: dict[str, Any]  # noqa: F811
) -> None:  # fmt: skip
    server.faults.add(**fault, alias=6, times=1)
    client = fetch_in_tens(server.url, tmp_path, ids, truth)
    assert [entry.aliases for entry in server.log.entries[1:]] == [10, 10]
    assert client.batches_per_request == 10


@pytest.mark.parametrize("fault", SPOILT, ids=lambda fault: fault["kind"])
def test_a13_a_bad_alias_fails_no_batch_that_would_be_answered_alone(
    server: SubgraphServer, tmp_path: Path, ids: list[str], truth: dict[str, Any], fault: dict[str, Any]  # noqa: F811
) -> None:  # fmt: skip
    server.faults.add(**fault, alias=6)  # whenever there are so many
    fetch_in_tens(server.url, tmp_path, ids, truth)


@pytest.mark.parametrize(
    "message", ["Store error: store error: x", "the result size of 373578 is larger than the allowed limit of 50000"]
)
def test_a_poisoned_id_fails_alone_and_shrinks_nothing(
    server: SubgraphServer, tmp_path: Path, ids: list[str], truth: dict[str, Any], message: str  # noqa: F811
) -> None:  # fmt: skip
    server.faults.add("poison", ids=["0x" + ids[170]], message=message)
    seen: list[GoldskyClient] = []

    async def work(client: GoldskyClient) -> list[BatchAnswer]:
        assert client.info is not None
        seen.append(client)
        batches = [ids[n : n + BATCH] for n in range(0, len(ids), BATCH)]
        return await client.fetch_batches(batches, client.make_pin(client.info, 0))

    answers = run(server.url, tmp_path, work, batches_per_request=10)
    assert [list(answer.failed) for answer in answers if answer.failed] == [[ids[170]]]
    assert {i for a in answers for i in a.found} == {i for i in ids if i in truth and i != ids[170]}
    assert seen[0].batches_per_request == 10
    assert seen[0].stats.requests < 40


def test_an_outage_in_mid_run_is_waited_out_and_shrinks_nothing(
    server: SubgraphServer, tmp_path: Path, ids: list[str], truth: dict[str, Any]  # noqa: F811
) -> None:  # fmt: skip
    server.faults.add("outage", seconds=1.0, times=1, operation="conditions")
    client = fetch_in_tens(server.url, tmp_path, ids, truth, options={"circuit_threshold": 2})
    assert client.batches_per_request == 10


# --- answers of no use at all -------------------------------------------------------------------------------------------


def subgraph(block: int = 100, **odd: Any) -> Any:
    """A handler: no condition exists, the head is ``block``; ``data`` answers the batches instead, ``asked`` counts them."""
    asked = odd.setdefault("asked", [])

    async def handler(request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        meta = {
            "block": {"number": block, "hash": "0x1", "timestamp": 1},
            "deployment": "Qm",
            "hasIndexingErrors": False,
        }
        said: dict[str, Any] = {"_meta": meta}
        if "__schema" in body["query"]:
            said["__schema"] = {"queryType": {"fields": [{"name": "conditions"}]}}
            said["__type"] = {"fields": [{"name": "id"}, {"name": "payouts"}]}
        elif "conditions" in body["query"]:
            asked.append(body)
            if "answer" in odd:
                return odd["answer"](len(asked))  # type: ignore[no-any-return]
            said |= {key: [] for key in (body["variables"] if "b0" in body["variables"] else ["conditions"])}
        return web.json_response({"data": said})

    return handler


def ask(handler: Any, tmp_path: Path, *, batches: int = 10, size: int = 100, lanes: int = 1, **options: Any) -> Any:
    """Batches of unknown ids from an odd server."""

    async def main() -> list[BatchAnswer]:
        async with odd_server(handler) as url, make_client(url, tmp_path, batches_per_request=10, **options) as client:
            pin = client.make_pin(await client.probe(), options.get("margin", 0))
            wanted = [
                [f"{lane:04x}{b:030x}{n:030x}" for n in range(size)] for lane in range(lanes) for b in range(batches)
            ]
            groups = [wanted[n : n + batches] for n in range(0, len(wanted), batches)]
            answers = await asyncio.gather(*[client.fetch_batches(group, pin) for group in groups])
            return [answer for some in answers for answer in some]

    return asyncio.run(asyncio.wait_for(main(), 120))


def reply(document: Any) -> Any:
    return lambda _number: web.json_response(document)


def test_an_answer_that_is_always_of_another_block_costs_only_the_retries(tmp_path: Path) -> None:
    asked: list[Any] = []
    meta = {"block": {"number": 7}, "deployment": "Qm", "hasIndexingErrors": False}
    other = {"data": {"_meta": meta, **{f"b{n}": [] for n in range(10)}, "conditions": []}}
    answers = ask(subgraph(asked=asked, answer=reply(other)), tmp_path)
    assert len(asked) == 4
    assert all(
        len(answer.failed) == 100 and "of block 7" in answer.failed[next(iter(answer.failed))] for answer in answers
    )


def test_answers_of_which_none_is_believed_end_the_run(tmp_path: Path) -> None:
    asked: list[Any] = []
    answers = ask(
        subgraph(asked=asked, answer=reply({"data": {"conditions": 1}, "errors": [{"message": "odd"}]})), tmp_path
    )
    assert len(asked) < 70
    assert all(len(answer.failed) == 100 for answer in answers)
    assert "none could be believed" in next(iter(answers[-1].failed.values()))


def test_a_pinned_block_beyond_a_head_that_went_back_is_given_up(tmp_path: Path) -> None:
    asked: list[Any] = []
    message = (
        "Failed to decode `block.number` value: `subgraph Qm has only indexed up to block number 5 and data for ..`"
    )
    with pytest.raises(SnapshotGoneError, match="only indexed up to"):
        ask(subgraph(asked=asked, answer=reply({"errors": [{"message": message}]})), tmp_path)
    assert len(asked) == 4


def test_an_auth_error_in_mid_run_is_final(tmp_path: Path) -> None:
    asked: list[Any] = []
    answer = reply({"errors": [{"message": "auth error: API key not found"}]})
    with pytest.raises(GoldskyPermanentError, match="GOLDSKY_API_TOKEN"):
        ask(subgraph(asked=asked, answer=answer), tmp_path)
    assert len(asked) == 1


def test_a_bot_guard_among_good_answers_is_retried(tmp_path: Path) -> None:
    guard = web.Response

    def answer(number: int) -> web.Response:
        if number < 3:
            return guard(status=403, text="<!DOCTYPE html><title>Just a moment...</title>", content_type="text/html")
        meta = {"block": {"number": 100}, "deployment": "Qm", "hasIndexingErrors": False}
        return web.json_response({"data": {"_meta": meta, **{f"b{n}": [] for n in range(10)}}})

    answers = ask(subgraph(answer=answer), tmp_path)
    assert not any(answer.failed for answer in answers)


def test_a_bot_guard_at_the_first_request_is_retried_and_blames_no_token(tmp_path: Path) -> None:
    asked: list[int] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(1)
        return web.Response(status=403, text="<html><title>Just a moment...</title></html>", content_type="text/html")

    with pytest.raises(GoldskyUnavailableError, match="bot guard") as caught:
        ask(handler, tmp_path)
    assert len(asked) == 4
    assert "TOKEN" not in str(caught.value)


# --- answers of any size ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def flat_memory(megabytes: int) -> Iterator[None]:
    """The memory of this process, server included, peaks at most so much higher than before."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _peak()
    yield
    assert _peak() - before < megabytes


def _peak() -> float:
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]


def packed(megabytes: int) -> bytes:
    packer = zlib.compressobj(wbits=31)
    parts = [packer.compress(b'{"data":{"conditions":["')]
    parts += [packer.compress(b"a" * 1_000_000) for _ in range(megabytes)]
    return b"".join([*parts, packer.compress(b'"]}}'), packer.flush()])


META = '"_meta":{"block":{"number":100},"deployment":"Qm","hasIndexingErrors":false}'


def raw(body: bytes, **headers: str) -> Any:
    async def parts() -> AsyncIterator[bytes]:  # or else the server's buffers are measured
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536]

    return lambda _number: web.Response(body=parts(), content_type="application/json", headers=headers)


@pytest.mark.slow
def test_a14_an_answer_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path: Path) -> None:
    handler = subgraph(answer=raw(packed(400), **{"Content-Encoding": "gzip"}))
    with flat_memory(250):
        answers = ask(handler, tmp_path, lanes=8, batches=1, size=2, timeout_seconds=60)
    assert "larger than 67,108,864 bytes" in next(iter(answers[0].failed.values()))


@pytest.mark.parametrize("value", ["{}", "[]", "1.5"])
def test_a14_millions_of_values_that_are_no_rows_are_refused_before_they_are_parsed(tmp_path: Path, value: str) -> None:
    body = ('{"data":{' + META + ',"conditions":[' + ",".join([value] * 10_000_000) + "]}}").encode()
    with flat_memory(250):
        answers = ask(subgraph(answer=raw(body)), tmp_path, batches=1, size=2, timeout_seconds=60)
    assert "values, too many" in next(iter(answers[0].failed.values()))


@pytest.mark.parametrize("encoding", ["br", "gzip"])
def test_a3_a_429_whose_body_cannot_be_unpacked_is_waited_out_all_the_same(tmp_path: Path, encoding: str) -> None:
    times: list[float] = []
    meta = {"block": {"number": 100}, "deployment": "Qm", "hasIndexingErrors": False}

    def answer(number: int) -> web.Response:
        times.append(time.monotonic())
        if len(times) == 1:
            headers = {"Content-Encoding": encoding, "Retry-After": "2"}
            return web.Response(status=429, body=b"slow down", headers=headers)
        return web.json_response({"data": {"_meta": meta, **{f"b{n}": [] for n in range(10)}}})

    answers = ask(subgraph(answer=answer), tmp_path)
    assert not any(answer.failed for answer in answers)
    assert times[1] - times[0] >= 2


def test_a14_a_million_rows_that_nobody_asked_for(tmp_path: Path) -> None:
    row = '{"id":"0x%064x","payouts":null}'
    body = ('{"data":{' + META + ',"conditions":[' + ",".join(row % n for n in range(500_000)) + "]}}").encode()
    with flat_memory(400):
        answers = ask(
            subgraph(answer=raw(body)), tmp_path, lanes=4, batches=1, size=1, max_retries=0, timeout_seconds=60
        )
    assert "500,000 rows" in next(iter(answers[0].failed.values()))


def test_a14_nested_brackets_are_a_clear_fault(tmp_path: Path) -> None:
    body = b'{"data":{"conditions":' + b"[" * 200_000 + b"]" * 200_000 + b"}}"
    answers = ask(subgraph(answer=raw(body)), tmp_path, batches=1, size=1)
    assert "nested too deeply" in next(iter(answers[0].failed.values()))


@pytest.mark.slow
def test_a14_a_string_of_fifty_megabytes_is_not_kept(tmp_path: Path) -> None:
    asked = "0" * 64
    body = (
        '{"data":{' + META + ',"conditions":[{"id":"0x' + asked + '","payouts":["' + "1" * 50_000_000 + '"]}]}}'
    ).encode()
    with flat_memory(350):  # the body, its text, the string in it, and the first 8 MiB of the others
        answers = ask(subgraph(answer=raw(body)), tmp_path, lanes=8, batches=1, size=1, timeout_seconds=60)
    assert answers[0].found[asked].payouts == "(a value of 50,000,001 characters; up to 100,000 are kept)"


def test_a10_a_trickle_ends_at_its_deadline(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(100):
            await response.write(b" ")
            await asyncio.sleep(0.1)
        return response

    async def main() -> float:
        async with odd_server(handler) as url, make_client(url, tmp_path, max_retries=0, timeout_seconds=2) as client:
            started = time.monotonic()
            with pytest.raises(Exception, match="GOLDSKY_TIMEOUT_SECONDS"):
                await client.probe()
            return time.monotonic() - started

    assert 1.9 < asyncio.run(main()) < 3
