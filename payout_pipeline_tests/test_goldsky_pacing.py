"""The shared budget of requests, as the server counts it."""

from __future__ import annotations

import asyncio
import heapq
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payout_pipeline.errors import StorageError
from payout_pipeline.goldsky import pacing
from payout_pipeline.goldsky.pacing import (
    Pacer,
    Rules,
    SharedState,
    SQLiteStore,
    StoppedError,
    admit,
    budget_key,
    finish,
    hold,
    look_for_the_dead,
    owner_is_dead,
    release_the_dead,
    shared_status,
)
from payout_pipeline.settings import RateLimit
from payout_pipeline.subgraph.generate import GeneratedData, generate
from payout_pipeline.subgraph.log import max_in_window
from payout_pipeline.subgraph.server import SubgraphConfig, SubgraphServer


def limit(requests: int, seconds: float) -> RateLimit:
    return RateLimit(requests=requests, seconds=seconds)


# --- the rules, on a clock of our own -------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), requests=st.integers(1, 12), workers=st.integers(1, 20))
def test_whenever_the_server_counts_a_request_no_window_has_too_many(
    tmp_path_factory: pytest.TempPathFactory, seed: int, requests: int, workers: int
) -> None:
    """Requests take from 0 to 3 windows, and the server counts each at any moment between sending and answer."""
    dice, window = random.Random(seed), 1000
    clock = 1_000_000
    path = tmp_path_factory.mktemp("rate") / "rate.sqlite"
    rules = Rules.of(limit(requests, window / 1000))
    store = SQLiteStore(path, "k", rules, clock=lambda: clock)
    counted: list[int] = []
    events = [(clock + dice.randrange(50), number, "ask", "") for number in range(workers)]
    heapq.heapify(events)
    serial = workers
    while events and len(counted) < requests * 6:
        clock, worker, what, name = heapq.heappop(events)
        serial += 1
        if what == "ask":
            name = f"m:{worker}:s:{serial}"
            with store.transaction() as tx:
                admission = admit(tx, rules, name, lease_ms=3_100)
            if admission.granted:
                ends = clock + dice.choice((0, dice.randrange(30), dice.randrange(900), dice.randrange(3_000)))
                counted.append(dice.randint(clock, ends))
                heapq.heappush(events, (ends, worker, "end", name))
            else:
                heapq.heappush(events, (clock + max(1, round(admission.wait_seconds * 1000)), worker, "ask", ""))
        else:
            with store.transaction() as tx:
                finish(tx, name, answered=True, solo=False)
            heapq.heappush(events, (clock, worker, "ask", ""))
    store.close()
    assert len(counted) >= requests
    assert max_in_window(counted, window + 1) <= requests  # closed at both ends


def _store(tmp_path: Path, requests: int, seconds: float, clock: list[int]) -> tuple[SQLiteStore, Rules]:
    rules = Rules.of(limit(requests, seconds))
    return SQLiteStore(tmp_path / "rate.sqlite", "k", rules, clock=lambda: clock[0]), rules


def test_the_whole_window_is_used_in_a_burst_once_it_is_known(tmp_path: Path) -> None:
    clock = [10_000_000]
    store, rules = _store(tmp_path, 50, 10, clock)

    def burst() -> int:
        granted = 0
        while True:
            with store.transaction() as tx:
                admission = admit(tx, rules, f"r{clock[0]}-{granted}", 1000)
                if not admission.granted:
                    assert admission.reason in ("window", "pace")
                    if admission.reason == "window":
                        return granted
                    clock[0] += max(1, round(admission.wait_seconds * 1000))
                    continue
                finish(tx, f"r{clock[0]}-{granted}", answered=True)
                granted += 1

    started = clock[0]
    assert burst() == 50
    assert clock[0] - started <= 50 * 26  # careful: 25 ms apart, because nothing was known of the server's window
    clock[0] = started + 12_100
    before = clock[0]
    assert burst() == 50
    assert clock[0] == before  # all at once
    clock[0] += 20_041  # nothing is known of so long a pause
    before = clock[0]
    assert burst() == 50
    assert clock[0] > before + 49 * 25


