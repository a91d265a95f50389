"""The shared budget of requests, as the server counts it."""

from __future__ import annotations

import asyncio
import heapq
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from payout_pipeline.errors import StorageError
from payout_pipeline.goldsky import pacing
from payout_pipeline.goldsky.pacing import Pacer, shared_status
from payout_pipeline.goldsky.rate_limit import (
    Budget,
    SharedBudget,
    admit,
    budget_key,
    describe,
    finish,
    hold,
    owner,
    owner_is_stale,
)
from payout_pipeline.settings import RateLimit
from payout_pipeline.shared_store import Edit, SharedStore, T
from payout_pipeline.subgraph.generate import GeneratedData, generate
from payout_pipeline.subgraph.log import max_in_window
from payout_pipeline.subgraph.server import SubgraphConfig, SubgraphServer


def limit(requests: int, seconds: float) -> RateLimit:
    return RateLimit(requests=requests, seconds=seconds)


# --- the rules, on a clock of our own -------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), requests=st.integers(1, 12), workers=st.integers(1, 20))
def test_whenever_the_server_counts_a_request_no_window_has_too_many(seed: int, requests: int, workers: int) -> None:
    """Requests take from 0 to 3 windows, and the server counts each at any moment between sending and answer."""
    dice, window, now = random.Random(seed), 1000, 1_000_000
    budget = Memory(limit(requests, window / 1000))
    counted: list[int] = []
    events = [(now + dice.randrange(50), number, "ask", "") for number in range(workers)]
    heapq.heapify(events)
    serial = workers
    while events and len(counted) < requests * 6:
        now, worker, what, name = heapq.heappop(events)
        serial += 1
        if what == "ask":
            name = f"m:{worker}:{serial}"
            refusal = budget.at(now, admit, budget.limit, name, 3_100)
            if refusal is None:
                ends = now + dice.choice((0, dice.randrange(30), dice.randrange(900), dice.randrange(3_000)))
                counted.append(dice.randint(now, ends))
                heapq.heappush(events, (ends, worker, "end", name))
            else:
                heapq.heappush(events, (now + max(1, round(refusal.wait_seconds * 1000)), worker, "ask", ""))
        else:
            if dice.random() < 0.9:  # of the others it is never told that they have ended
                budget.at(now, finish, budget.limit, name)
            heapq.heappush(events, (now, worker, "ask", ""))
    assert len(counted) >= requests
    assert max_in_window(counted, window + 1) <= requests  # closed at both ends


class Memory(SharedStore):
    """A budget in a variable, at the times that the test says."""

    where = "memory"

    def __init__(self, rate: RateLimit) -> None:
        self.text: str | None = None
        self.now = 0
        self.budget = SharedBudget(self, "http://x/y", rate)
        self.limit = self.budget.limit

    def edit(self, key: str, edit: Edit[T]) -> T:
        self.text, result = edit(self.text, self.now)
        return result

    def close(self) -> None:
        pass

    def at(self, now: int, action: Callable[..., T], *arguments: Any) -> T:
        self.now = now
        return self.budget.change(lambda budget, now: action(budget, now, *arguments))


def burst(budget: Memory, now: int) -> tuple[int, int]:
    """How many of 60 requests that end at once are admitted without a long wait, and when that is over."""
    for granted in range(60):
        while (refusal := budget.at(now, admit, budget.limit, f"{now}-{granted}", 1000)) is not None:
            if refusal.wait_seconds >= 1:
                return granted, now
            now += max(1, round(refusal.wait_seconds * 1000))
        budget.at(now, finish, budget.limit, f"{now}-{granted}")
    return 60, now


def test_the_whole_window_is_used_within_an_eighth_of_it_and_again_one_window_later() -> None:
    budget, started = Memory(limit(50, 10)), 10_000_000
    granted, now = burst(budget, started)
    # 25 ms apart: where somebody else has used the server's window, a 429 stops everybody while few are under way.
    assert (granted, now - started) == (50, 49 * 25)
    refusal = budget.at(now, admit, budget.limit, "next", 1000)
    assert refusal is not None
    assert refusal.wait_seconds == pytest.approx(10.02 - (now - started) / 1000, abs=0.11)
    granted, now = burst(budget, started + 11_500)
    assert (granted, now - started) == (50, 11_500 + 49 * 25)


