"""Locks across machines against a real Redis and a real PostgreSQL: one holder, death, loss, secrets."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from payout_pipeline.errors import ConfigurationError, LockHeldError
from payout_pipeline.locks_remote import (
    Lease,
    LockLostError,
    LockServiceError,
    PostgresLocks,
    RedisLocks,
    RemoteLocks,
    open_service,
    remote_locks,
)
from payout_pipeline_tests.cluster.services import Service, free_port, missing_parts, postgres_server, redis_server

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing_parts()), reason=f"not installed: {', '.join(missing_parts())}"),
]

LIFETIME = 3.0
SCOPE = "s3://bucket/runtime"


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Service, str]]]:
    directory = tmp_path_factory.mktemp("locks")
    with (
        redis_server(directory / "redis") as redis,
        postgres_server(directory / "postgres", ["locks"]) as (postgres, urls),
    ):
        yield {"redis": redis, "postgresql": (postgres, urls["locks"])}


@pytest.fixture(params=["redis", "postgresql"])
def url(request: pytest.FixtureRequest, services: dict[str, tuple[Service, str]]) -> str:
    return services[request.param][1]


def open_locks(url: str, scope: str = SCOPE, lost: list[str] | None = None) -> RemoteLocks:
    return RemoteLocks(open_service(url, LIFETIME), scope, ([] if lost is None else lost).append)


def test_a_second_holder_waits_or_is_refused_with_the_name_of_the_first(url: str) -> None:
    locks, lines = open_locks(url), []
    with locks.hold("worker 1", purpose="fetch */ 'all' %s", run_id="run-1"):
        with (
            pytest.raises(LockHeldError, match=rf"process {os.getpid()} on .*run-1.*fetch \*/ 'all' %s.*after 0.5 s"),
            open_locks(url).hold("worker 1", purpose="too late", wait_seconds=0.5, log=lines.append),
        ):
            pytest.fail("both hold it")
        assert str(locks.holder("worker 1")).startswith(f"process {os.getpid()} on {socket.gethostname()}, run run-1")
    assert len(lines) == 1
    assert lines[0].startswith("waiting for worker 1, held by process")
    assert locks.holder("worker 1") is None


def test_other_names_and_other_runtime_locations_do_not_wait(url: str) -> None:
    with (
        open_locks(url).hold("worker 1", purpose="a"),
        open_locks(url).hold("worker 2", purpose="b"),
        open_locks(url, "s3://bucket/other").hold("worker 1", purpose="c"),
    ):
        assert open_locks(url).holder("worker 2") is not None


def test_a_holder_keeps_its_lock_for_longer_than_its_life_time(url: str) -> None:
    with open_locks(url).hold("long", purpose="longer than the life-time"):
        time.sleep(LIFETIME * 1.5)
        with pytest.raises(LockHeldError), open_locks(url).hold("long", purpose="too early"):
            pytest.fail("both hold it")


def test_of_many_threads_one_is_inside_at_a_time_and_fences_grow(url: str) -> None:
    inside, fences, overlaps = [], [], []

    def work(number: int) -> None:
        locks = open_locks(url)
        mine = locks_holder(f"thread {number}")
        with locks.lease("shared", mine, wait_seconds=60) as lease:
            inside.append(number)
            if len(inside) > 1:
                overlaps.append(list(inside))
            fences.append(lease.fence)
            time.sleep(0.05)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not overlaps
    assert len(fences) == 8
    assert fences == sorted(set(fences))


def locks_holder(purpose: str):
    from payout_pipeline.locks import Holder

    return Holder.here(purpose)


HOLD_UNTIL_KILLED = textwrap.dedent("""
    import sys, time
    from payout_pipeline.locks_remote import RemoteLocks, open_service
    url, scope, lifetime = sys.argv[1], sys.argv[2], float(sys.argv[3])
    with RemoteLocks(open_service(url, lifetime), scope).hold("dead", purpose="dies", run_id="run-7"):
        print("held", flush=True)
        time.sleep(600)
