"""The embedded engine: processes take turns, a killed one never blocks, a forked one never shares."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from payout_pipeline.errors import ConfigurationError, StorageError, WarehousePermanentError, WarehouseUnavailableError
from payout_pipeline.settings import load_settings
from payout_pipeline.warehouse.client import Warehouse
from payout_pipeline_tests.running import REPOSITORY

ROOT = REPOSITORY
PREAMBLE = """
import os, sys, time
from payout_pipeline.settings import load_settings
from payout_pipeline.warehouse.client import Warehouse
def warehouse(runtime, wait=30):
    return Warehouse(load_settings({}, runtime_dir=runtime, clickhouse_wait_seconds=wait))
def say(*words):
    print(*words, flush=True)
runtime = sys.argv[1]
"""


def start(code: str, runtime: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(code), str(runtime)],
        stdout=subprocess.PIPE,  # alone: without cgroups chDB complains on the error output
        text=True,
        cwd=ROOT,
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def warehouse(runtime: Path, wait: float = 30) -> Warehouse:
    return Warehouse(load_settings({}, runtime_dir=str(runtime), clickhouse_wait_seconds=wait))


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    return tmp_path / "runtime"


HOLD = """
with warehouse(runtime).session("holding on") as session:
    session.command("CREATE TABLE IF NOT EXISTS t (n UInt64) ENGINE = MergeTree ORDER BY n", doing="test")
    session.command("INSERT INTO t VALUES (1)", doing="test")
    say("open")
    time.sleep(float(sys.argv[2]) if len(sys.argv) > 2 else 60)
