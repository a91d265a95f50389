"""The rules of locks across machines without a server: who waits, when a lock counts as lost, what is said.

Against a real Redis and PostgreSQL: ``cluster/test_locks_remote.py`` (``make test-cluster``).
"""

from __future__ import annotations

import base64
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payout_pipeline.errors import ConfigurationError, LockHeldError, TransientError
from payout_pipeline.locks import Holder
from payout_pipeline.locks_remote import (
    LockLostError,
    LockServiceError,
    RemoteLocks,
    _advisory_key,
    _said_by,
    open_service,
    remote_locks,
)


def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread does; five seconds, however busy the machine is."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Memory:
    """A service in this process whose faults the test decides: each key has one holder, fences count upwards."""

    def __init__(self, lifetime: float = 0.3) -> None:
        self.lifetime = lifetime
        self.held: dict[str, Holder] = {}
        self.fences = 0
        self.away = False
        self.stolen: str | None = None
        self.renewals = 0
        self._lock = threading.Lock()

    def try_acquire(self, key: str, holder: Holder) -> _MemoryHeld | None:
        if self.away:
            raise LockServiceError("PAYOUT_LIMITER_URL: Memory does not answer")
        with self._lock:
            if key in self.held:
                return None
            self.held[key] = holder
            self.fences += 1
            return _MemoryHeld(self, key, self.fences)

    def holder(self, key: str) -> Holder | None:
        if self.away:
            raise LockServiceError("PAYOUT_LIMITER_URL: Memory does not answer")
        return self.held.get(key)

    def close(self) -> None:
        pass


class _MemoryHeld:
    taken_over = None

    def __init__(self, service: Memory, key: str, fence: int) -> None:
        self.service, self.key, self.fence = service, key, fence

    def renew(self) -> str | None:
        self.service.renewals += 1
        if self.service.away:
            raise LockServiceError("PAYOUT_LIMITER_URL: Memory does not answer")
        return self.service.stolen

    def release(self) -> None:
        self.service.held.pop(self.key, None)


def test_a_lock_is_renewed_several_times_in_its_life_time_and_given_back() -> None:
    service, lost = Memory(), []
    locks = RemoteLocks(service, "s3://b/p", lost.append)
    with locks.hold("worker_1", purpose="test") as mine:
        assert locks.holder("worker_1") == mine
        until(lambda: service.renewals >= 3)
    assert lost == []
    assert locks.holder("worker_1") is None


def test_a_lock_that_went_to_somebody_else_is_said_once_and_fails_the_block() -> None:
    service, lost = Memory(), []
    with (  # noqa: PT012 - the fault belongs to the end of the block
        pytest.raises(LockLostError, match=r"worker_1.*held by somebody else.*start the worker again"),
        RemoteLocks(service, "s3://b/p", lost.append).hold("worker_1", purpose="test"),
    ):
        service.stolen = "it expired and is now held by somebody else"
        until(lambda: lost)
    assert lost == ["lost the lock 'worker_1': it expired and is now held by somebody else"]


def test_a_fault_of_the_block_is_not_hidden_by_a_lost_lock() -> None:
    service, lost = Memory(), []
    with (  # noqa: PT012
        pytest.raises(ZeroDivisionError),
        RemoteLocks(service, "s3://b/p", lost.append).hold("worker_1", purpose="test"),
    ):
        service.stolen = "it expired"
        until(lambda: lost)
        raise ZeroDivisionError


def test_a_service_that_is_away_for_a_moment_costs_nothing_and_for_longer_costs_the_lock_in_time() -> None:
    service, lost = Memory(lifetime=2), []
    locks = RemoteLocks(service, "s3://b/p", lambda message: lost.append((time.monotonic(), message)))
    with locks.lease("worker_1", Holder.here("test")) as lease:
        service.away = True
        until(lambda: service.renewals >= 1)
        service.away = False
        renewed = service.renewals
        until(lambda: service.renewals >= renewed + 2)
        assert not lease.lost.is_set()
        service.away = True
        since = time.monotonic()
        assert lease.lost.wait(5)
        with pytest.raises(LockLostError, match="could not be renewed"):
            lease.ensure()
    # Known before the service could give it to somebody else.
    assert lost[0][0] - since < service.lifetime


