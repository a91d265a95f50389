"""Dagster's own storage as the pipeline keeps it: under the runtime directory, with one engine a database file."""

# No `from __future__ import annotations`: Dagster compares annotations with its own classes.
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage

from payout_pipeline import instance as own
from payout_pipeline.instance import RuntimeEvents

REPOSITORY = Path(__file__).resolve().parent.parent


@dg.asset
def noted(context) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Says something and has metadata."""
    context.log.info("a word")
    return dg.MaterializeResult(metadata={"rows": 3})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DAGSTER_HOME", str(REPOSITORY))
    monkeypatch.setenv("PAYOUT_RUNTIME_DIR", str(tmp_path / "runtime"))
    return tmp_path / "runtime" / "dagster"


def test_what_is_stored_is_what_dagsters_own_storage_reads(home: Path) -> None:
    with dg.DagsterInstance.get() as instance:
        assert isinstance(instance.event_log_storage, RuntimeEvents)
        result = dg.materialize([noted], instance=instance)
        kept = [
            (r.dagster_event.event_type_value if r.dagster_event else r.message)
            for r in instance.all_logs(result.run_id)
        ]
    plain = SqliteEventLogStorage(str(home / "history" / "runs"))
    read = [
        (
            r.event_log_entry.dagster_event.event_type_value
            if r.event_log_entry.dagster_event
            else r.event_log_entry.user_message
        )
        for r in plain.get_records_for_run(result.run_id, limit=10_000).records
    ]
    assert sorted(map(str, read)) == sorted(map(str, kept))
    assert "STEP_SUCCESS" in read
    materialization = plain.get_latest_materialization_events([dg.AssetKey("noted")])[dg.AssetKey("noted")]
    assert materialization is not None
    assert materialization.asset_materialization is not None
    assert materialization.asset_materialization.metadata["rows"].value == 3


def test_the_events_of_a_run_go_through_one_engine(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    original = own.create_engine

    def counting(url: str, **arguments: object) -> object:
        made.append(url)
        return original(url, **arguments)

    monkeypatch.setattr(own, "create_engine", counting)
    with dg.DagsterInstance.get() as instance:
        dg.materialize([noted], instance=instance)
        dg.materialize([noted], instance=instance)
    assert len(made) == len(set(made)) == 4, "the table of runs, the index and two runs"


def test_the_engines_of_many_runs_are_not_all_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "_KEPT_ENGINES", 2)
    with dg.DagsterInstance.get() as instance:
        runs = [dg.materialize([noted], instance=instance).run_id for _ in range(4)]
        events = instance.event_log_storage
        assert isinstance(events, RuntimeEvents)
        assert len(events._files._engines) <= 2
        assert all(instance.all_logs(run) for run in runs), "a run whose engine went is read with a new one"


def test_what_is_loaded_before_the_fork_starts_no_engine_and_no_threads_of_its_own(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "import numpy, pyarrow\n"
        "before = len(os.listdir('/proc/self/task')) if sys.platform == 'linux' else 0\n"
        "from payout_pipeline.backfill import _import_once\n"
        "from payout_pipeline.settings import load_settings\n"
        "_import_once(load_settings())\n"
        "after = len(os.listdir('/proc/self/task')) if sys.platform == 'linux' else 0\n"
        "assert 'chdb' not in sys.modules, 'chdb was loaded in the parent'\n"
        "assert after == before, f'{after - before} threads were started'\n"
        "missing = [n for n in ('payout_pipeline.fetch', 'pandas', 'pyarrow.parquet') if n not in sys.modules]\n"
        "assert not missing, missing\n"
    )
    env = {
        key: value for key, value in os.environ.items() if not key.startswith(("PAYOUT_", "GOLDSKY_", "CLICKHOUSE_"))
    }
    env |= {"PAYOUT_RUNTIME_DIR": str(tmp_path / "runtime"), "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr


def test_events_of_a_process_and_of_one_forked_from_it_are_all_stored(home: Path) -> None:
    with dg.DagsterInstance.get() as instance:
        runs = [dg.materialize([noted], instance=instance).run_id]
        child = os.fork()
        if child == 0:
            try:
                dg.materialize([noted], instance=instance, run_config={}, tags={"by": "child"})
                os._exit(0)
            except BaseException:
                os._exit(1)
        runs.append(dg.materialize([noted], instance=instance).run_id)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        seen = {run.run_id: run.tags.get("by") for run in instance.get_runs()}
        assert set(runs) < set(seen)
        assert sorted(map(str, seen.values())) == ["None", "None", "child"]
        for run in seen:
            assert any(e.dagster_event and e.dagster_event.is_step_success for e in instance.all_logs(run)), run


def test_a_connection_is_closed_before_a_fork_and_a_file_that_was_removed_gets_a_new_engine(tmp_path: Path) -> None:
    path = tmp_path / "some.db"
    files = own.KeptConnections()
    engine, is_new = files.engine(str(path), f"sqlite:///{path}")
    assert is_new
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x INTEGER)")
    files.note(str(path))
    assert files.engine(str(path), f"sqlite:///{path}") == (engine, False)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        held = [str(entry.resolve()) for entry in Path("/proc/self/fd").iterdir()]
        os.write(write, b"open" if str(path) in held else b"none")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 10) == b"none"
    path.unlink()
    other, is_new = files.engine(str(path), f"sqlite:///{path}")
    assert is_new
    assert other is not engine