def test_a_refused_request_learns_when_the_next_place_is_free_and_not_later(tmp_path: Path) -> None:
    clock = [10_000_000]
    store, rules = _store(tmp_path, 2, 1, clock)
    with store.transaction() as tx:
        assert admit(tx, rules, "a", 1000).granted
        clock[0] += 200
        assert admit(tx, rules, "b", 1000).granted
        clock[0] += 200
        finish(tx, "a", answered=True)
        finish(tx, "b", answered=True)
    with store.transaction() as tx:
        admission = admit(tx, rules, "c", 1000)
        assert (admission.granted, admission.reason) == (False, "window")
        assert admission.wait_seconds == pytest.approx(1.021, abs=0.002)
    clock[0] += round(admission.wait_seconds * 1000)
    with store.transaction() as tx:
        assert admit(tx, rules, "c", 1000).granted


def test_a_request_in_flight_keeps_its_place_however_long_it_takes(tmp_path: Path) -> None:
    clock = [10_000_000]
    store, rules = _store(tmp_path, 1, 1, clock)
    with store.transaction() as tx:
        assert admit(tx, rules, "slow", 60_000).granted
    clock[0] += 30_000
    with store.transaction() as tx:
        admission = admit(tx, rules, "next", 60_000)
        assert not admission.granted
        assert admission.wait_seconds <= 1.1  # it may end at any moment: look again one window later


def test_after_a_429_one_request_goes_alone_and_the_others_follow_its_answer(tmp_path: Path) -> None:
    clock = [10_000_000]
    store, rules = _store(tmp_path, 50, 10, clock)
    with store.transaction() as tx:
        assert hold(tx, 12.0, "asked to") == 1
        assert admit(tx, rules, "early", 5000).reason == "asked to"
    clock[0] += 12_001
    with store.transaction() as tx:
        first = admit(tx, rules, "first", 5000)
        assert (first.granted, first.solo) == (True, True)
        clock[0] += 500
        assert not admit(tx, rules, "second", 5000).granted
        finish(tx, "first", answered=True)
        assert admit(tx, rules, "second", 5000).granted
        clock[0] += 1
        assert admit(tx, rules, "third", 5000).reason == "pace"


def test_a_lonely_request_that_dies_hands_its_part_to_the_next(tmp_path: Path) -> None:
    clock = [10_000_000]
    store, rules = _store(tmp_path, 50, 10, clock)
    with store.transaction() as tx:
        hold(tx, 1.0, "asked to")
    clock[0] += 1_002
    with store.transaction() as tx:
        assert admit(tx, rules, "first", 5000).solo
        finish(tx, "first", answered=False)
        clock[0] += 100
        assert admit(tx, rules, "second", 5000).solo


def test_after_a_restart_of_the_machine_all_that_was_sent_counts_as_sent_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [900_000_000]
    store, rules = _store(tmp_path, 2, 10, clock)
    with store.transaction() as tx:
        admit(tx, rules, "a", 1000)
        clock[0] += 2_000
        admit(tx, rules, "b", 1000)
        tx.restamp("a", clock[0])
        tx.restamp("b", clock[0])
    store.close()
    monkeypatch.setattr(pacing, "boot_id", lambda: "another")
    clock[0] = 5_000  # the monotonic clock began again
    with store.transaction() as tx:
        assert admit(tx, rules, "c", 1000).reason == "window"
    clock[0] += 10_021
    with store.transaction() as tx:
        assert admit(tx, rules, "c", 1000).granted


def test_state_of_another_version_or_shape_is_read_as_far_as_it_fits() -> None:
    assert SharedState.from_json('{"hold_until": 5, "unknown": null, "hold_reason": 7}') == SharedState(hold_until=5)
    for broken in (None, "", "{", "[]", "null", '{"hold_until": "x"}'):
        assert SharedState.from_json(broken) == SharedState()
    full = SharedState(hold_until=3, hold_reason="r", solo_pending=True, outage_message="m")
    assert SharedState.from_json(full.to_json()) == full


def test_endpoints_have_budgets_of_their_own() -> None:
    keys = {budget_key(url) for url in ("http://a/x/gn", "http://a/y/gn", "http://b/x/gn", "http://a:81/x/gn")}
    assert len(keys) == 4
    assert budget_key("https://A/x/gn/") == budget_key("https://a:443/x/gn")


