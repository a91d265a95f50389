"""The budget shared between machines, on a real Redis and a real PostgreSQL started for the test."""

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
from pathlib import Path

import pytest

from payout_pipeline.errors import ConfigurationError, StorageError
from payout_pipeline.goldsky import pacing
from payout_pipeline.goldsky.pacing import Pacer, hold, shared_status
from payout_pipeline.scrub import register_secret
from payout_pipeline.settings import RateLimit
from payout_pipeline.subgraph.log import max_in_window

LIMIT = RateLimit(requests=20, seconds=1)
ENDPOINT = "http://subgraph/x"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("redis")
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server on this machine")
    port, directory = _free_port(), tmp_path_factory.mktemp("redis")
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory), "--save", ""]
    server = subprocess.Popen([*command, "--requirepass", "redis-pass-44"], stdout=subprocess.DEVNULL)
    try:
        _wait_for(port)
        yield f"redis://:redis-pass-44@127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("psycopg")
    found = [*Path("/usr/lib/postgresql").glob("*/bin"), *([Path(p).parent] if (p := shutil.which("initdb")) else [])]
    if not found:
        pytest.skip("no PostgreSQL on this machine")
    programs, directory, port = found[-1], tmp_path_factory.mktemp("postgres"), _free_port()
    prefix: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(directory, "postgres")
        for parent in directory.parents:
            if parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
        prefix = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    cluster = directory / "data"
    subprocess.run(
        [*prefix, str(programs / "initdb"), "-D", str(cluster), "-U", "me", "-A", "trust", "-E", "UTF8", "--locale=C"],
        check=True, stdout=subprocess.DEVNULL, cwd="/",
    )  # fmt: skip
    server = subprocess.Popen(
        [*prefix, str(programs / "postgres"), "-D", str(cluster), "-p", str(port), "-k", str(directory), "-F"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
    )  # fmt: skip
    try:
        _wait_for(port)
        yield f"postgresql://me@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)  # fast: does not wait for clients
        server.wait(30)


@pytest.fixture(params=["redis_url", "postgres_url"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


_SENDER = """
import asyncio, json, sys, time
from payout_pipeline.goldsky.pacing import Pacer
from payout_pipeline.settings import RateLimit
url, endpoint = sys.argv[1:]
pacer = Pacer.open(endpoint, RateLimit(requests=20, seconds=1), runtime_dir="/nowhere", request_timeout=10, limiter_url=url)
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


def test_a_hold_and_an_outage_are_seen_by_all(url: str) -> None:
    async def main() -> None:
        one, two = (
            Pacer.open(f"{ENDPOINT}/hold", LIMIT, runtime_dir="/nowhere", request_timeout=5, limiter_url=url)
            for _ in range(2)
        )
        async with one.slot():
            pass
        await one.use(lambda tx: hold(tx, 1.0, "asked to"))
        assert shared_status(two.store)["hold_seconds"] > 0.5
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
        limit = RateLimit(requests=1, seconds=0.5)
        pacer = Pacer.open(f"{ENDPOINT}/cancel", limit, runtime_dir="/nowhere", request_timeout=60, limiter_url=url)
        for pause in (0.0, 0.0005, 0.002, 0.01):
            waiting = asyncio.ensure_future(pacer.slot().__aenter__())
            await asyncio.sleep(pause)
            waiting.cancel()
            result = (await asyncio.gather(waiting, return_exceptions=True))[0]
            if not isinstance(result, BaseException):
                await result.__aexit__(None, None, None)
        assert shared_status(pacer.store)["in_flight"] == 0
        await pacer.close()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_wrong_password_is_said_without_it(redis_url: str) -> None:
    register_secret("wrong-pass-77")
    wrong = redis_url.replace("redis-pass-44", "wrong-pass-77")
    pacer = Pacer.open(ENDPOINT, LIMIT, runtime_dir="/nowhere", request_timeout=5, limiter_url=wrong)

    async def ask() -> None:
        async with pacer.slot():
            raise AssertionError("nothing may be sent")

    with pytest.raises(ConfigurationError, match="PAYOUT_LIMITER_URL") as caught:
        asyncio.run(ask())
    assert "wrong-pass-77" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["redis", "postgresql"])
def test_where_the_store_is_away_nothing_is_sent(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("redis" if scheme == "redis" else "psycopg")
    monkeypatch.setattr(pacing, "_BUSY_SECONDS", 0.3)
    url = f"{scheme}://me:store-pass-88@127.0.0.1:{_free_port()}/0"
    pacer = Pacer.open(ENDPOINT, LIMIT, runtime_dir="/nowhere", request_timeout=5, limiter_url=url)

    async def ask() -> None:
        async with pacer.slot():
            raise AssertionError("nothing may be sent")

    with pytest.raises(StorageError) as caught:
        asyncio.run(asyncio.wait_for(ask(), 30))
    assert "store-pass-88" not in str(caught.value)


def test_another_kind_of_url_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="PAYOUT_LIMITER_URL"):
        Pacer.open(ENDPOINT, LIMIT, runtime_dir="/nowhere", request_timeout=5, limiter_url="mysql://x/y")
