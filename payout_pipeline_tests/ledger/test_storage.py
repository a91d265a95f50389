"""Files under the runtime directory: whole or not there, locally and at a remote place."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from payout_pipeline import storage
from payout_pipeline.errors import ConfigurationError, StorageError
from payout_pipeline.storage import Store, join, open_store, process_is_alive

_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """A bucket at an S3 stand-in, where its packages are installed."""
    server_module = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("payouts")
        yield "s3://payouts"
    server.stop()


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(tmp_path / "runtime")
    if request.param == "s3":
        return open_store(f"{request.getfixturevalue('bucket')}/{next(_NUMBERS)}/runtime")
    return open_store(f"memory://bucket-{os.getpid()}-{next(_NUMBERS)}/runtime")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not allow mounting")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_what_is_written_is_read_back_as_a_whole(store: Store) -> None:
    store.write("a/b.json", b"one")
    store.write("a/b.json", b"two")
    store.write("a/c.bin", memoryview(b"123"))

    assert (store.read("a/b.json"), store.read("a/c.bin"), store.size("a/c.bin")) == (b"two", b"123", 3)
    assert (store.names(), store.names("a"), store.names("nowhere")) == (["a"], ["b.json", "c.bin"], [])
    assert (store.exists("a"), store.exists("a/b.json"), store.exists("b")) == (True, True, False)
    with store.reading("a/c.bin") as file:
        file.seek(-2, 2)
        assert file.read() == b"23"


def test_what_is_not_there_is_said_plainly(store: Store) -> None:
    store.check_writable()
    for function in (store.read, store.reading, store.size):
        with pytest.raises(FileNotFoundError):
            function("nothing")
    with pytest.raises(FileNotFoundError):
        store.move("nothing", "elsewhere")
    store.delete("nothing")
    assert store.names() == []


def test_lines_are_appended(store: Store) -> None:
    store.append("log", b"1\n")
    store.append("log", b"2\n")

    assert store.read("log") == b"1\n2\n"


def test_files_and_directories_are_moved_and_removed(store: Store) -> None:
    store.write("run/one", b"1")
    store.write("run/sub/two", b"2")

    store.move("run", "aside/run.1")
    assert (store.names(), store.names("aside/run.1"), store.read("aside/run.1/sub/two")) == (
        ["aside"],
        ["one", "sub"],
        b"2",
    )
    store.delete("aside")
    assert store.names() == []


def test_a_damaged_file_is_kept_under_a_name_that_says_so(store: Store) -> None:
    store.write("a/state.json", b"?")

    kept = store.set_aside("a/state.json")

    assert re.fullmatch(r"a/state\.json\.corrupt-\d{8}T\d{6}\.\d{6}Z", kept)
    assert store.read(kept) == b"?"
    assert store.names("a") == [kept.removeprefix("a/")]


@pytest.mark.parametrize("key", ["../x", "/etc/passwd", "a/../../x", "a\\b", "./a"])
def test_a_key_cannot_leave_the_root(store: Store, key: str) -> None:
    with pytest.raises(ValueError, match="is no key"):
        store.write(key, b"")


def test_checking_leaves_nothing_behind(store: Store) -> None:
    store.check_writable()

    assert store.names() == []


def test_parts_of_a_key_are_joined() -> None:
    assert (join("a", "", "b/", "c"), join("", "")) == ("a/b/c", "")


def test_a_location_may_be_a_path_a_file_url_or_a_remote_url(tmp_path: Path) -> None:
    open_store(f"file://{tmp_path}/x").write("k", b"1")

    assert (tmp_path / "x" / "k").read_bytes() == b"1"
    assert open_store("memory://b/x").describe("k") == "memory://b/x/k"
    assert open_store(tmp_path).is_local
    assert not open_store("memory://b/x").is_local
    with pytest.raises(ConfigurationError, match="nosuch://"):
        open_store("nosuch://bucket/x")


# ------------------------------------------------------------------------------------------------- bad places


def test_a_bucket_that_does_not_exist_is_said_and_not_made(bucket: str) -> None:
    for _ in range(2):
        with pytest.raises(StorageError, match="the bucket or directory is missing"):
            open_store(f"{bucket}-misspelt/runtime").check_writable()


def test_a_full_disk_names_path_need_and_free_space_and_works_again_when_there_is_room(small_disk: Path) -> None:
    store = open_store(small_disk)
    store.write("kept", b"k" * 1000)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 200_000)

    with pytest.raises(StorageError) as caught:
        store.write("a/ledger.parquet", b"y" * 100_000)

    message = str(caught.value)
    assert str(small_disk / "a" / "ledger.parquet") in message
    assert "100,000 bytes are needed" in message
    assert re.search(r"[\d,]+ bytes are free", message)
    assert "PAYOUT_RUNTIME_DIR" in message
    assert sorted(str(path.relative_to(small_disk)) for path in small_disk.rglob("*")) == ["a", "ballast", "kept"]
    ballast.unlink()
    store.write("a/ledger.parquet", b"y" * 100_000)
    assert store.size("a/ledger.parquet") == 100_000


def test_a_read_only_file_system_is_said_before_anything_is_done(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)

    with pytest.raises(StorageError, match=r"Read-only file system; give this user the right"):
        open_store(small_disk / "runtime").check_writable()


def test_a_file_in_the_way_of_the_directory_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    with pytest.raises(StorageError, match="cannot write"):
        open_store(tmp_path / "file" / "runtime").check_writable()


@pytest.mark.parametrize("number", [errno.EIO, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOSPC])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_fault_at_the_last_step_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    store = open_store(tmp_path)
    store.write("state", b"old")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    target = (storage.os, "fsync") if call == "fsync" else (Path, "replace")
    monkeypatch.setattr(*target, fail)
    with pytest.raises(StorageError, match=os.strerror(number)) as caught:
        store.write("state", b"new")
    monkeypatch.undo()

    assert str(tmp_path / "state") in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert store.read("state") == b"old"


def test_the_content_is_on_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    real_sync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        steps.append("directory" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "file")
        real_sync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return real_replace(self, target)

    monkeypatch.setattr(storage.os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)

    open_store(tmp_path).write("state", b"new")

    assert steps == ["file", "rename", "directory"]


# ------------------------------------------------------------------------------------------------- dead writers

_WRITER = """
import os, sys, time
from payout_pipeline.storage import open_store
os.fsync = lambda _: (print("ready", flush=True), time.sleep(60))
open_store(sys.argv[1]).write("big", b"half")
"""


def test_a_killed_writer_leaves_no_name_and_its_remains_are_removed(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"ready\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    store = open_store(tmp_path)

    assert len(list(tmp_path.iterdir())) == 1
    assert store.names() == []
    assert not store.exists("big")
    store.clean("")
    assert list(tmp_path.iterdir()) == []


def test_a_process_is_alive_or_not() -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()

    assert process_is_alive(os.getpid())
    assert process_is_alive(1)
    assert not process_is_alive(done.pid)
    assert not process_is_alive(0)
    assert not process_is_alive(-1)
    assert not process_is_alive(2**70)
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nothing has reaped it
    assert not process_is_alive(zombie.pid)
    zombie.wait()


def test_readers_see_the_old_or_the_new_file_and_nothing_between(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    contents = [bytes([letter]) * 50_000 for letter in b"abcd"]
    store.write("state", contents[0])
    stop = time.monotonic() + 0.7
    seen: set[bytes] = set()
    faults: list[BaseException] = []

    def read() -> None:
        try:
            while time.monotonic() < stop:
                seen.add(store.read("state"))
        except BaseException as error:
            faults.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    while time.monotonic() < stop:
        for content in contents:
            store.write("state", content)
    reader.join()

    assert faults == []
    assert seen <= set(contents)


def test_lines_appended_by_threads_do_not_mix(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    threads = [
        threading.Thread(target=lambda letter=letter: [store.append("log", letter * 99 + b"\n") for _ in range(50)])
        for letter in (b"a", b"b", b"c")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    lines = store.read("log").splitlines()
    assert sorted(lines) == [letter * 99 for letter in (b"a", b"b", b"c") for _ in range(50)]


def test_a_store_stays_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("runtime")
    monkeypatch.chdir("/")
    store.write("k", b"1")

    assert (tmp_path / "runtime" / "k").read_bytes() == b"1"
    assert store.describe("k") == str(tmp_path / "runtime" / "k")