""")


def holder_process(url: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD_UNTIL_KILLED, url, SCOPE, str(LIFETIME)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_lock_of_a_killed_holder_is_free_within_its_life_time(url: str) -> None:
    process, lines = holder_process(url), []
    process.kill()
    process.wait(10)
    started = time.monotonic()
    with open_locks(url).hold("dead", purpose="next", wait_seconds=30, log=lines.append):
        taken = time.monotonic() - started
    assert taken <= LIFETIME + 1
    if url.startswith("redis"):
        assert lines[-1].startswith(f"took over dead from process {process.pid} on ")
        assert "run run-7" in lines[-1]
    with open_locks(url).hold("dead", purpose="after", log=lines.append):
        pass
    assert sum(line.startswith("took over") for line in lines) == url.startswith("redis")


def test_a_redis_holder_that_was_stopped_for_too_long_learns_that_it_lost_and_is_ended(
    services: dict[str, tuple[Service, str]],
) -> None:
    url = services["redis"][1]
    process, lines = holder_process(url), []
    process.send_signal(signal.SIGSTOP)
    with open_locks(url).hold("dead", purpose="next", wait_seconds=LIFETIME * 3, log=lines.append):
        process.send_signal(signal.SIGCONT)
        # Nobody there handles SIGTERM, so the default that asks for an end in order is an end.
        assert process.wait(LIFETIME * 2) == -signal.SIGTERM
        # What the former holder gives back is not the new one's.
        assert open_locks(url).holder("dead") is not None


def test_a_redis_that_stops_answering_costs_the_lock_before_anybody_else_can_have_it(tmp_path: Path) -> None:
    lost: list[str] = []
    with redis_server(tmp_path / "own") as (service, url):
        locks = open_locks(url, lost=lost)
        started = time.monotonic()
        with (  # noqa: PT012 - the loss shows when the block ends
            pytest.raises(LockLostError, match=r"could not be renewed.*start the worker again"),
            locks.hold("cut off", purpose="a"),
        ):
            service.process.send_signal(signal.SIGSTOP)
            while not lost and time.monotonic() - started < 20:
                time.sleep(0.02)
            known = time.monotonic() - started
        service.process.send_signal(signal.SIGCONT)
    assert len(lost) == 1
    assert known < LIFETIME


def test_a_postgresql_session_that_was_ended_costs_the_lock(services: dict[str, tuple[Service, str]]) -> None:
    import psycopg

    url, lost = services["postgresql"][1], []
    locks = open_locks(url, lost=lost)
    with locks.lease("cut", locks_holder("a")) as lease:
        with psycopg.connect(url, autocommit=True) as administrator:
            administrator.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'payout-pipeline%'"
            )
        assert lease.lost.wait(LIFETIME)
        with pytest.raises(LockLostError, match="session that held it ended"):
            lease.ensure()
    assert len(lost) == 1
    assert isinstance(lease, Lease)


def test_nobody_at_the_address_is_said_within_seconds_and_without_the_password() -> None:
    for scheme in ("redis", "postgresql"):
        url = f"{scheme}://payout:canary-5ecret@127.0.0.1:{free_port()}/0"
        started = time.monotonic()
        with pytest.raises(LockServiceError) as refused, open_locks(url).hold("x", purpose="y"):
            pytest.fail("held at nobody")
        assert time.monotonic() - started < 5
        assert "canary-5ecret" not in str(refused.value)
        assert "PAYOUT_LIMITER_URL" in str(refused.value)


def test_a_wrong_password_is_a_configuration_error_without_the_password(url: str) -> None:
    parts = urlsplit(url)
    wrong = url.replace(parts.password or "", "canary-wr0ng")
    with pytest.raises(ConfigurationError) as refused, open_locks(wrong).hold("x", purpose="y", wait_seconds=30):
        pytest.fail("held with a wrong password")
    assert "canary-wr0ng" not in str(refused.value)


def test_the_url_decides_which_service_keeps_the_locks(services: dict[str, tuple[Service, str]]) -> None:
    kept = {name: remote_locks("s3://b/p/", url) for name, (_, url) in services.items()}
    assert isinstance(kept["redis"].service, RedisLocks)
    assert isinstance(kept["postgresql"].service, PostgresLocks)
    assert kept["redis"].key("worker_1") == RemoteLocks(kept["redis"].service, "s3://b/p").key("worker_1")
