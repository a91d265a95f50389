"""How far each worker is, read from its files, without touching a run.

Everything comes from the checkpoint and progress files, the holder's note beside the worker's lock, the shared rate
limit and, for the rows in ClickHouse, the database if it is free, else the count that the last load left. Neither
Dagster nor pandas is imported: ``payout-pipeline status`` and the progress of ``backfill`` read this every second.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Literal

from payout_pipeline.errors import InputError, PayoutPipelineError, StorageError
from payout_pipeline.ids.chunks import partition_key, read_worklist
from payout_pipeline.ledger import DIRECTORY, SNAPSHOT
from payout_pipeline.ledger.checkpoint import BatchProgress, Checkpoint, read_checkpoint, read_progress
from payout_pipeline.locks import Holder
from payout_pipeline.settings import Settings
from payout_pipeline.storage import BACKFILL_RECORD, TOTALS_FILE, Store, join, open_store
from payout_pipeline.words import duration
from payout_pipeline.worker_lock import locks_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payout_pipeline.warehouse.client import Session

State = Literal["waiting", "running", "stuck", "done", "failed"]
STUCK_AFTER_SECONDS = 300.0
_RATE_WINDOW_SECONDS = 30.0
_DATABASE_WAIT_SECONDS = 0.5
_SERVER_WAIT_SECONDS = 2.0
_FETCHING = "goldsky_payouts"


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker. ``rate`` is ids per second over the last half minute (of the whole run once it is done);
    ``total_ids``, ``seconds_left`` and ``last_batch_age`` (seconds) are None where unknown."""

    worker: int
    partition: str
    state: State
    ids: int
    total_ids: int | None
    found: int
    errors: int
    rate: float
    seconds_left: float | None
    last_batch_age: float | None
    counts: dict[str, int]
    message: str


@dataclass(frozen=True, slots=True)
class Status:
    """All workers, the shared rate limit, and what ClickHouse holds.

    ``rows`` of goldsky-api are None where they were not counted; ``rows_age`` is in seconds, 0 for a count of this moment.
    ``view_rows`` is None where ``view_note`` says why, or where they were not counted. ``backfill`` says whether the record of
    a backfill whose view is not built yet is there.
    """

    at: datetime
    workers: tuple[WorkerStatus, ...]
    answers_429: int = 0
    hold_seconds: float = 0.0
    outage_seconds: float = 0.0
    outage_message: str = ""
    rows: int | None = None
    rows_age: float = 0.0
    rows_note: str = ""
    view_rows: int | None = None
    view_note: str = ""
    backfill: bool = False
    set_aside: tuple[str, ...] = ()

    @property
    def running(self) -> bool:
        """Whether a worker is at work."""
        return any(worker.state in ("running", "stuck") for worker in self.workers)

    @property
    def finished(self) -> bool:
        """Whether no worker has anything left to do or is doing it."""
        return all(worker.state in ("done", "failed") for worker in self.workers)

    def as_json(self) -> dict[str, Any]:
        """Plain values, times as ISO 8601 and seconds."""
        return {**dataclasses.asdict(self), "at": self.at.isoformat(timespec="seconds")}


def read_status(
    settings: Settings,
    *,
    count_rows: bool = False,
    database_wait: float = _DATABASE_WAIT_SECONDS,
    now: datetime | None = None,
) -> Status:
    """The state of all workers, the rate limit and, on request, the database.

    Args:
        settings: of the pipeline.
        count_rows: ask the database too.
        database_wait: seconds to wait for it.
        now: the moment to which ages refer.

    Raises:
        StorageError: the runtime directory cannot be read.
    """
    moment = now or datetime.now(timezone.utc)
    store = open_store(settings.runtime_dir)
    locks = locks_for(settings)
    totals = _totals(settings)
    workers = []
    for worker in range(1, settings.workers + 1):
        holder = locks.holder(partition_key(worker, settings.workers)) if locks is not None else None
        workers.append(_worker(store, settings, worker, totals[worker - 1], holder, locks is not None, moment))
    status = Status(
        at=moment,
        workers=tuple(workers),
        backfill=store.exists(BACKFILL_RECORD),
        set_aside=tuple(name for name in store.names() if ".corrupt-" in name),
        **_rate_limit(settings),
    )
    return dataclasses.replace(status, **_counted(settings, store, moment, database_wait)) if count_rows else status


