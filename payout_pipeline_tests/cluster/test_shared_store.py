"""The rate limit and the locks of several machines, on a real Redis and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from payout_pipeline.errors import ConfigurationError, LockHeldError, StorageError
from payout_pipeline.goldsky import pacing
from payout_pipeline.goldsky.pacing import Pacer, shared_status
from payout_pipeline.locks_shared import LockLostError, SharedLocks
from payout_pipeline.settings import RateLimit
from payout_pipeline.shared_store import StoreBusyError, open_shared_store
from payout_pipeline.subgraph.log import max_in_window
from payout_pipeline_tests.cluster.services import (
    Service,
    free_port,
    postgres_binary,
    postgres_server,
    redis_server,
)

HERE = {
    "redis": bool(shutil.which("redis-server") and find_spec("redis")),
    "postgresql": bool(postgres_binary("postgres") and find_spec("psycopg")),
}
LIMIT = RateLimit(requests=20, seconds=1)
ENDPOINT = "http://subgraph/x"
LIFETIME = 12.0

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, str]]:
    if not HERE["redis"]:
        pytest.skip("Redis is not installed")
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, str]]:
    if not HERE["postgresql"]:
        pytest.skip("PostgreSQL is not installed")
    with postgres_server(tmp_path_factory.mktemp("postgres"), ["shared"]) as (service, urls):
        yield service, urls["shared"]


@pytest.fixture(params=["redis", "postgresql"])
def server(request: pytest.FixtureRequest) -> tuple[Service, str]:
    found: tuple[Service, str] = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def url(server: tuple[Service, str]) -> str:
    return server[1]


# --- the rate limit -------------------------------------------------------------------------------------------------


def open_pacer(url: str, name: str, limit: RateLimit = LIMIT) -> Pacer:
    return Pacer.open(f"{ENDPOINT}/{name}", limit, runtime_dir="/nowhere", request_timeout=10, limiter_url=url)


_SENDER = """
import asyncio, json, sys, time
from payout_pipeline.goldsky.pacing import Pacer
from payout_pipeline.settings import RateLimit
url, endpoint = sys.argv[1:]
limit = RateLimit(requests=20, seconds=1)
pacer = Pacer.open(endpoint, limit, runtime_dir="/nowhere", request_timeout=10, limiter_url=url)
counted = []
async def main():
    async def worker():
        for _ in range(5):
            async with pacer.slot():
                await asyncio.sleep(0.01)
                counted.append(time.monotonic())
                await asyncio.sleep(0.01)
    await asyncio.gather(*[worker() for _ in range(5)])
    await pacer.close()
asyncio.run(main())
print(json.dumps(counted))
"""


def test_processes_that_share_no_directory_stay_within_one_limit(url: str) -> None:
    command = [sys.executable, "-c", _SENDER, url, f"{ENDPOINT}/many"]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    counted: list[float] = []
    for child in children:
        out, err = child.communicate(timeout=100)
        assert child.returncode == 0, err[-2000:]
        counted += json.loads(out)
    assert len(counted) == 75
    assert max_in_window(counted, 1.0) <= 20
    assert max(counted) - min(counted) < 3 * 1.6 + 4  # three further windows, and the starts of the processes


def test_a_429_holds_everybody_and_an_outage_is_seen(url: str) -> None:
    async def main() -> None:
        one, two = open_pacer(url, "hold"), open_pacer(url, "hold")
        async with one.slot():
            pass
        await one.report_outage("HTTP 503")
        await one.rate_limited(1.0)
        status = shared_status(two.store)
        assert status["hold_seconds"] > 0.5
        assert status["outage_message"] == "HTTP 503"
        started = time.monotonic()
        async with two.slot():
            assert time.monotonic() - started >= 0.9
        status = shared_status(one.store)
        assert (status["in_flight"], status["answers_429"]) == (0, 1)
        await one.close()
        await two.close()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_cancelled_waiter_leaves_no_place_behind(url: str) -> None:
    async def main() -> None:
        pacer = open_pacer(url, "cancel", RateLimit(requests=1, seconds=0.5))
        for pause in (0.0, 0.0005, 0.002, 0.01):
            slot = pacer.slot()
            waiting = asyncio.ensure_future(slot.__aenter__())
            await asyncio.sleep(pause)
            waiting.cancel()
            result = (await asyncio.gather(waiting, return_exceptions=True))[0]
            if not isinstance(result, BaseException):
                await slot.__aexit__(None, None, None)
        assert shared_status(pacer.store)["in_flight"] == 0
        await pacer.close()

    asyncio.run(asyncio.wait_for(main(), 30))


async def ask(pacer: Pacer) -> None:
    async with pacer.slot():
        raise AssertionError("nothing may be sent")


def test_a_wrong_password_is_a_configuration_error_without_the_password(url: str) -> None:
    wrong = url.replace(urlsplit(url).password or "", "canary-wr0ng")
    with pytest.raises(ConfigurationError, match="PAYOUT_LIMITER_URL") as refused:
        asyncio.run(ask(open_pacer(wrong, "wrong")))
    assert "canary-wr0ng" not in str(refused.value)
    with pytest.raises(ConfigurationError), open_locks(wrong).hold("x", purpose="y", wait_seconds=30):
        pytest.fail("held with a wrong password")


@pytest.mark.parametrize("scheme", [name for name, here in HERE.items() if here])
def test_where_the_server_is_away_nothing_is_sent_or_locked(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "_BUSY_SECONDS", 0.3)
    url = f"{scheme}://me:canary-5ecret@127.0.0.1:{free_port()}/0"
    with pytest.raises(StorageError) as unsent:
        asyncio.run(asyncio.wait_for(ask(open_pacer(url, "away")), 30))
    started = time.monotonic()
    with pytest.raises(StoreBusyError, match="does not answer") as unlocked, open_locks(url).hold("x", purpose="y"):
        pytest.fail("held at nobody")
    assert time.monotonic() - started < 5
    assert "canary-5ecret" not in f"{unsent.value} {unlocked.value}"


# --- locks ----------------------------------------------------------------------------------------------------------


def open_locks(url: str, lost: list[str] | None = None) -> SharedLocks:
    on_lost = None if lost is None else lost.append
    return SharedLocks(open_shared_store(url), "s3://bucket/runtime", lifetime=LIFETIME, on_lost=on_lost)


def test_a_second_holder_is_refused_with_the_name_of_the_first(url: str) -> None:
    locks = open_locks(url)
    with locks.hold("worker 1", purpose="fetch */ 'all' %s", run_id="run-1"):
        with (
            pytest.raises(LockHeldError, match=rf"process {os.getpid()} on .*run-1.*fetch \*/ 'all' %s.*after 0.5 s"),
            open_locks(url).hold("worker 1", purpose="too late", wait_seconds=0.5),
        ):
            pytest.fail("both hold it")
        assert str(locks.holder("worker 1")).startswith(f"process {os.getpid()} on {socket.gethostname()}, run run-1")
    assert locks.holder("worker 1") is None


_HOLDER = """
import sys, time
from payout_pipeline.locks_shared import SharedLocks
from payout_pipeline.shared_store import open_shared_store
locks = SharedLocks(open_shared_store(sys.argv[1]), "s3://bucket/runtime", lifetime=float(sys.argv[2]))
with locks.hold("dead", purpose="dies", run_id="run-7"):
    print("held", flush=True)
    time.sleep(600)
