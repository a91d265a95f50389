"""Locks: one holder per name, named to those who wait, and gone with its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payout_pipeline.errors import LockHeldError, StorageError
from payout_pipeline.locks import FileLocks, Holder
from payout_pipeline.locks_shared import LockLostError, SharedLocks
from payout_pipeline.shared_store import Edit, StoreBusyError, T
from payout_pipeline.shared_store.file_store import FileStore

NAME = "goldsky_payouts/worker_1_of_4"

_CHILD = """
import sys
from pathlib import Path
from payout_pipeline.locks import FileLocks
with FileLocks(Path(sys.argv[1])).hold(sys.argv[2], purpose="the child's work", run_id="run-7"):
    print("held", flush=True)
    sys.stdin.read()
"""


def child(directory: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(directory), NAME], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_second_holder_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    other = child(tmp_path)
    try:
        with pytest.raises(LockHeldError) as caught, FileLocks(tmp_path).hold(NAME, purpose="mine"):
            pytest.fail("both hold it")
        assert f"process {other.pid}" in str(caught.value)
        assert "run run-7" in str(caught.value)
        assert "the child's work" in str(caught.value)
        assert FileLocks(tmp_path).holder(NAME) is not None
    finally:
        other.communicate()
    with FileLocks(tmp_path).hold(NAME, purpose="mine") as holder:
        assert holder.pid == os.getpid()


def test_waiting_ends_when_the_holder_does(tmp_path: Path) -> None:
    other = child(tmp_path)
    said: list[str] = []
    timer = threading.Timer(0.5, lambda: other.communicate())
    timer.start()

    started = time.monotonic()
    with FileLocks(tmp_path).hold(NAME, purpose="mine", wait_seconds=30, log=said.append):
        waited = time.monotonic() - started
    timer.join()

    assert 0.3 < waited < 10
    assert len(said) == 1
    assert said[0].startswith(f"waiting for {NAME}, held by process {other.pid}")


def test_waiting_has_an_end(tmp_path: Path) -> None:
    with FileLocks(tmp_path).hold(NAME, purpose="first"):
        started = time.monotonic()
        with (
            pytest.raises(LockHeldError, match=r"after 0.4 s"),
            FileLocks(tmp_path).hold(NAME, purpose="second", wait_seconds=0.4),
        ):
            pytest.fail("both hold it")
        assert 0.4 <= time.monotonic() - started < 2


def test_the_lock_of_a_killed_holder_is_taken_over_with_a_word(tmp_path: Path) -> None:
    other = child(tmp_path)
    other.send_signal(signal.SIGKILL)
    other.wait()
    other.communicate()
    said: list[str] = []

    assert FileLocks(tmp_path).holder(NAME) is None
    with FileLocks(tmp_path).hold(NAME, purpose="mine", log=said.append):
        pass
    with FileLocks(tmp_path).hold(NAME, purpose="mine", log=said.append):
        pass

    assert len(said) == 1
    assert said[0].startswith(f"took over {NAME} from process {other.pid}")


def most_inside(
    hold: Callable[[str], AbstractContextManager[Any]], threads: int, times: int, seconds: float
) -> list[int]:
    """How many of several threads held the lock at once, looked at each time that one has it."""
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        for _ in range(times):
            with hold(f"thread {number}"):
                inside.append(number)
                most.append(len(inside))
                time.sleep(seconds)
                inside.remove(number)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return most


def test_threads_of_one_process_take_turns(tmp_path: Path) -> None:
    def hold(purpose: str) -> AbstractContextManager[Any]:
        return FileLocks(tmp_path).hold(NAME, purpose=purpose, wait_seconds=60)

    assert most_inside(hold, threads=3, times=5, seconds=0.002) == [1] * 15


def test_the_same_thread_cannot_hold_it_twice(tmp_path: Path) -> None:
    with (
        FileLocks(tmp_path).hold(NAME, purpose="outer"),
        pytest.raises(LockHeldError, match="outer"),
        FileLocks(tmp_path).hold(NAME, purpose="inner"),
    ):
        pytest.fail("it is held twice")


def test_different_names_do_not_meet(tmp_path: Path) -> None:
    with FileLocks(tmp_path).hold("worker_1", purpose="a"), FileLocks(tmp_path).hold("worker_2", purpose="b"):
        assert FileLocks(tmp_path).holder("worker_3") is None


def test_a_fault_in_the_block_frees_the_lock(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), FileLocks(tmp_path).hold(NAME, purpose="a"):
        raise ZeroDivisionError
    with FileLocks(tmp_path).hold(NAME, purpose="b"):
        pass
    assert FileLocks(tmp_path).holder(NAME) is None


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b'{"pid": "x"}', b"\xff\xfe\x00", b"[" * 5000])
def test_a_damaged_note_about_the_holder_does_no_harm(tmp_path: Path, damage: bytes) -> None:
    with FileLocks(tmp_path).hold(NAME, purpose="first"):
        sidecar = next(tmp_path.glob("*.holder.json"))
        sidecar.write_bytes(damage)
        with pytest.raises(LockHeldError, match="another process"), FileLocks(tmp_path).hold(NAME, purpose="second"):
            pytest.fail("both hold it")
        assert FileLocks(tmp_path).holder(NAME) is None


@given(st.binary(max_size=200))
def test_any_note_is_a_holder_or_nothing(text: bytes) -> None:
    found = Holder.from_json(text)

    assert found is None or str(found).isprintable()


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=50), st.text("abc123", max_size=20))
def test_a_holder_survives_its_file(purpose: str, run_id: str) -> None:
    holder = Holder.here(purpose, run_id)

    assert Holder.from_json(holder.model_dump_json()) == holder


def test_a_place_without_room_for_locks_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StorageError, match="cannot lock"), FileLocks(tmp_path / "file").hold(NAME, purpose="a"):
        pytest.fail("there is no directory")


# --- leases in a shared store, whose faults the test decides --------------------------------------------------------


class Faulty(FileStore):
    """A shared store that can be away."""

    away = False

    def edit(self, key: str, edit: Edit[T]) -> T:
        if self.away:
            raise StoreBusyError("the store does not answer")
        while True:
            try:
                return super().edit(key, edit)
            except StoreBusyError:  # the other thread's turn
                time.sleep(0.001)


@pytest.fixture
def store(tmp_path: Path) -> Faulty:
    return Faulty(tmp_path / "store.sqlite")


def shared(store: Faulty, runtime_dir: str = "s3://b/p", lifetime: float = 0.6, **options: Any) -> SharedLocks:
    return SharedLocks(store, runtime_dir, lifetime=lifetime, **options)


def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread does; ten seconds, however busy the machine is."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_lease_is_renewed_while_it_is_held_and_given_back(store: Faulty) -> None:
    with shared(store).hold("w", purpose="test") as mine:
        time.sleep(1.5)
        assert shared(store).holder("w") == mine
        with pytest.raises(LockHeldError, match="test"), shared(store).hold("w", purpose="second"):
            pytest.fail("both hold it")
    assert shared(store).holder("w") is None


def test_leases_of_other_runtime_locations_and_names_do_not_meet(
    store: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        shared(store).hold("w", purpose="a"),
        shared(store).hold("v", purpose="b"),
        shared(store, "s3://b/q/").hold("w", purpose="c"),
        shared(store, "runtime").hold("w", purpose="d"),
    ):
        assert shared(store, "s3://b/q").holder("w") is not None
        assert shared(store, str(tmp_path / "runtime")).holder("w") is not None


def test_threads_take_turns_at_a_lease(store: Faulty) -> None:
    def hold(purpose: str) -> AbstractContextManager[Any]:
        return shared(store, lifetime=30).hold("w", purpose=purpose, wait_seconds=60)

    assert most_inside(hold, threads=6, times=1, seconds=0.02) == [1] * 6


def take_away(store: Faulty, runtime_dir: str = "s3://b/p") -> None:
    """As if this process had been suspended for longer than the lifetime, and somebody else had taken the lock."""
    store.edit(shared(store, runtime_dir)._key("w"), lambda _text, _now: ("", None))


@pytest.mark.parametrize("fault", [None, ZeroDivisionError])
def test_a_lost_lease_asks_the_process_to_stop_and_fails_the_block(
    store: Faulty, monkeypatch: pytest.MonkeyPatch, fault: type[Exception] | None
) -> None:
    sent: list[int] = []
    monkeypatch.setattr("payout_pipeline.locks_shared.os.kill", lambda _pid, number: sent.append(number))
    with (  # noqa: PT012 - the fault belongs to the end of the block
        pytest.raises(
            fault or LockLostError, match=None if fault else "'w': it was taken away.*start the worker again"
        ),
        shared(store).hold("w", purpose="test"),
    ):
        take_away(store)
        until(lambda: sent)
        if fault is not None:
            raise fault
    assert sent == [signal.SIGTERM]


@pytest.mark.slow
def test_a_store_that_is_away_for_a_moment_costs_nothing_and_for_longer_costs_the_lease_in_time(store: Faulty) -> None:
    lost: list[str] = []
    locks = shared(store, lifetime=3, on_lost=lost.append)
    with pytest.raises(LockLostError, match="could not be renewed"), locks.hold("w", purpose="test"):  # noqa: PT012
        store.away = True
        time.sleep(0.8)
        store.away = False
        time.sleep(1)
        assert not lost
        store.away = True
        since = time.monotonic()
        assert locks.holder("w") is None  # a display outlives an outage
        until(lambda: lost)
        assert time.monotonic() - since < 3  # known before the store could give it to somebody else
        store.away = False