# ---------------------------------------------------------------------------------------------------------- workers


def _worker(
    store: Store,
    settings: Settings,
    worker: int,
    total: int | None,
    holder: Holder | None,
    locks_known: bool,
    now: datetime,
) -> WorkerStatus:
    partition = partition_key(worker, settings.workers)
    damaged: list[str] = []
    checkpoint = read_checkpoint(store, worker, damaged.append)
    if checkpoint is not None and checkpoint.partition != partition:
        damaged.append(f"the checkpoint belongs to {checkpoint.partition}: PAYOUT_WORKERS was another")
        checkpoint = None
    lines = read_progress(store, worker, last=2000) if checkpoint is not None else []
    last = lines[-1].timestamp if lines else None
    if checkpoint is None:
        state, message = _without_checkpoint(holder, now)
    else:
        state, message = _with_checkpoint(store, checkpoint, holder, locks_known, last, now)
        if state == "running" and not message and holder is not None and checkpoint.state == "complete":
            # A new run has begun and has not written anything yet: what is on disk is the former run's.
            checkpoint, lines, last = None, [], None
    ids = checkpoint.ids_processed if checkpoint else 0
    if lines and checkpoint is not None:
        # The checkpoint is refreshed every few batches; the last line of the progress file is newer.
        ids = max(ids, min(lines[-1].total_processed, total if total is not None else lines[-1].total_processed))
    rate = _rate(lines, now, running=state == "running")
    left = (total - ids) / rate if state == "running" and rate > 0 and total is not None else None
    return WorkerStatus(
        worker=worker,
        partition=partition,
        state=state,
        ids=ids,
        total_ids=checkpoint.ids if checkpoint is not None and checkpoint.ids is not None else total,
        found=max(checkpoint.payouts_found, lines[-1].total_found if lines else 0) if checkpoint else 0,
        errors=checkpoint.errors if checkpoint else 0,
        rate=round(rate, 1),
        seconds_left=None if left is None else round(left, 1),
        last_batch_age=None if last is None else round(max(0.0, (now - last).total_seconds()), 1),
        counts=dict(checkpoint.counts) if checkpoint else {},
        message="; ".join([*damaged, message] if message else damaged),
    )


def _without_checkpoint(holder: Holder | None, now: datetime) -> tuple[State, str]:
    if holder is None:
        return "waiting", ""
    if (now - holder.since).total_seconds() > STUCK_AFTER_SECONDS:
        return "stuck", f"nothing since {duration(now - holder.since)}; held by {holder}"
    return "running", "starting"


def _with_checkpoint(
    store: Store, checkpoint: Checkpoint, holder: Holder | None, known: bool, last: datetime | None, now: datetime
) -> tuple[State, str]:
    """The state, from the files and the holder of the worker's lock."""
    saved = checkpoint.last_save_time
    complete = checkpoint.state == "complete"
    if complete and not store.exists(join(DIRECTORY, checkpoint.partition, SNAPSHOT)):
        return "failed", "its checkpoint says complete, but its ledger is gone: run it again"
    if holder is not None and holder.purpose != _FETCHING:
        return "running", "loading into ClickHouse"
    since = holder.since if holder is not None else None
    if complete and (since is None or saved >= since - timedelta(seconds=1)):
        return "done", ""
    quiet_since = max(moment for moment in (last, since, None if complete else saved) if moment is not None)
    quiet = (now - quiet_since).total_seconds()
    if holder is None and known:
        of = f"{checkpoint.batches_processed:,} of {checkpoint.batches:,} batches"
        bad = f", {checkpoint.errors:,} ids without a usable answer" if checkpoint.errors else ""
        return "failed", f"ended before its end, after {of}{bad}; the same command continues"
    if quiet > STUCK_AFTER_SECONDS:
        by = f"; held by {holder}; stop it and run the worker again, it continues" if holder else ""
        return "stuck", f"no batch for {duration(now - quiet_since)}{by}"
    return "running", ""


