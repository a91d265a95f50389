"""``payout-pipeline backfill``: all workers through Dagster, each run in a process of its own, then the view.

The parent imports everything once and forks a child a worker, so that a run costs no start-up of Python and Dagster;
what the runs do is in the instance of the UI. The parent itself only watches: it reads the same files as ``status``.
Where forking is not safe (macOS), children are spawned instead, at the price of their imports.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import importlib
import json
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from payout_pipeline.errors import PayoutPipelineError
from payout_pipeline.scrub import scrub
from payout_pipeline.settings import Settings
from payout_pipeline.signals import StopRequest, stop_on_signals

if TYPE_CHECKING:
    import dagster as dg
    from rich.console import Console

WORKER_JOB = "goldsky_backfill"
VIEW_JOB = "truth_view"
VIEW = "vw_resolutions_truth"
_PREPARE = "the target table"  # no run of Dagster: what every worker would look at before its first request
#: Which backfill is going, under the runtime directory; there only until its view is built.
RECORD_FILE = "backfill.json"
#: A child that was asked to stop has this long to keep its finished work before it is killed.
STOP_GRACE_SECONDS = 25.0
_POLL_SECONDS = 0.1
_WARM_AFTER_SECONDS = 3.0  # when the workers have begun and wait for the rate limit
#: What a run of a worker or of the view imports on its way.
_SHARED_MODULES = (
    "aiohttp",
    "clickhouse_connect",
    "gql.transport.aiohttp",
    "orjson",
    "pyarrow.acero",
    "pyarrow.compute",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "tenacity.asyncio",
    "dagster._core.execution.execute_in_process",
    "dagster._core.execution.plan.active",
    "dagster._core.executor.in_process",
    "dagster._core.instance.factory",
    "dagster._core.storage.noop_compute_log_manager",
    "payout_pipeline.checks.fetched",
    "payout_pipeline.checks.stored",
    "payout_pipeline.checks.view",
    "payout_pipeline.definitions",
    "payout_pipeline.fetch",
    "payout_pipeline.goldsky.client",
    "payout_pipeline.ingest",
    "payout_pipeline.truth",
    "payout_pipeline.warehouse.load",
    "payout_pipeline.warehouse.queries",
    "payout_pipeline.warehouse.view",
)
_SHARED_IF_EMBEDDED = ("pandas", "fsspec", "upath")
_instance: dg.DagsterInstance | None = None
_PROGRESS_SECONDS = 0.5
_PLAIN_WIDTH = 160
_PLAIN_PROGRESS_SECONDS = 5.0


@dataclass(frozen=True)
class RunOutcome:
    """How one run ended: its exit code as a process would have, and what it has to say about it."""

    name: str
    exit_code: int
    message: str = ""
    run_id: str = ""

    @property
    def ok(self) -> bool:
        """Whether the run succeeded."""
        return self.exit_code == 0


def run_backfill(settings: Settings, workers: Sequence[int] | None = None, refetch: str = "all") -> int:
    """Run the given workers (all unless named), then the view and the report. Returns the exit code.

    0 only where every run succeeded and no ERROR check failed; 1 otherwise; 130 or 143 after a signal. The view is
    rebuilt only if every worker of this run succeeded and none is missing.
    """
    # Looking for garbage takes an eighth of the time of importing, which leaves next to none.
    gc.disable()
    from payout_pipeline.instance import ensure_dagster_home

    ensure_dagster_home()
    _check_before_start(settings)
    _import_once(settings)
    family = _Family(_log_directory(settings))
    prepared = family.start(_PREPARE, _PREPARE, {})  # beside the opening of the instance
    with _one_instance():
        return _run_all(settings, workers, refetch, family, prepared)


def _run_all(
    settings: Settings, workers: Sequence[int] | None, refetch: str, family: _Family, prepared: _Member
) -> int:
    from payout_pipeline.chunks import partition_key
    from payout_pipeline.ingest import remember_prepared
    from payout_pipeline.storage import open_store

    console = report_console()
    chosen = list(workers or range(1, settings.workers + 1))
    record = _take_up_or_begin(settings, refetch, console)
    started = time.monotonic()
    console.print(
        f"Backfill of {len(chosen)} worker(s) of {settings.workers}; runtime directory {settings.runtime_dir}."
    )
    with stop_on_signals() as stop, family:
        (looked,) = family.watch([prepared], stop, console)
        if stop.signal_number is not None:
            return 128 + stop.signal_number
        if not looked.ok:
            _say(console, looked)
            return 2 if looked.exit_code == 2 else 1
        remember_prepared(settings)
        keys = {partition_key(worker, settings.workers): worker for worker in chosen}
        asked = {"refetch": record["refetch"], "backfill_id": record["id"]}
        members = [family.start(key, WORKER_JOB, {"partition_key": key, **asked}) for key in keys]
        view = family.start(VIEW, VIEW_JOB, {}, waiting=True)
        outcomes = family.watch(members, stop, console, _progress(settings, tuple(keys.values()), console))
        for outcome in outcomes:
            _say(console, outcome)
        if stop.signal_number is not None:
            console.print("Interrupted; finished batches are kept, the same command continues.")
            return 128 + stop.signal_number
        if not all(outcome.ok for outcome in outcomes):
            failed = ", ".join(outcome.name for outcome in outcomes if not outcome.ok)
            console.print(
                f"The view was not rebuilt: {failed} failed. Run `payout-pipeline backfill` again when mended."
            )
            return _report(settings, console, failed=True)
        if not view.process.is_alive():
            view = family.start(VIEW, VIEW_JOB, {})
        view.go()
        (rebuilt,) = family.watch([view], stop, console)
        _say(console, rebuilt)
        if stop.signal_number is not None:
            return 128 + stop.signal_number
    if rebuilt.ok:
        open_store(settings.runtime_dir).delete(RECORD_FILE)
    console.print(f"Runs finished after {time.monotonic() - started:.1f} s.")
    return _report(settings, console, failed=not rebuilt.ok)


def report_console() -> Console:
    """Standard output; wide enough for tables where it is a file or a pipe."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=_PLAIN_WIDTH)