def test_the_default_for_a_lost_lock_is_an_end_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr("payout_pipeline.locks_remote.os.kill", lambda _pid, number: sent.append(number))
    service = Memory()
    with (  # noqa: PT012
        pytest.raises(LockLostError),
        RemoteLocks(service, "s3://b/p").hold("worker_1", purpose="test"),
    ):
        service.stolen = "it expired"
        until(lambda: sent)
    assert sent == [signal.SIGTERM]


def test_waiting_names_the_holder_once_and_refusing_says_what_to_do() -> None:
    service, lines = Memory(), []
    locks = RemoteLocks(service, "s3://b/p", lambda _: None)
    with (
        locks.hold("worker_1", purpose="the first", run_id="run-1"),
        pytest.raises(LockHeldError, match=r"run-1 \(the first.*after 0.6 s of waiting; wait until it ends, or stop"),
        locks.hold("worker_1", purpose="the second", wait_seconds=0.6, log=lines.append),
    ):
        pytest.fail("both hold it")
    assert len(lines) == 1
    assert "run-1 (the first" in lines[0]


def test_a_service_that_does_not_answer_is_waited_for_and_then_said() -> None:
    service, lines = Memory(), []
    service.away = True
    started = time.monotonic()
    with (
        pytest.raises(LockServiceError, match="does not answer") as fault,
        RemoteLocks(service, "s3://b/p").hold("worker_1", purpose="test", wait_seconds=0.5, log=lines.append),
    ):
        pytest.fail("held without a service")
    assert 0.4 < time.monotonic() - started < 3
    assert lines == [str(fault.value)]
    assert isinstance(fault.value, TransientError)


def test_showing_a_holder_outlives_an_outage_of_the_service() -> None:
    service = Memory()
    service.away = True
    assert RemoteLocks(service, "s3://b/p").holder("worker_1") is None


def test_runtime_locations_do_not_share_locks_and_a_trailing_slash_is_none() -> None:
    service = Memory()
    assert RemoteLocks(service, "s3://b/p").key("w") == RemoteLocks(service, "s3://b/p/").key("w")
    assert RemoteLocks(service, "s3://b/p").key("w") != RemoteLocks(service, "s3://b/q").key("w")
    assert "s3://" not in RemoteLocks(service, "s3://b/p").key("w")


def test_a_local_runtime_directory_counts_as_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("redis", reason="in the optional group `cluster`")
    monkeypatch.chdir(tmp_path)
    key = remote_locks("runtime", "redis://h/0").key("w")
    assert key == remote_locks(str(tmp_path / "runtime"), "redis://h/0").key("w")
    assert key != remote_locks("s3://b/runtime", "redis://h/0").key("w")


@pytest.mark.parametrize("url", ["mysql://u:canary-s3cret@h/x", "http://u:canary-s3cret@h", "canary-s3cret"])
def test_another_kind_of_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="redis:// or postgresql://") as refused:
        open_service(url)
    assert "canary-s3cret" not in str(refused.value)


@given(st.text(max_size=150), st.text(max_size=60))
def test_any_holder_survives_as_a_comment_and_cannot_end_it(purpose: str, run_id: str) -> None:
    holder = Holder.here(purpose, run_id)
    comment = f"/* payout-pipeline holder {base64.b64encode(holder.to_json().encode()).decode()} */"
    assert comment.count("*/") == 1
    # What cannot be shown on one line is not believed.
    expected = holder if purpose.isprintable() and run_id.isprintable() else None
    assert _said_by(f"{comment} SELECT 1") == expected


@given(st.text(max_size=200))
def test_any_other_statement_names_no_holder(query: str) -> None:
    assert _said_by(query) is None
    assert _said_by(f"/* payout-pipeline holder {query[:20]} */") is None or query


@given(st.text(max_size=100))
def test_an_advisory_key_is_a_positive_64_bit_number(name: str) -> None:
    assert 0 <= _advisory_key(name) < 2**63
