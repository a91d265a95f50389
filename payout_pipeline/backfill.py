"""``payout-pipeline backfill``: every worker through Dagster, then the view, then the report.

The parent imports everything once and forks a child for each run; what the runs do is in the instance of the UI.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from payout_pipeline.checks.catalogue import VIEW_JOB, WORKER_JOB
from payout_pipeline.dagster_home import REPOSITORY_TAGS, ensure_dagster_home
from payout_pipeline.scrub import scrub
from payout_pipeline.settings import Settings
from payout_pipeline.signals import stop_on_signals
from payout_pipeline.worker_pool import Outcome, WorkerPool, all_ok

if TYPE_CHECKING:
    from rich.console import Console

#: What a run imports on its way: loaded once in the parent, shared by the forked children. Not chdb, whose library starts
#: threads when it is loaded: a fork must not happen beside them.
_SHARED_MODULES = (
    "clickhouse_connect",
    "fsspec",
    "gql.transport.aiohttp",
    "pandas",
    "pyarrow.compute",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "tenacity.asyncio",
    "upath",
    "payout_pipeline.definitions",
    "payout_pipeline.fetch",
    "payout_pipeline.ingest",
    "payout_pipeline.truth",
    "payout_pipeline.verification.goldsky_payouts",
    "payout_pipeline.verification.vw_resolutions_truth",
    "payout_pipeline.warehouse.view",
)


def run_backfill(
    settings: Settings, workers: Sequence[int] = (), refetch: str | None = None, allow_removals: bool = False
) -> int:
    """Run the given workers (all unless named), then the view and the report. Returns the exit code.

    ``refetch``: ``all`` or ``unresolved``; None for what the interrupted backfill asked for, or ``all``. 0 only where every
    run succeeded and no ERROR check failed; 1 otherwise; 130 or 143 after a signal. The view is rebuilt only if every
    worker of this run succeeded and none is missing.
    """
    from payout_pipeline.chunks import partition_key, read_worklist
    from payout_pipeline.commands.output import console as make_console
    from payout_pipeline.ingest import remember_prepared
    from payout_pipeline.progress import Progress
    from payout_pipeline.storage import BACKFILL_RECORD, open_store

    ensure_dagster_home()
    store = open_store(settings.runtime_dir)
    store.check_writable()
    read_worklist(settings)
    for name in _SHARED_MODULES:
        importlib.import_module(name)
    _initialise_instance()
    console = make_console()
    chosen = list(workers or range(1, settings.workers + 1))
    record = _take_up_or_begin(settings, refetch, console)
    console.print(
        f"Backfill of {len(chosen)} worker(s) of {settings.workers}; runtime directory {settings.runtime_dir}."
    )
    started = time.monotonic()
    with stop_on_signals() as stop, WorkerPool(_log_directory(settings)) as pool:
        (prepared,) = pool.run([("the target table", prepare, {})], stop)
        if stop.signal_number is not None:
            return 128 + stop.signal_number
        if not prepared.ok:
            _say(console, prepared)
            return 2 if prepared.exit_code == 2 else 1
        remember_prepared(settings)
        options = {"refetch": record["refetch"], "backfill_id": record["id"], "allow_removals": allow_removals}
        keys = [partition_key(worker, settings.workers) for worker in chosen]
        with Progress(settings, chosen, console) as progress:
            jobs = [(key, execute_run, {"job": WORKER_JOB, "partition_key": key, **options}) for key in keys]
            outcomes = pool.run(jobs, stop, progress.update)
        for outcome in outcomes:
            _say(console, outcome)
        if stop.signal_number is not None:
            console.print("Interrupted; finished batches are kept, the same command continues.")
            return 128 + stop.signal_number
        if not all_ok(outcomes):
            failed = ", ".join(outcome.name for outcome in outcomes if not outcome.ok)
            console.print(
                f"The view was not rebuilt: {failed} failed. Run `payout-pipeline backfill` again when mended."
            )
            return _report(settings, console, failed=True)
        (view,) = pool.run([("vw_resolutions_truth", execute_run, {"job": VIEW_JOB})], stop)
        _say(console, view)
        if view.materialized:  # the backfill is over, whatever the checks say
            store.delete(BACKFILL_RECORD)
        if stop.signal_number is not None:
            return 128 + stop.signal_number
    console.print(f"Runs finished after {time.monotonic() - started:.1f} s.")
    return _report(settings, console, failed=not view.ok)


def _initialise_instance() -> None:
    """Make the instance's database once, before several children open it side by side."""
    import dagster as dg

    with dg.DagsterInstance.get():
        pass