def test_a_refused_request_learns_when_the_next_place_is_free_and_not_much_later() -> None:
    budget, now = Memory(limit(2, 1)), 10_000_000
    assert budget.at(now, admit, budget.limit, "a", 1000) is None
    assert budget.at(now + 200, admit, budget.limit, "b", 1000) is None
    budget.at(now + 400, finish, budget.limit, "a")
    budget.at(now + 400, finish, budget.limit, "b")
    refusal = budget.at(now + 400, admit, budget.limit, "c", 1000)
    assert refusal is not None
    assert refusal.reason == "window"
    assert refusal.wait_seconds == pytest.approx(1.021, abs=0.011)
    assert budget.at(now + 400 + round(refusal.wait_seconds * 1000), admit, budget.limit, "c", 1000) is None


def test_a_request_in_flight_keeps_its_place_however_long_it_takes() -> None:
    budget, now = Memory(limit(1, 1)), 10_000_000
    assert budget.at(now, admit, budget.limit, "slow", 60_000) is None
    refusal = budget.at(now + 30_000, admit, budget.limit, "next", 60_000)
    assert refusal is not None
    assert refusal.wait_seconds <= 1.1  # it may end at any moment: look again one window later


def test_a_lease_that_ran_out_counts_for_one_more_window() -> None:
    budget, now = Memory(limit(1, 1)), 10_000_000
    assert budget.at(now, admit, budget.limit, "never heard of again", 5_000) is None
    assert budget.at(now + 5_900, admit, budget.limit, "next", 5_000) is not None
    assert budget.at(now + 6_100, admit, budget.limit, "next", 5_000) is None


def test_after_a_429_nobody_is_admitted_until_the_hold_is_over() -> None:
    budget, now = Memory(limit(50, 10)), 10_000_000
    assert budget.at(now, hold, 12.0, "asked to") == 1
    assert budget.at(now + 5, hold, 3.0, "a shorter one") == 2
    refusal = budget.at(now + 11_000, admit, budget.limit, "early", 5000)
    assert refusal is not None
    assert (refusal.reason, refusal.wait_seconds) == ("asked to", pytest.approx(1.001))
    assert budget.at(now + 12_002, admit, budget.limit, "first", 5000) is None


def test_after_a_restart_of_the_machine_nothing_is_sent_for_a_window(caplog: pytest.LogCaptureFixture) -> None:
    budget, now = Memory(limit(2, 10)), 900_000_000
    assert budget.at(now, hold, 60.0, "long ago") == 1
    assert budget.at(now + 60_002, admit, budget.limit, "a", 1000) is None
    now = 5_000  # the monotonic clock began again
    refusal = budget.at(now, admit, budget.limit, "b", 1000)
    assert refusal is not None
    assert 10 < refusal.wait_seconds < 10.2
    assert "restarted" in caplog.text
    assert budget.at(now + 10_021, admit, budget.limit, "b", 1000) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"ended": 1}', '{"ended": {}, "in_flight": 5}'])
def test_a_budget_that_cannot_be_read_begins_anew_with_a_pause(text: str, caplog: pytest.LogCaptureFixture) -> None:
    budget, now = Memory(limit(5, 1)), 10_000_000
    budget.text = text
    assert budget.at(now, admit, budget.limit, "a", 1000) is not None
    assert "begins anew" in caplog.text
    assert budget.at(now + 1_021, admit, budget.limit, "a", 1000) is None


def test_fields_of_another_version_are_left_out_and_the_size_does_not_grow_with_the_limit() -> None:
    assert Budget.model_validate_json('{"ended": {"7": 2}, "hold_until": 5, "unknown": null}') == Budget(
        ended={7: 2}, hold_until=5
    )
    budget, now = Memory(limit(100_000, 10)), 10_000_000
    for number in range(3_000):
        budget.at(now + number, admit, budget.limit, f"{number}", 1000)
        budget.at(now + number, finish, budget.limit, f"{number}")
    assert budget.at(now + 3_000, describe)["used"] == 3_000
    assert len(budget.text or "") < 2_000


