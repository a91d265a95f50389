"""``payout-pipeline backfill``: every worker through Dagster, then the view, then the report.

The parent imports everything once and forks a child for each run; what the runs do is in the instance of the UI.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from payout_pipeline.dagster_home import REPOSITORY_TAGS, ensure_dagster_home
from payout_pipeline.errors import PayoutPipelineError
from payout_pipeline.settings import Settings
from payout_pipeline.signals import StopRequest, stop_on_signals
from payout_pipeline.storage import BACKFILL_RECORD, Store, open_store
from payout_pipeline.worker_pool import INTERRUPTED, Outcome, start, wait

if TYPE_CHECKING:
    from rich.console import Console

#: What a run imports on its way: loaded once in the parent, shared by the forked children. Not chdb, whose library starts
#: threads when it is loaded: a fork must not happen beside them.
_SHARED_MODULES = (
    "clickhouse_connect",
    "gql.transport.aiohttp",
    "pyarrow.parquet",
    "payout_pipeline.definitions",
    "payout_pipeline.fetch",
)


class BackfillRecord(BaseModel):
    """A backfill whose view is not built yet. ``option``: the ``--refetch`` that it was begun by, or empty."""

    model_config = ConfigDict(frozen=True, strict=True)
    id: str = Field(default_factory=lambda: uuid4().hex)
    fingerprint: str
    refetch: str
    option: str
    begun: str = Field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))


def run_backfill(
    settings: Settings, workers: Sequence[int] = (), refetch: str | None = None, allow_removals: bool = False
) -> int:
    """Run the given workers (all unless named), then the view and the report. Returns the exit code.

    ``refetch``: ``all`` or ``unresolved``; None for what the interrupted backfill asked for, or ``all``. 0 only where every
    run succeeded and no ERROR check failed; 1 otherwise; 130 or 143 after a signal. The view is rebuilt only if every
    worker of this run succeeded and none is missing.
    """
    from payout_pipeline.commands.output import console as make_console
    from payout_pipeline.ids.chunks import partition_key, read_worklist
    from payout_pipeline.ingest import prepare_target, remember_prepared
    from payout_pipeline.progress import Progress

    started = time.monotonic()
    ensure_dagster_home()
    store = open_store(settings.runtime_dir)
    store.check_writable()
    if not settings.condition_ids_query:
        read_worklist(settings)
    console = make_console()
    chosen = list(workers or range(1, settings.workers + 1))
    console.print(
        f"Backfill of {len(chosen)} worker(s) of {settings.workers}; runtime directory {settings.runtime_dir}."
    )
    logs = Path(settings.runtime_dir if "://" not in settings.runtime_dir else "runtime") / "logs"
    with stop_on_signals() as stop:
        # In a child, since an opened engine forbids forking; meanwhile this process imports.
        looking = start(logs, "the target table", prepare_target, settings=settings, log=logging.getLogger(__name__))
        import dagster as dg

        from payout_pipeline.assets.goldsky_payouts import BACKFILL_TAG
        from payout_pipeline.checks.catalogue import IDS_JOB, VIEW_JOB, WORKER_JOB
        from payout_pipeline.report import build_report, render

        _import_and_initialise()
        if code := _ended(wait([looking], stop), stop, console):
            return code
        remember_prepared(settings)
        if _wants_a_list(settings, store, workers, refetch, console):
            listing = start(logs, "condition_ids", _run, job=IDS_JOB)
            if code := _ended(wait([listing], stop), stop, console):
                return code
        record = _continue_or_begin(settings, store, refetch, console)
        config: dict[str, Any] = {"goldsky_payouts": {"config": {"refetch": record.refetch}}}
        if allow_removals:
            config["resolutions_external_ingest"] = {"config": {"allow_removals": True}}
        arguments = {"job": WORKER_JOB, "ops": config, "tags": {BACKFILL_TAG: record.id}}
        keys = [partition_key(worker, settings.workers) for worker in chosen]
        children = [start(logs, key, _run, partition_key=key, **arguments) for key in keys]
        with Progress(settings, chosen, console) as progress:
            outcomes = wait(children, stop, progress.update)
        code = _ended(outcomes, stop, console)
        if not code:
            view = start(logs, "vw_resolutions_truth", _run, job=VIEW_JOB)
            code = _ended(wait([view], stop), stop, console)
        elif not stop.requested:
            failed = ", ".join(outcome.name for outcome in outcomes if outcome.exit_code)
            console.print(
                f"The view was not rebuilt: {failed} failed. Run `payout-pipeline backfill` again when mended."
            )
        if stop.requested:
            return code
    console.print(f"Runs finished after {time.monotonic() - started:.1f} s.")
    with dg.DagsterInstance.get() as instance:
        report = build_report(settings, instance)
    render(report, console)
    return 1 if code else report.exit_code


def _ended(outcomes: Sequence[Outcome], stop: StopRequest, console: Console) -> int:
    """Say how children ended. Returns the exit code where the backfill cannot go on, else 0."""
    from rich.markup import escape

    for outcome in outcomes:
        name = escape(outcome.name)
        if not outcome.exit_code:
            console.print(f"[green]{name}: done.[/]")
        elif outcome.exit_code == INTERRUPTED:
            console.print(f"[yellow]{name}: interrupted;[/] its finished batches are kept and not asked again")
        else:
            console.print(f"[bold red]{name}: FAILED.[/] {escape(outcome.message)}")
    if stop.signal_number is not None:
        console.print("Interrupted; finished batches are kept, the same command continues.")
        return 128 + stop.signal_number
    return next((outcome.exit_code for outcome in outcomes if outcome.exit_code), 0)


def _wants_a_list(
    settings: Settings, store: Store, workers: Sequence[int], refetch: str | None, console: Console
) -> bool:
    """Whether the query is to be run: for a new backfill, or the first one of some workers only.

    A backfill that is continued keeps its list; one that ``refetch`` puts an end to does not.
    """
    from payout_pipeline.errors import InputError
    from payout_pipeline.ids.today import todays_list

    if not settings.condition_ids_query:
        return False
    try:
        todays_list(settings)
    except InputError:
        return True
    record = _interrupted(store, console)
    if record is not None and refetch not in (None, record.option):
        store.delete(BACKFILL_RECORD)
        record = None
    return not workers and record is None


def _interrupted(store: Store, console: Console) -> BackfillRecord | None:
    """The record of the backfill whose view was not built; None without one, or where it is damaged (it is set aside)."""
    try:
        return BackfillRecord.model_validate_json(store.read(BACKFILL_RECORD))
    except FileNotFoundError:
        return None
    except ValueError:
        aside = store.describe(store.set_aside(BACKFILL_RECORD))
        console.print(f"{aside} was damaged and is kept aside; a new backfill begins.")
        return None


def _import_and_initialise() -> None:
    """Load what the children share, and make the instance's database once, before they open it side by side."""
    import dagster as dg

    for name in _SHARED_MODULES:
        importlib.import_module(name)
    with dg.DagsterInstance.get():
        pass


