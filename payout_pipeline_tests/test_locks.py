"""Locks: one holder per name, named to those who wait, and gone with its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payout_pipeline import locks
from payout_pipeline.errors import ConfigurationError, LockHeldError, StorageError
from payout_pipeline.locks import FileLocks, Holder, hold, open_locks, register_locks

NAME = "goldsky_payouts/worker_1_of_4"

_CHILD = """
import sys
from pathlib import Path
from payout_pipeline.locks import hold
with hold(sys.argv[2], directory=Path(sys.argv[1]), purpose="the child's work", run_id="run-7"):
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
        with pytest.raises(LockHeldError) as caught, hold(NAME, directory=tmp_path, purpose="mine"):
            pytest.fail("both hold it")
        assert f"process {other.pid}" in str(caught.value)
        assert "run run-7" in str(caught.value)
        assert "the child's work" in str(caught.value)
        assert FileLocks(tmp_path).holder(NAME) is not None
    finally:
        other.communicate()
    with hold(NAME, directory=tmp_path, purpose="mine") as holder:
        assert holder.pid == os.getpid()


def test_waiting_ends_when_the_holder_does(tmp_path: Path) -> None:
    other = child(tmp_path)
    said: list[str] = []
    timer = threading.Timer(0.5, lambda: other.communicate())
    timer.start()

    started = time.monotonic()
    with hold(NAME, directory=tmp_path, purpose="mine", wait_seconds=30, log=said.append):
        waited = time.monotonic() - started
    timer.join()

    assert 0.3 < waited < 10
    assert len(said) == 1
    assert said[0].startswith(f"waiting for {NAME}, held by process {other.pid}")


def test_waiting_has_an_end(tmp_path: Path) -> None:
    with hold(NAME, directory=tmp_path, purpose="first"):
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
    with hold(NAME, directory=tmp_path, purpose="mine", log=said.append):
        pass
    with hold(NAME, directory=tmp_path, purpose="mine", log=said.append):
        pass

    assert len(said) == 1
    assert said[0].startswith(f"took over {NAME} from process {other.pid}")


def test_threads_of_one_process_take_turns(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        for _ in range(5):
            with hold(NAME, directory=tmp_path, purpose=f"thread {number}", wait_seconds=60):
                inside.append(number)
                most.append(len(inside))
                time.sleep(0.002)
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert most == [1] * 15


def test_the_same_thread_cannot_hold_it_twice(tmp_path: Path) -> None:
    with (
        hold(NAME, directory=tmp_path, purpose="outer"),
        pytest.raises(LockHeldError, match="outer"),
        hold(NAME, directory=tmp_path, purpose="inner"),
    ):
        pytest.fail("it is held twice")


def test_different_names_do_not_meet(tmp_path: Path) -> None:
    with hold("worker_1", directory=tmp_path, purpose="a"), hold("worker_2", directory=tmp_path, purpose="b"):
        assert FileLocks(tmp_path).holder("worker_3") is None


def test_a_fault_in_the_block_frees_the_lock(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), hold(NAME, directory=tmp_path, purpose="a"):
        raise ZeroDivisionError
    with hold(NAME, directory=tmp_path, purpose="b"):
        pass
    assert FileLocks(tmp_path).holder(NAME) is None


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b'{"pid": "x"}', b"\xff\xfe\x00", b"[" * 5000])
def test_a_damaged_note_about_the_holder_does_no_harm(tmp_path: Path, damage: bytes) -> None:
    with hold(NAME, directory=tmp_path, purpose="first"):
        sidecar = next(tmp_path.glob("*.holder.json"))
        sidecar.write_bytes(damage)
        with pytest.raises(LockHeldError, match="another process"), hold(NAME, directory=tmp_path, purpose="second"):
            pytest.fail("both hold it")
        assert FileLocks(tmp_path).holder(NAME) is None


@given(st.binary(max_size=200))
def test_any_note_is_a_holder_or_nothing(text: bytes) -> None:
    found = Holder.from_json(text)

    assert found is None or str(found).isprintable()


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=50), st.text("abc123", max_size=20))
def test_a_holder_survives_its_file(purpose: str, run_id: str) -> None:
    holder = Holder.here(purpose, run_id)

    assert Holder.from_json(holder.to_json()) == holder


def test_a_place_without_room_for_locks_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StorageError, match="cannot lock"), hold(NAME, directory=tmp_path / "file", purpose="a"):
        pytest.fail("there is no directory")


def test_a_shared_service_can_be_plugged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_FACTORIES", {})
    asked: list[str] = []

    def service(url: str) -> FileLocks:
        asked.append(url)
        return FileLocks(tmp_path / "service")

    register_locks("redis", service)

    with open_locks(tmp_path, "redis://host/0").hold("name", purpose="x"):
        assert (tmp_path / "service").is_dir()
    assert asked == ["redis://host/0"]
    assert isinstance(open_locks(tmp_path), FileLocks)
    with pytest.raises(ConfigurationError, match="'amqp'; locks are known for: redis"):
        open_locks(tmp_path, "amqp://user:secret@host")