def _take_up_or_begin(settings: Settings, refetch: str | None, console: Console) -> dict[str, str]:
    """The backfill whose view was not built, if its input is today's; otherwise a new one.

    Workers that finished in it are not asked again: their ledgers carry its id. ``refetch`` given on the command line
    begins a new one where it is another.
    """
    from payout_pipeline.chunks import read_worklist
    from payout_pipeline.storage import BACKFILL_RECORD, open_store

    store = open_store(settings.runtime_dir)
    todays = f"{read_worklist(settings).fingerprint} {settings.goldsky_mode} {settings.goldsky_endpoint}"
    fingerprint = hashlib.sha256(todays.encode()).hexdigest()
    try:
        record = json.loads(store.read(BACKFILL_RECORD))
        known = record["fingerprint"] == fingerprint and all(
            isinstance(record[k], str) for k in ("id", "refetch", "begun")
        )
        if known and refetch in (None, record["refetch"]):
            console.print(f"Continuing the backfill begun at {record['begun']} whose view was not built.")
            return dict(record)
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError):
        aside = store.describe(store.set_aside(BACKFILL_RECORD))
        console.print(f"{aside} was damaged and is kept aside; a new backfill begins.")
    begun = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record = {"id": uuid4().hex, "fingerprint": fingerprint, "refetch": refetch or "all", "begun": begun}
    store.write(BACKFILL_RECORD, json.dumps(record).encode())
    return record


def _log_directory(settings: Settings) -> Path:
    local = settings.runtime_dir if "://" not in settings.runtime_dir else "runtime"
    return Path(local) / "logs"


def prepare() -> Outcome:
    """Look at the target table, or make it, once for all workers; in a child, since an opened engine forbids forking."""
    from payout_pipeline.ingest import prepare_target
    from payout_pipeline.settings import load_settings

    prepare_target(load_settings(), logging.getLogger(__name__))
    return Outcome("the target table", 0)


def execute_run(
    job: str,
    partition_key: str | None = None,
    refetch: str = "all",
    backfill_id: str = "",
    allow_removals: bool = False,
) -> Outcome:
    """Execute ``job`` in this process on the instance of the UI and say how it ended."""
    import dagster as dg

    from payout_pipeline.definitions import defs

    config: dict[str, Any] = {}
    if partition_key is not None:
        config["goldsky_payouts"] = {"config": {"refetch": refetch}}
        if allow_removals:
            config["resolutions_external_ingest"] = {"config": {"allow_removals": True}}
    tags = {**REPOSITORY_TAGS, **({"payout/backfill": backfill_id} if backfill_id else {})}
    with dg.DagsterInstance.get() as instance:
        result = defs.resolve_job_def(job).execute_in_process(
            instance=instance,
            partition_key=partition_key,
            run_config={"ops": config} if config else None,
            tags=tags,
            raise_on_error=False,
        )
        name = partition_key or job
        materialized = bool(result.get_asset_materialization_events())
        if result.success:
            return Outcome(name, 0, materialized=materialized)
        run = instance.get_run_by_id(result.run_id)
        if run is not None and run.status is dg.DagsterRunStatus.CANCELED:
            return Outcome(name, 143, "its finished batches are kept and not asked again")
        return Outcome(name, 1, _failures(result), materialized)


def _failures(result: Any) -> str:
    """What failed, in the words of the pipeline: the fault of an asset, or the checks that did not pass."""
    messages: list[str] = []
    failed = [
        e.check_name for e in result.get_asset_check_evaluations() if not e.passed and e.severity.value == "ERROR"
    ]
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            said = data.user_failure_data.description if data.user_failure_data else None
            if said:
                messages.append(said)
            elif not failed:
                messages.append(data.error.message if data.error else event.message or "")
    if failed:
        messages.append(f"failed: {', '.join(dict.fromkeys(failed))}; see the report")
    return scrub("\n".join(dict.fromkeys(message.strip() for message in messages if message)))


def _say(console: Console, outcome: Outcome) -> None:
    from rich.markup import escape

    if outcome.ok:
        console.print(f"[green]{escape(outcome.name)}: done.[/] {escape(outcome.message)}")
    elif outcome.exit_code == 143:
        console.print(f"[yellow]{escape(outcome.name)}: interrupted;[/] {escape(outcome.message)}")
    else:
        console.print(f"[bold red]{escape(outcome.name)}: FAILED.[/] {escape(outcome.message)}")


def _report(settings: Settings, console: Console, *, failed: bool) -> int:
    import dagster as dg

    from payout_pipeline.report import build_report, render

    with dg.DagsterInstance.get() as instance:
        report = build_report(settings, instance)
    render(report, console)
    return 1 if failed else report.exit_code