"""


def test_a_waiter_gives_up_at_its_deadline_and_names_the_holder(runtime: Path) -> None:
    holder = start(HOLD, runtime)
    try:
        assert line(holder) == "open"
        started = time.monotonic()
        with pytest.raises(WarehouseUnavailableError) as caught, warehouse(runtime, wait=1).session("counting"):
            pass
        assert 0.9 < time.monotonic() - started < 3
        assert f"process {holder.pid} on" in str(caught.value)
        assert "(holding on" in str(caught.value)
    finally:
        holder.kill()
        holder.wait()


def test_b1_a_killed_holder_gives_the_turn_away_and_what_it_wrote_is_there(runtime: Path) -> None:
    holder = start(HOLD, runtime)
    assert line(holder) == "open"
    threading.Timer(0.3, holder.kill).start()
    with warehouse(runtime).session("after the kill") as session:
        assert session.scalar("SELECT sum(n) FROM t", doing="reading") == 1
    holder.wait()


def test_a_turn_is_over_with_its_session_and_can_be_had_again(runtime: Path) -> None:
    ours = warehouse(runtime)
    with ours.session("first") as session:
        session.command("CREATE TABLE t (n UInt64) ENGINE = MergeTree ORDER BY n", doing="test")
    second = start(
        """
        started = time.monotonic()
        with warehouse(runtime).session("second") as session:
            say(f"{time.monotonic() - started:.2f}")
            session.command("INSERT INTO t VALUES (2)", doing="test")
        """,
        runtime,
    )
    waited = float(line(second))
    second.wait(20)
    assert waited < 5  # opening costs half a second, importing chdb another; the turn itself at most a poll
    with ours.session("again") as session:
        assert session.scalar("SELECT sum(n) FROM t", doing="reading") == 2


def test_a_process_that_asks_again_and_again_does_not_starve_another(runtime: Path) -> None:
    greedy = start(
        """
        say("go")
        until = time.monotonic() + 25
        while time.monotonic() < until:
            with warehouse(runtime).session("greedy") as session:
                session.scalar("SELECT 1", doing="test")
        """,
        runtime,
    )
    try:
        assert line(greedy) == "go"
        time.sleep(1)
        with warehouse(runtime, wait=15).session("modest") as session:
            assert session.scalar("SELECT 2", doing="reading") == 2
    finally:
        greedy.kill()
        greedy.wait()


@pytest.mark.slow
def test_processes_that_all_write_at_once_lose_nothing(runtime: Path) -> None:
    with warehouse(runtime).session("create") as session:
        session.command("CREATE TABLE t (n UInt64) ENGINE = MergeTree ORDER BY n", doing="test")
    writers = [
        start(
            """
            for n in range(5):
                with warehouse(runtime, 60).session("write") as session:
                    session.command("INSERT INTO t VALUES (1)", doing="test")
            """,
            runtime,
        )
        for _ in range(3)
    ]
    for writer in writers:
        out, _ = writer.communicate(timeout=90)
        assert writer.returncode == 0, out
    with warehouse(runtime).session("count") as session:
        assert session.scalar("SELECT count() FROM t", doing="reading") == 15


@pytest.mark.slow
def test_b1_killed_at_random_points_of_writing_the_database_opens_again_with_whole_blocks(runtime: Path) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(4):
        writer = start(
            """
            with warehouse(runtime).session("write") as session:
                session.command("CREATE TABLE IF NOT EXISTS t (n UInt64) ENGINE = MergeTree ORDER BY n", doing="test")
                say("open")
                while True:
                    session.command("INSERT INTO t SELECT number FROM numbers(1000)", doing="test")
            """,
            runtime,
        )
        assert line(writer) == "open"
        time.sleep(chance.uniform(0.0, 0.4))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    with warehouse(runtime).session("count") as session:
        assert session.scalar("SELECT count() % 1000 FROM t", doing="reading") == 0


def test_threads_share_the_engine_and_sessions_nest(runtime: Path) -> None:
    ours = warehouse(runtime)
    results: list[int] = []

    def count() -> None:
        with ours.session("thread") as session:
            results.append(session.scalar("SELECT 1", doing="reading"))

    with ours.session("outer"):
        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        with ours.session("inner") as session:
            results.append(session.scalar("SELECT 1", doing="reading"))
    assert results == [1] * 5


def test_a_process_can_go_from_one_directory_to_another(runtime: Path, tmp_path: Path) -> None:
    for number, place in enumerate((runtime, tmp_path / "b", runtime)):
        with warehouse(place).session("here") as session:
            session.command("CREATE TABLE IF NOT EXISTS t (n UInt8) ENGINE = MergeTree ORDER BY n", doing="test")
            assert session.scalar("SELECT count() FROM t", doing="reading") == (1 if number == 2 else 0)
            session.command("INSERT INTO t VALUES (1)", doing="test")
    with (
        warehouse(runtime).session("one"),
        pytest.raises(WarehouseUnavailableError, match="one directory"),
        warehouse(tmp_path / "b", wait=0.2).session("two"),
    ):
        pass


def test_a_process_forked_from_one_that_had_the_engine_open_refuses_instead_of_hanging(runtime: Path) -> None:
    parent = start(
        """
        ours = warehouse(runtime)
        with ours.session("parent"):
            pass
        child = os.fork()
        if child == 0:
            try:
                with ours.session("child"):
                    say("child used it")
            except Exception as error:
                say(type(error).__name__, "fork" in str(error))
            os._exit(3)
        say("child ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
        runtime,
    )
    out, _ = parent.communicate(timeout=30)
    assert out.split("\n")[:2] == ["WarehousePermanentError True", "child ended 3"], out