"""


def holder_process(url: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", _HOLDER, url, str(LIFETIME)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_holder_keeps_its_lock_beyond_its_lifetime_and_a_dead_ones_is_taken_over_within_it(url: str) -> None:
    lines: list[str] = []
    process = holder_process(url)
    time.sleep(LIFETIME * 1.2)
    with pytest.raises(LockHeldError), open_locks(url).hold("dead", purpose="too early"):
        pytest.fail("both hold it")
    process.kill()
    process.wait(10)
    started = time.monotonic()
    with open_locks(url).hold("dead", purpose="next", wait_seconds=LIFETIME * 2, log=lines.append):
        assert time.monotonic() - started <= LIFETIME + 1
    assert lines[-1].startswith(f"took over dead from process {process.pid} on ")
    assert "run run-7" in lines[-1]
    with open_locks(url).hold("dead", purpose="after", log=lines.append):
        pass
    assert sum(line.startswith("took over") for line in lines) == 1


def test_a_holder_that_was_suspended_for_too_long_learns_that_it_lost_and_is_ended(url: str) -> None:
    process = holder_process(url)
    process.send_signal(signal.SIGSTOP)
    with open_locks(url).hold("dead", purpose="next", wait_seconds=LIFETIME * 3):
        process.send_signal(signal.SIGCONT)
        # Nobody there handles SIGTERM, so what asks for an end in order is an end.
        assert process.wait(LIFETIME) == -signal.SIGTERM
        assert open_locks(url).holder("dead") is not None  # what the former holder gives back is not the new one's


@pytest.mark.parametrize("scheme", [name for name, here in HERE.items() if here])
def test_a_server_that_goes_away_costs_the_lock_before_anybody_else_can_have_it(scheme: str, tmp_path: Path) -> None:
    lost: list[str] = []
    with ExitStack() as stack:
        if scheme == "redis":
            (server, url), fault = stack.enter_context(redis_server(tmp_path)), signal.SIGSTOP
            stack.callback(server.process.send_signal, signal.SIGCONT)
        else:
            server, urls = stack.enter_context(postgres_server(tmp_path, ["shared"]))
            url, fault = urls["shared"], signal.SIGKILL
        with (  # noqa: PT012 - the loss shows when the block ends
            pytest.raises(LockLostError, match=r"could not be renewed.*start the worker again"),
            open_locks(url, lost).hold("cut off", purpose="a"),
        ):
            started = time.monotonic()
            server.process.send_signal(fault)
            while not lost and time.monotonic() - started < 2 * LIFETIME:
                time.sleep(0.02)
            known = time.monotonic() - started
    assert len(lost) == 1
    assert known < LIFETIME