def test_endpoints_have_budgets_of_their_own() -> None:
    keys = {budget_key(url) for url in ("http://a/x/gn", "http://a/y/gn", "http://b/x/gn", "http://a:81/x/gn")}
    assert len(keys) == 4
    assert budget_key("https://A/x/gn/") == budget_key("https://a:443/x/gn")


def test_a_runtime_directory_in_an_object_store_leaves_the_file_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = pacing.open_store("http://x/y", limit(5, 1), runtime_dir="s3://bucket/runtime")
    assert shared_status(store)["used"] == 0
    assert len(list(tmp_path.rglob("rate-limit/rate-*.json"))) == 1
    (directory,) = tmp_path.iterdir()
    assert directory.stat().st_mode & 0o777 == 0o700
    directory.rename(tmp_path / "away")
    directory.symlink_to(tmp_path / "away")
    for make in (True, False):
        with pytest.raises(StorageError, match="belongs to another user"):
            pacing.limiter_directory("s3://bucket/runtime", make=make)
    assert pacing.open_store("http://x/y", limit(5, 1), runtime_dir=f"file://{tmp_path}/a%20b").where == str(
        tmp_path / "a b" / "rate-limit"
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
    assert 1.0 <= waited < 4.0


def test_a_living_process_is_not_taken_for_dead() -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    machine = owner().partition(":")[0]
    assert not owner_is_stale(f"{owner()}x")
    assert owner_is_stale(f"{machine}:{done.pid}:x")
    assert not owner_is_stale(f"{'0' * 12}:{done.pid}:x")  # another machine's processes cannot be seen from here
    assert not owner_is_stale("anything")


@pytest.mark.parametrize("damage", [b"", b"this is no budget", os.urandom(8192)])
def test_damage_in_the_middle_of_a_run_is_said_and_followed_by_a_pause(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    pacer = Pacer.open("http://x/y", limit(100, 0.5), runtime_dir=tmp_path, request_timeout=5)

    async def ask() -> None:
        for _ in range(5):
            async with pacer.slot():
                pass

    async def main() -> float:
        await ask()
        (path,) = tmp_path.glob("rate-limit/rate-*.json")
        path.write_bytes(damage)
        started = time.monotonic()
        await ask()
        return time.monotonic() - started

    assert asyncio.run(asyncio.wait_for(main(), 20)) >= 0.5
    assert "begins anew" in caplog.text
    assert shared_status(pacer.store)["used"] == 5


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    pacer = Pacer.open("http://x/y", limit(5, 1), runtime_dir=tmp_path / "file" / "below", request_timeout=5)

    async def ask() -> None:
        async with pacer.slot():
            pass

    with pytest.raises(StorageError, match="rate-limit"):
        asyncio.run(ask())


def test_a_locked_file_is_waited_for_without_holding_up_the_event_loop(tmp_path: Path) -> None:
    pacer = Pacer.open("http://x/y", limit(50, 1), runtime_dir=tmp_path, request_timeout=5)
    ticks = 0

    async def main() -> None:
        nonlocal ticks
        async with pacer.slot():
            pass
        (path,) = tmp_path.glob("rate-limit/rate-*.json")
        other = FileLock(f"{path}.lock")
        other.acquire()
        slot = pacer.slot()
        asking = asyncio.ensure_future(slot.__aenter__())
        deadline = time.monotonic() + 0.6
        while time.monotonic() < deadline:
            await asyncio.sleep(0.01)
            ticks += 1
        assert not asking.done()
        other.release()
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


def test_an_exception_of_who_is_told_ends_the_wait(tmp_path: Path) -> None:
    def refuse(_reason: str, _seconds: float) -> None:
        raise LookupError

    async def main() -> None:
        pacer = Pacer.open("http://x/y", limit(1, 60), runtime_dir=tmp_path, request_timeout=5, on_wait=refuse)
        async with pacer.slot():
            pass
        with pytest.raises(LookupError):
            async with pacer.slot():
                pytest.fail("there was no place")

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
    print(json.dumps({"answers_429": pacer.stats.answers_429}))
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


@pytest.mark.slow
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
        assert entries[-1].arrived - entries[0].arrived <= 1.15 * 30


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.slow
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