def test_a_runtime_directory_in_an_object_store_leaves_the_file_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = pacing.open_store("http://x/y", limit(5, 1), runtime_dir="s3://bucket/runtime")
    with store.transaction() as tx:
        tx.put("a", tx.now(), 100)
    store.close()
    assert [file.name for file in tmp_path.rglob("goldsky-rate.sqlite")] == ["goldsky-rate.sqlite"]
    (directory,) = tmp_path.iterdir()
    assert directory.stat().st_mode & 0o777 == 0o700
    directory.rename(tmp_path / "away")
    directory.symlink_to(tmp_path / "away")
    for make in (True, False):
        with pytest.raises(StorageError, match="belongs to somebody else"):
            pacing.limiter_file("s3://bucket/runtime", make=make)
    assert pacing.open_store("http://x/y", limit(5, 1), runtime_dir=f"file://{tmp_path}/a%20b").where == str(
        tmp_path / "a b" / "goldsky-rate.sqlite"
    )


# --- files and processes --------------------------------------------------------------------------------------------

_HOLD_PLACES = """
import asyncio, os, sys
from payout_pipeline.goldsky.pacing import Pacer
from payout_pipeline.settings import RateLimit
async def main():
    pacer = Pacer.open("http://x/y", RateLimit(requests=3, seconds=1), runtime_dir=sys.argv[1], request_timeout=60)
    slots = [pacer.slot() for _ in range(3)]
    for slot in slots:
        await slot.__aenter__()
    print("holding", flush=True)
    await asyncio.sleep(100)
asyncio.run(main())
"""


def test_of_several_workers_that_wait_for_the_window_the_first_goes_first(tmp_path: Path) -> None:
    async def run() -> list[int]:
        order: list[int] = []

        async def worker(pacer: Pacer, number: int) -> None:
            for _ in range(6):
                async with pacer.slot():
                    order.append(number)

        pacers = [
            Pacer(
                SQLiteStore(tmp_path / "rate.sqlite", "k", Rules.of(limit(4, 0.4))), limit(4, 0.4), request_timeout=1,
                precedence=number,
            )
            for number in (2, 1, 0)
        ]  # fmt: skip
        await asyncio.gather(*(worker(pacer, 2 - n) for n, pacer in enumerate(pacers)))
        return order

    order = asyncio.run(run())
    ends = [max(n for n, who in enumerate(order) if who == number) for number in (0, 1, 2)]
    assert ends == sorted(ends), order