def _take_up_or_begin(settings: Settings, refetch: str, console: Console) -> dict[str, str]:
    """The backfill that did not get to its end, if its input is today's; otherwise a new one.

    Workers that finished in it are not asked again: their ledgers carry its id. The record goes when the view is built.
    """
    from payout_pipeline.chunks import read_worklist
    from payout_pipeline.storage import open_store

    store = open_store(settings.runtime_dir)
    todays = f"{read_worklist(settings).fingerprint} {settings.goldsky_mode} {settings.goldsky_endpoint}"
    fingerprint = hashlib.sha256(todays.encode()).hexdigest()
    try:
        record = json.loads(store.read(RECORD_FILE))
        if record["fingerprint"] == fingerprint and all(isinstance(record[k], str) for k in ("id", "refetch", "begun")):
            console.print(f"Continuing the backfill begun at {record['begun']} that did not get to its end.")
            return dict(record)
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError):
        console.print(
            f"{store.describe(store.set_aside(RECORD_FILE))} was damaged and is kept aside; a new backfill begins."
        )
    begun = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record = {"id": uuid4().hex, "fingerprint": fingerprint, "refetch": refetch, "begun": begun}
    store.write(RECORD_FILE, json.dumps(record).encode())
    return record


def _check_before_start(settings: Settings) -> None:
    """What every run would stumble over is said once, before the first of them starts."""
    from payout_pipeline.chunks import read_worklist
    from payout_pipeline.storage import open_store

    open_store(settings.runtime_dir).check_writable()
    read_worklist(settings)


def _import_once(settings: Settings) -> None:
    """Load in the parent what every child needs, so that forked children share it instead of importing it each.

    Not chdb: its library starts threads when it is loaded, and a fork must not happen beside them. What it imports
    itself is loaded here.
    """
    for name in (*_SHARED_MODULES, *(_SHARED_IF_EMBEDDED if settings.embedded else ())):
        importlib.import_module(name)
    gc.freeze()  # for good: children must not touch, and so copy, the pages that they share with the parent
    gc.enable()


@contextmanager
def _one_instance() -> Iterator[None]:
    """Open the instance of the UI once, for this process and those that it forks: its storage keeps no connection."""
    import dagster as dg

    global _instance
    with dg.DagsterInstance.get() as _instance:
        try:
            yield
        finally:
            _instance = None


@contextmanager
def _opened_instance() -> Iterator[dg.DagsterInstance]:
    """The instance that is open already; a spawned process opens its own."""
    import dagster as dg

    if _instance is not None:
        yield _instance
    else:
        with dg.DagsterInstance.get() as instance:
            yield instance