@pytest.mark.slow
def test_a_program_that_does_not_take_turns_is_an_error_that_says_so(runtime: Path) -> None:
    with warehouse(runtime).session("create"):
        pass
    script = "import chdb, sys, time; c = chdb.connect(sys.argv[1]); print(1, flush=True); time.sleep(60)"
    foreign = subprocess.Popen(
        [sys.executable, "-c", script, str(runtime / "clickhouse")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert line(foreign) == "1"
        with pytest.raises(WarehousePermanentError, match="takes no turns"), warehouse(runtime).session("ours"):
            pass
    finally:
        foreign.kill()
        foreign.wait()


def test_a_signal_ends_a_process_that_has_the_engine_open(runtime: Path) -> None:
    # What a shell starts in the background, this test too, ignores SIGINT, and so does everything below it.
    as_in_the_foreground = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    for number in (signal.SIGTERM, signal.SIGINT):
        holder = start(as_in_the_foreground + HOLD, runtime)
        assert line(holder) == "open"
        holder.send_signal(number)
        assert holder.wait(20) != 0
    with warehouse(runtime).session("after") as session:
        assert session.scalar("SELECT count() FROM t", doing="reading") == 2


def test_d2_a_runtime_directory_that_cannot_be_made_is_said_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match="file/runtime/clickhouse"),
        warehouse(tmp_path / "file" / "runtime").session("x"),
    ):
        pass


def test_a_remote_runtime_directory_needs_a_server() -> None:
    settings = load_settings({}, runtime_dir="s3://bucket/prefix")
    with pytest.raises(ConfigurationError, match="CLICKHOUSE_HOST"):
        Warehouse(settings)


@pytest.mark.slow
def test_b1_a_load_killed_at_random_points_and_repeated_stores_every_row_once(runtime: Path) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    load = """
        from payout_pipeline.warehouse.identifiers import QualifiedName
        from payout_pipeline.verification.resolutions_external_ingest import compare_stored as compare_rows
        from payout_pipeline.warehouse.load import load_rows
        from payout_pipeline.warehouse.target import ensure_target
        from payout_pipeline_tests.warehouse_fixtures import ledger, resolved
        rows = [resolved(n, 0, 1) for n in range(20_000)]
        import payout_pipeline.warehouse.load as loading
        loading.SLICE_ROWS = 1_000
        batches = [b for n in range(0, 20_000, 1_000) for b in ledger(*rows[n : n + 1_000])]
        with warehouse(runtime).session("load") as session:
            target = ensure_target(session, QualifiedName("default", "t"))
            say("open")
            for batch in batches:
                load_rows(session, target, [batch])
            say("done", compare_rows(session, target, batches).ok)
            say(session.rows("SELECT count() AS a, uniqExact(condition_id) AS b FROM default.t", doing="counting"))
    """
    for _ in range(3):
        process = start(load, runtime)
        assert line(process) == "open"
        time.sleep(chance.uniform(0.0, 1.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = start(load, runtime)
    out, _ = process.communicate(timeout=90)
    assert out.split("\n")[:3] == ["open", "done True", "[{'a': 20000, 'b': 20000}]"], out


def test_d1_a_full_disk_is_said_with_its_path_and_the_load_works_after_space_is_freed(tmp_path: Path) -> None:
    from payout_pipeline.verification.resolutions_external_ingest import compare_stored as compare_rows
    from payout_pipeline.warehouse.identifiers import QualifiedName
    from payout_pipeline.warehouse.load import load_rows
    from payout_pipeline.warehouse.target import ensure_target
    from payout_pipeline_tests.warehouse_fixtures import ledger, resolved

    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    rows = ledger(*(resolved(n, 0, 1) for n in range(20_000)))
    try:
        with warehouse(disk / "runtime", wait=5).session("load") as session:
            target = ensure_target(session, QualifiedName("default", "t"))
            free = os.statvfs(disk)
            (disk / "filler").write_bytes(b"x" * (free.f_bavail * free.f_frsize - 600_000))
            with pytest.raises(StorageError) as caught:
                load_rows(session, target, rows)
            assert str(disk) in str(caught.value)
            assert "free some space" in str(caught.value)
            (disk / "filler").unlink()
            assert load_rows(session, target, rows).verified == 20_000
            assert compare_rows(session, target, rows).ok
            assert session.scalar("SELECT count() FROM default.t", doing="counting") == 20_000
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