def _continue_or_begin(settings: Settings, store: Store, refetch: str | None, console: Console) -> BackfillRecord:
    """The unfinished backfill, if its input is today's; otherwise a new one.

    Workers that finished in it are not asked again: their ledgers carry its id. ``refetch`` given on the command line begins a
    new one, unless the unfinished one was begun by the same option.
    """
    from payout_pipeline.ids.chunks import read_worklist

    todays = f"{read_worklist(settings).fingerprint} {settings.goldsky_mode} {settings.goldsky_endpoint}"
    fingerprint = hashlib.sha256(todays.encode()).hexdigest()
    record = _interrupted(store, console)
    if record is not None and record.fingerprint == fingerprint and refetch in (None, record.option):
        console.print(f"Continuing the backfill begun at {record.begun} whose view was not built.")
        return record
    record = BackfillRecord(fingerprint=fingerprint, refetch=refetch or "all", option=refetch or "")
    store.write(BACKFILL_RECORD, record.model_dump_json().encode())
    return record


def _run(
    job: str,
    partition_key: str | None = None,
    ops: dict[str, Any] | None = None,
    tags: dict[str, str] | None = None,
) -> None:
    """Execute ``job`` in this process on the instance of the UI.

    Raises PayoutPipelineError with what failed, KeyboardInterrupt where the run was cancelled.
    """
    import dagster as dg

    from payout_pipeline.definitions import defs

    with dg.DagsterInstance.get() as instance:
        result = defs.resolve_job_def(job).execute_in_process(
            instance=instance,
            partition_key=partition_key,
            run_config={"ops": ops} if ops else None,
            tags={**REPOSITORY_TAGS, **(tags or {})},
            raise_on_error=False,
        )
        if result.success:
            return
        run = instance.get_run_by_id(result.run_id)
        if run is not None and run.status is dg.DagsterRunStatus.CANCELED:
            raise KeyboardInterrupt
        raise PayoutPipelineError(_failures(result))


def _failures(result: Any) -> str:
    """What failed, in the words of the pipeline: the fault of an asset, or the checks that did not pass."""
    checks = result.get_asset_check_evaluations()
    failed = [check.check_name for check in checks if not check.passed and check.severity.value == "ERROR"]
    messages: list[str] = []
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
    return "\n".join(dict.fromkeys(message.strip() for message in messages if message))