def _log_directory(settings: Settings) -> Path:
    local = settings.runtime_dir if "://" not in settings.runtime_dir else "runtime"
    directory = Path(local) / "logs"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def fork_context() -> Any:
    """The cheapest safe way to start a child: forked on Linux, spawned elsewhere."""
    from payout_pipeline.warehouse.embedded import fork_is_safe

    return multiprocessing.get_context("fork" if sys.platform.startswith("linux") and fork_is_safe() else "spawn")


@dataclass
class _Member:
    """A child process. One that ``waits`` does nothing before :meth:`go`."""

    name: str
    process: BaseProcess
    receiver: Connection
    starter: Connection | None = None

    def go(self) -> None:
        """Let it begin."""
        if self.starter is not None:
            with contextlib.suppress(BrokenPipeError):  # it died meanwhile, which its outcome says
                self.starter.send_bytes(b"go")

    def signal(self, number: int) -> None:
        """Send it a signal, if it lives."""
        if self.process.is_alive() and self.process.pid is not None:
            os.kill(self.process.pid, number)

    def outcome(self) -> RunOutcome:
        """How it ended; waits for its end."""
        self.process.join()
        code = self.process.exitcode if self.process.exitcode is not None else 1
        if code < 0:
            return RunOutcome(self.name, 128 - code, f"its process was ended by {signal.Signals(-code).name}")
        try:
            sent = json.loads(self.receiver.recv_bytes()) if self.receiver.poll() else {}
        except EOFError:
            sent = {}
        message = sent.get("message", "" if code == 0 else f"its process ended with exit code {code} without a word")
        return RunOutcome(self.name, code, message, sent.get("run_id", ""))


class _Family:
    """The children of a backfill. Leaving the context leaves none of them alive."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._context = fork_context()
        self._members: list[_Member] = []

    def __enter__(self) -> _Family:
        return self

    def __exit__(self, *_: object) -> None:
        for member in self._members:
            member.signal(signal.SIGKILL)  # one that was never let go, or all if the watching itself failed
            member.process.join()

    def start(self, name: str, job: str, arguments: dict[str, str], *, waiting: bool = False) -> _Member:
        """Start a child that does ``job``."""
        receiver, sender = self._context.Pipe(duplex=False)
        begin, starter = self._context.Pipe(duplex=False) if waiting else (None, None)
        log = str(self._logs / f"{name.replace(' ', '-')}.log")
        process = self._context.Process(
            target=_child, args=(name, job, arguments, log, sender, os.getpid(), begin), name=name
        )
        process.start()
        sender.close()
        self._members.append(_Member(name, process, receiver, starter))
        return self._members[-1]

    def watch(
        self, members: Sequence[_Member], stop: StopRequest, console: Console, progress: Any = None
    ) -> list[RunOutcome]:
        """Wait for the end of these, and pass a stop request on to them."""
        asked_to_stop: float | None = None
        next_look = time.monotonic() + _PROGRESS_SECONDS
        try:
            while living := [member.process.sentinel for member in members if member.process.is_alive()]:
                if stop.requested and asked_to_stop is None:
                    asked_to_stop = time.monotonic()
                    console.print("Stopping: finished batches are kept …")
                    for member in members:
                        member.signal(signal.SIGTERM)
                if asked_to_stop is not None and time.monotonic() - asked_to_stop > STOP_GRACE_SECONDS:
                    for member in members:
                        member.signal(signal.SIGKILL)
                if progress is not None and time.monotonic() >= next_look:
                    progress.update()
                    pause = _PROGRESS_SECONDS if console.is_terminal else _PLAIN_PROGRESS_SECONDS
                    next_look = time.monotonic() + pause
                wait_for_any(living, _POLL_SECONDS)
        finally:
            if progress is not None:
                progress.close()
        return [member.outcome() for member in members]


def _say(console: Console, outcome: RunOutcome) -> None:
    from rich.markup import escape

    if outcome.ok:
        console.print(f"[green]{escape(outcome.name)}: done.[/] {escape(outcome.message)}")
    elif outcome.exit_code == 143:
        console.print(f"[yellow]{escape(outcome.name)}: interrupted;[/] {escape(outcome.message)}")
    else:
        console.print(f"[bold red]{escape(outcome.name)}: FAILED.[/] {escape(outcome.message)}")


def _child(
    name: str,
    job: str,
    arguments: dict[str, str],
    log: str,
    sender: Connection,
    parent: int,
    begin: Connection | None,
) -> None:
    """One Dagster run in this process; ends the process with its exit code."""
    # The parent's handlers belong to the parent: a run installs its own, and dies with a parent that was killed.
    os.setpgrp()  # Ctrl-C reaches the whole group of the terminal; the parent passes it on once, as SIGTERM
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _die_with_parent(parent)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        if begin is not None:
            _wait_to_begin(begin)
        outcome = _prepare() if job == _PREPARE else execute_run(job, **arguments)
    except KeyboardInterrupt:
        outcome = RunOutcome(name, 143, "interrupted")
    except PayoutPipelineError as fault:
        outcome = RunOutcome(name, fault.exit_code, scrub(str(fault)))
    except Exception as unexpected:  # noqa: BLE001 - the process boundary: reported to the parent as a failure
        outcome = RunOutcome(name, 1, scrub(f"{type(unexpected).__name__}: {unexpected}"))
    sender.send_bytes(json.dumps(asdict(outcome)).encode())
    sender.close()
    sys.stdout.flush()
    sys.stderr.flush()
    _close_engine()
    os._exit(outcome.exit_code)


def _wait_to_begin(begin: Connection) -> None:
    """Wait for the parent's word; what takes long to load is loaded meanwhile, once the workers are under way."""
    from payout_pipeline.settings import load_settings
    from payout_pipeline.warehouse.client import load_engine

    if not begin.poll(_WARM_AFTER_SECONDS):
        load_engine(load_settings())
    begin.recv_bytes()