def _rate(lines: Sequence[BatchProgress], now: datetime, *, running: bool) -> float:
    """Ids per second: over the last half minute of a run that is going, over all of one that is not."""
    if not lines:
        return 0.0
    first = lines[0].timestamp - timedelta(milliseconds=lines[0].duration_ms)
    end = now if running else lines[-1].timestamp
    start = max(first, end - timedelta(seconds=_RATE_WINDOW_SECONDS)) if running else first
    seconds = (end - start).total_seconds()
    return sum(line.ids_in_batch for line in lines if line.timestamp >= start) / seconds if seconds > 0.05 else 0.0


def _totals(settings: Settings) -> list[int | None]:
    """Ids of each worker's chunk; None where the input has no list or cannot be read."""
    try:
        return [worker.ids for worker in read_worklist(settings).workers]
    except InputError:
        return [None] * settings.workers


# ------------------------------------------------------------------------------------------- rate limit and database


def _rate_limit(settings: Settings) -> dict[str, Any]:
    """The shared budget, for display: answers of 429 so far, the present hold, the present outage."""
    from payout_pipeline.goldsky.pacing import is_kept, shared_status
    from payout_pipeline.goldsky.pacing import open_store as open_budget

    if not is_kept(runtime_dir=settings.runtime_dir, limiter_url=settings.limiter_url):
        return {}
    budget = open_budget(
        settings.goldsky_endpoint,
        settings.goldsky_rate_limit,
        runtime_dir=settings.runtime_dir,
        limiter_url=settings.limiter_url.get_secret_value() if settings.limiter_url else None,
    )
    try:
        shared = shared_status(budget)
    except StorageError:
        return {}
    finally:
        budget.close()
    return {name: shared[name] for name in ("answers_429", "hold_seconds", "outage_seconds", "outage_message")}


def _counted(settings: Settings, store: Store, now: datetime, wait: float) -> dict[str, Any]:
    """Rows in ClickHouse and of the view, the age of the count in seconds, and a note where it is not of this moment."""
    from payout_pipeline.warehouse.client import Warehouse

    warehouse = Warehouse.existing(settings, "status", wait if settings.embedded else max(wait, _SERVER_WAIT_SECONDS))
    if warehouse is None:
        return {"rows_note": "the embedded database does not exist yet"}
    try:
        with warehouse.session("status") as session:
            return _count(session, settings)
    except PayoutPipelineError as fault:
        reason = str(fault).partition("\n")[0]
    rows, measured = _last_total(store)
    if rows is None or measured is None:
        return {"rows_note": reason}
    return {"rows": rows, "rows_age": max(0.0, (now - measured).total_seconds()), "rows_note": reason}


def _count(session: Session, settings: Settings) -> dict[str, Any]:
    from payout_pipeline.verification.numbers import stored_rows
    from payout_pipeline.warehouse.identifiers import QualifiedName
    from payout_pipeline.warehouse.schema import inspect_table
    from payout_pipeline.warehouse.statements import statement

    found: dict[str, Any] = {"rows": stored_rows(session, settings)}
    view = QualifiedName.parse(settings.truth_view)
    try:
        if inspect_table(session, view) is None:
            return {**found, "view_note": "not built yet"}
        rows = session.scalar(statement("view_rows", view=view), doing=f"counting the rows of {view}")
    except PayoutPipelineError as fault:  # a view over a table that is gone hides the rows of no other
        return {**found, "view_note": str(fault).partition("\n")[0]}
    return {**found, "view_rows": int(rows)}


def _last_total(store: Store) -> tuple[int | None, datetime | None]:
    """What the last load has counted."""
    try:
        found = json.loads(store.read(TOTALS_FILE))
        return int(found["rows"]), datetime.fromisoformat(found["measured_at"]).astimezone(timezone.utc)
    except (FileNotFoundError, ValueError, KeyError, TypeError, OverflowError):
        return None, None