def test_the_places_of_a_killed_process_are_held_for_one_window_and_not_for_its_timeout(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", _HOLD_PLACES, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "holding\n"
    pacer = Pacer.open("http://x/y", limit(3, 1), runtime_dir=tmp_path, request_timeout=60)
    status = shared_status(pacer.store)
    assert (status["used"], status["in_flight"]) == (3, 3)
    child.kill()
    killed = time.monotonic()
    child.wait()

    async def ask() -> None:
        async with pacer.slot():
            pass

    asyncio.run(asyncio.wait_for(ask(), 10))
    waited = time.monotonic() - killed
    assert pacer.stats.released_dead == 3
    assert 1.0 <= waited < 4.0


def test_who_looks_before_anything_else_stamps_the_places_of_the_dead_with_that_moment(tmp_path: Path) -> None:
    def looked() -> int:
        return look_for_the_dead("http://x/y", limit(3, 1), runtime_dir=tmp_path)

    assert looked() == 0
    assert not list(tmp_path.iterdir())  # nothing was sent from here, and nothing is made
    child = subprocess.Popen([sys.executable, "-c", _HOLD_PLACES, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "holding\n"
    assert looked() == 0  # it lives
    child.kill()
    child.wait()
    assert looked() == 3
    stamped = time.monotonic()
    assert looked() == 0
    pacer = Pacer.open("http://x/y", limit(3, 1), runtime_dir=tmp_path, request_timeout=60)
    status = shared_status(pacer.store)
    assert (status["used"], status["in_flight"]) == (3, 0)
    time.sleep(0.6)  # what a command takes until its first request

    async def ask() -> None:
        async with pacer.slot():
            pass

    asyncio.run(asyncio.wait_for(ask(), 10))
    assert 1.0 <= time.monotonic() - stamped < 1.5  # one window from the look on, not from the first request on
    assert pacer.stats.released_dead == 0


def test_who_looks_first_leaves_a_busy_file_to_those_who_wait(tmp_path: Path) -> None:
    pacer = Pacer.open("http://x/y", limit(3, 1), runtime_dir=tmp_path, request_timeout=60)
    with pacer.store.transaction():
        assert look_for_the_dead("http://x/y", limit(3, 1), runtime_dir=tmp_path) == 0


def test_a_living_process_is_not_taken_for_dead(tmp_path: Path) -> None:
    name = f"{pacing._owner(os.getpid())}:1-x"
    assert not owner_is_dead(name)
    machine, pid, start = name.split(":")[:3]
    assert owner_is_dead(f"{machine}:{pid}:{int(start or 0) + 1}:1-x")  # the number was given to another process
    assert not owner_is_dead(f"{'0' * 12}:{pid}:{start}:1-x")  # another machine's processes cannot be seen from here
    assert not owner_is_dead("anything")
    store = SQLiteStore(tmp_path / "rate.sqlite", "k", Rules.of(limit(5, 1)))
    with store.transaction() as tx:
        tx.put(name, tx.now(), 5_000)
        assert release_the_dead(tx) == 0


def test_a_damaged_file_is_set_aside_said_and_followed_by_a_pause(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "goldsky-rate.sqlite"
    path.write_bytes(b"this is no database" * 500)
    pacer = Pacer.open("http://x/y", limit(5, 0.5), runtime_dir=tmp_path, request_timeout=5)

    async def ask() -> None:
        async with pacer.slot():
            pass

    started = time.monotonic()
    asyncio.run(asyncio.wait_for(ask(), 10))
    assert time.monotonic() - started >= 0.5
    aside = list(tmp_path.glob("goldsky-rate.sqlite.corrupt-*"))
    assert [file.read_bytes()[:7] for file in aside] == [b"this is"]
    assert "damaged" in caplog.text
    assert sqlite3.connect(path).execute("PRAGMA quick_check").fetchone() == ("ok",)


def test_damage_in_the_middle_of_a_run_is_survived(tmp_path: Path) -> None:
    path = tmp_path / "goldsky-rate.sqlite"
    pacer = Pacer.open("http://x/y", limit(100, 0.2), runtime_dir=tmp_path, request_timeout=5)

    async def ask(times: int) -> None:
        for _ in range(times):
            async with pacer.slot():
                pass

    async def main() -> None:
        await ask(5)
        for file in tmp_path.glob("goldsky-rate.sqlite-*"):
            file.unlink()
        path.unlink()
        path.write_bytes(os.urandom(8192))
        await asyncio.sleep(0.3)
        await ask(5)

    asyncio.run(asyncio.wait_for(main(), 20))
    assert sqlite3.connect(path).execute("PRAGMA quick_check").fetchone() == ("ok",)


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    pacer = Pacer.open("http://x/y", limit(5, 1), runtime_dir=tmp_path / "file" / "below", request_timeout=5)

    async def ask() -> None:
        async with pacer.slot():
            pass

    with pytest.raises(StorageError, match="goldsky-rate"):
        asyncio.run(ask())


def test_a_locked_file_is_waited_for_without_holding_up_the_event_loop(tmp_path: Path) -> None:
    pacer = Pacer.open("http://x/y", limit(50, 1), runtime_dir=tmp_path, request_timeout=5)
    ticks = 0

    async def main() -> None:
        nonlocal ticks
        async with pacer.slot():
            pass
        other = sqlite3.connect(tmp_path / "goldsky-rate.sqlite", isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        asking = asyncio.ensure_future(pacer.slot().__aenter__())
        deadline = time.monotonic() + 0.6
        while time.monotonic() < deadline:
            await asyncio.sleep(0.01)
            ticks += 1
        assert not asking.done()
        other.execute("ROLLBACK")
        await asyncio.wait_for(asking, 5)

    asyncio.run(main())
    assert ticks >= 5


def test_a_forked_child_opens_the_file_for_itself(tmp_path: Path) -> None:
    script = """
import asyncio, os, sys
from payout_pipeline.goldsky.pacing import Pacer, shared_status
from payout_pipeline.settings import RateLimit
pacer = Pacer.open("http://x/y", RateLimit(requests=50, seconds=60), runtime_dir=sys.argv[1], request_timeout=5)
async def ask():
    for _ in range(3):
        async with pacer.slot():
            pass
asyncio.run(ask())
child = os.fork()
asyncio.run(ask())
if child:
    assert os.waitpid(child, 0)[1] == 0
    print(shared_status(pacer.store)["used"])
else:
    os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.returncode) == ("9\n", 0), done.stderr


def test_a_stop_ends_every_wait_at_once(tmp_path: Path) -> None:
    async def main() -> float:
        stop = asyncio.Event()
        pacer = Pacer.open("http://x/y", limit(1, 60), runtime_dir=tmp_path, request_timeout=5, stop=stop)
        async with pacer.slot():
            pass

        async def ask() -> None:
            async with pacer.slot():
                raise AssertionError("there was no place")

        waiting = [asyncio.ensure_future(ask()) for _ in range(20)]
        await asyncio.sleep(0.1)
        started = time.monotonic()
        stop.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(result) for result in results} == {StoppedError}
        return time.monotonic() - started

    assert asyncio.run(main()) < 1.0


def test_a_cancelled_waiter_leaves_nothing_behind(tmp_path: Path) -> None:
    async def main() -> None:
        pacer = Pacer.open("http://x/y", limit(1, 0.3), runtime_dir=tmp_path, request_timeout=5)
        async with pacer.slot():
            pass
        waiting = asyncio.ensure_future(pacer.slot().__aenter__())
        await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        status = shared_status(pacer.store)
        assert (status["used"], status["in_flight"]) == (1, 0)
        async with pacer.slot():
            pass

    asyncio.run(asyncio.wait_for(main(), 10))


def test_waits_are_told_and_counted(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    pacer = Pacer.open(
        "http://x/y", limit(1, 0.5), runtime_dir=tmp_path, request_timeout=5, on_wait=lambda *wait: told.append(wait)
    )  # fmt: skip

    async def main() -> None:
        for _ in range(2):
            async with pacer.slot():
                pass

    asyncio.run(main())
    assert told[0][0] == "window"
    assert 0.4 < told[0][1] < 0.6
    assert pacer.stats.waits == 1
    assert pacer.stats.requests == 2


# --- against a server that counts -----------------------------------------------------------------------------------

_WORKER = """
import asyncio, json, logging, sys, time
from payout_pipeline.goldsky.client import GoldskyClient
from payout_pipeline.goldsky.pacing import Pacer
from payout_pipeline.settings import RateLimit
url, runtime, requests, seconds, batches, concurrent = sys.argv[1:]
ids = [f"{number:064x}" for number in range(5)]
async def main():
    limit = RateLimit(requests=int(requests), seconds=float(seconds))
    pacer = Pacer.open(url, limit, runtime_dir=runtime, request_timeout=10)
    async with GoldskyClient(url, pacer, timeout_seconds=10) as client:
        pin = client.make_pin(await client.probe(), 0)
        todo = iter(range(int(batches)))
        async def worker():
            for _ in todo:
                answer = await client.fetch_batch(ids, pin)
                assert not answer.failed, answer.failed
        await asyncio.gather(*[worker() for _ in range(int(concurrent))])
    print(json.dumps({"requests": pacer.stats.requests, "answers_429": pacer.stats.answers_429}))
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def few_conditions(tmp_path_factory: pytest.TempPathFactory) -> GeneratedData:
    return generate(50, 1, tmp_path_factory.mktemp("conditions"))


@contextmanager
def limited_server(data: GeneratedData, rate: str, **options: object) -> Iterator[SubgraphServer]:
    config = SubgraphConfig(conditions=data.conditions, rate_limit=rate, latency=0.05, jitter=0.04, **options)  # type: ignore[arg-type]
    with SubgraphServer(config) as server:
        yield server


def run_workers(url: str, runtime: Path, rate: tuple[int, float], processes: int, batches: int) -> list[dict[str, int]]:
    command = [sys.executable, "-c", _WORKER, url, str(runtime), str(rate[0]), str(rate[1]), str(batches), "8"]
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    results = []
    for child in children:
        out, err = child.communicate(timeout=150)
        assert child.returncode == 0, err[-3000:]
        results.append(json.loads(out.splitlines()[-1]))
    return results


def test_four_processes_stay_within_the_limit_as_the_server_counts_it(
    few_conditions: GeneratedData, tmp_path: Path
) -> None:
    with limited_server(few_conditions, "20/1s") as server:
        run_workers(server.url, tmp_path, (20, 1), processes=4, batches=24)
        entries = server.log.entries
        assert [entry.status for entry in entries] == [200] * 100
        assert server.log.max_in_window(1.0) <= 20
        # 100 requests need four full windows; the answer's own time and the guard come on top of each.
        took = entries[-1].arrived - entries[0].arrived
        assert 4.0 <= took < 4.0 * 1.3 + 2.5  # the start of the processes lies in it


@pytest.mark.parametrize(
    "retry_after", ["2", *(pytest.param(value, marks=pytest.mark.slow) for value in (None, "nonsense", "99999"))]
)
def test_when_somebody_else_has_used_the_budget_a_429_stops_everybody(
    few_conditions: GeneratedData, tmp_path: Path, retry_after: str | None
) -> None:
    """Four pacers as of four processes, a server whose window is nearly full, and nothing known about it."""
    import aiohttp

    from payout_pipeline.goldsky.client import GoldskyClient

    with limited_server(few_conditions, "20/2s", retry_after=retry_after) as server:

        async def main() -> int:
            stranger = {"query": "{ _meta { block { number } } }"}
            async with aiohttp.ClientSession() as session:
                for _ in range(16):
                    async with session.post(server.url, json=stranger) as response:
                        assert response.status == 200
            server.log.clear()

            async def one() -> int:
                pacer = Pacer.open(
                    server.url, limit(20, 2), runtime_dir=tmp_path, request_timeout=10, max_retry_after=3
                )  # fmt: skip
                async with GoldskyClient(server.url, pacer, timeout_seconds=10) as client:
                    pin = client.make_pin(await client.probe(), 0)
                    answers = await asyncio.gather(*[client.fetch_batch(["0" * 64], pin) for _ in range(4)])
                assert not any(answer.failed for answer in answers)
                return pacer.stats.answers_429

            return sum(await asyncio.gather(*[one() for _ in range(4)]))

        counted = asyncio.run(asyncio.wait_for(main(), 60))
        entries = server.log.entries
        refused = [entry for entry in entries if entry.status == 429]
        assert counted == len(refused)
        assert len(refused) <= 3
        if refused:
            under_way = 0.2  # what was admitted before the 429 came may still arrive
            after = [entry.arrived for entry in entries if entry.arrived > refused[-1].arrived + under_way]
            assert min(after) - refused[-1].arrived >= 2.0
        assert len(entries) - len(refused) == 20


@pytest.mark.slow
def test_the_whole_job_at_the_real_numbers_stays_within_the_limit_and_close_to_its_floor(
    few_conditions: GeneratedData, tmp_path: Path
) -> None:
    with SubgraphServer(
        SubgraphConfig(conditions=few_conditions.conditions, rate_limit="50/10s", latency=0.3)
    ) as server:
        run_workers(server.url, tmp_path, (50, 10), processes=4, batches=43)
        entries = server.log.entries
        assert [entry.status for entry in entries] == [200] * 176
        assert server.log.max_in_window(10.0) <= 50
        assert entries[-1].arrived - entries[0].arrived <= 1.10 * 30


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_processes_killed_at_random_points_never_make_the_others_overrun(
    few_conditions: GeneratedData, tmp_path: Path, seed: int
) -> None:
    dice = random.Random(seed)
    with limited_server(few_conditions, "20/1s") as server:
        command = [sys.executable, "-c", _WORKER, server.url, str(tmp_path), "20", "1", "30", "8"]
        for _ in range(3):
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            deadline = time.monotonic() + 30
            while len(server.log.entries) < 3 and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(dice.uniform(0.0, 1.5))
            child.send_signal(signal.SIGKILL)
            child.communicate()
        run_workers(server.url, tmp_path, (20, 1), processes=2, batches=20)
        print(f"seed {seed}")
        assert {entry.status for entry in server.log.entries} <= {200, 0}
        assert server.log.max_in_window(1.0) <= 20