def _prepare() -> RunOutcome:
    """Look at the target table, or make it, once for all workers."""
    from payout_pipeline.ingest import prepare_target
    from payout_pipeline.settings import load_settings

    logger = logging.getLogger("payout_pipeline.backfill")
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)
    prepare_target(load_settings(), logger)
    return RunOutcome(_PREPARE, 0)


def _close_engine() -> None:
    """Close the embedded database in order; ``os._exit`` runs no exit handlers."""
    from payout_pipeline.warehouse.embedded import close_engine

    close_engine()


def _die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGTERM when the parent dies, so that ``kill -9`` of the command leaves nothing running."""
    if not sys.platform.startswith("linux"):
        return
    set_death_signal = 1  # PR_SET_PDEATHSIG, prctl(2)
    ctypes.CDLL(None, use_errno=True).prctl(set_death_signal, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the request was made
        os._exit(128 + signal.SIGTERM)


def execute_run(
    job: str, partition_key: str | None = None, refetch: str = "all", backfill_id: str | None = None
) -> RunOutcome:
    """Execute ``job`` in this process on the instance of the UI and say how it ended."""
    import dagster as dg

    from payout_pipeline.definitions import defs

    config = {"ops": {"goldsky_payouts": {"config": {"refetch": refetch}}}} if partition_key else None
    with _opened_instance() as instance:
        result = defs.resolve_job_def(job).execute_in_process(
            instance=instance,
            partition_key=partition_key,
            run_config=config,
            tags={"payout/backfill": backfill_id} if backfill_id else None,
            raise_on_error=False,
        )
        name = partition_key or job
        if result.success:
            return RunOutcome(name, 0, run_id=result.run_id)
        run = instance.get_run_by_id(result.run_id)
        canceled = run is not None and run.status is dg.DagsterRunStatus.CANCELED
        if canceled or any(_was_interrupted(event) for event in result.all_events):
            return RunOutcome(name, 143, "its finished batches are kept and not asked again", result.run_id)
        return RunOutcome(name, 1, _failures(result), result.run_id)


def _was_interrupted(event: Any) -> bool:
    error = event.step_failure_data.error if event.is_step_failure else None
    return error is not None and error.cls_name == "InterruptedStepError"


def _failures(result: Any) -> str:
    messages: list[str] = []
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            said = data.user_failure_data.description if data.user_failure_data else None
            messages.append(said or (data.error.message if data.error else event.message) or event.message)
        elif event.is_run_failure and not messages:
            messages.append(event.message or "")
    return scrub("\n".join(message for message in messages if message))


def _progress(settings: Settings, workers: Sequence[int], console: Console) -> Any:
    from payout_pipeline.progress import Progress

    return Progress(settings, workers, console)


def _report(settings: Settings, console: Console, *, failed: bool) -> int:

    from payout_pipeline.report import build_report, render

    with _opened_instance() as instance:
        report = build_report(settings, instance)
    render(report, console)
    return 1 if failed else report.exit_code
