"""``payout-pipeline status``: where each worker stands, read from its files, without touching a run.

Everything comes from the checkpoint and progress files, the holder's note beside the worker's lock, the shared rate
limit's file and, for the rows in ClickHouse, the database if it is free at once, else the count that the last load
left. Light on purpose: neither Dagster nor pandas is imported, and the progress bars of ``backfill`` read this too.
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from payout_pipeline.conditions import partition_key
from payout_pipeline.errors import InputError, PayoutPipelineError, StorageError
from payout_pipeline.ledger import DIRECTORY, SNAPSHOT
from payout_pipeline.ledger.checkpoint import BatchProgress, Checkpoint, read_checkpoint, read_progress
from payout_pipeline.locks import Holder, locks_for
from payout_pipeline.settings import Settings
from payout_pipeline.storage import Store, join, open_store
from payout_pipeline.words import duration
from payout_pipeline.worklist import read_worklist

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, RenderableType

State = Literal["waiting", "running", "stuck", "done", "failed"]
STUCK_AFTER_SECONDS = 300.0
_RATE_WINDOW_SECONDS = 30.0
_DATABASE_WAIT_SECONDS = 0.5
_COUNT_AGAIN_SECONDS = 10.0
_TOTALS_FILE = "warehouse-totals.json"
_FETCHING = "goldsky_payouts"


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker. ``rate`` is ids per second over the last half minute (of the whole run once it is done);
    ``total_ids``, ``seconds_left`` and ``last_batch_age`` (seconds) are None where nobody knows."""

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
    requests: int
    counts: dict[str, int]
    message: str


@dataclass(frozen=True, slots=True)
class Status:
    """All workers, the shared rate limit, and the rows of goldsky-api in ClickHouse.

    ``rows`` is None where nobody has counted; ``rows_age`` is in seconds, 0 for a count of this moment.
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
    set_aside: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether no worker has anything left to do or is doing it."""
        return all(worker.state in ("done", "failed") for worker in self.workers)

    def as_json(self) -> dict[str, Any]:
        """Plain values, times as ISO 8601 and seconds."""
        return {**dataclasses.asdict(self), "at": self.at.isoformat(timespec="seconds")}


def read_status(settings: Settings, *, count_rows: bool = False, now: datetime | None = None) -> Status:
    """Where everything stands. ``count_rows`` asks the database too, and waits for it at most half a second.

    Raises StorageError where the runtime directory cannot be read.
    """
    moment = now or datetime.now(timezone.utc)
    store = open_store(settings.runtime_dir)
    holders = _holders(settings)
    totals = _totals(settings)
    workers = tuple(
        _worker(store, settings, worker, totals[worker - 1], holders, moment)
        for worker in range(1, settings.workers + 1)
    )
    names = store.names()
    status = Status(
        at=moment,
        workers=workers,
        set_aside=tuple(name for name in names if ".corrupt-" in name),
        **_rate_limit(settings),
    )
    if not count_rows:
        return status
    rows, age, note = _rows(settings, store, moment)
    return dataclasses.replace(status, rows=rows, rows_age=age, rows_note=note)


# ---------------------------------------------------------------------------------------------------------- workers


def _worker(
    store: Store, settings: Settings, worker: int, total: int | None, holders: _Holders, now: datetime
) -> WorkerStatus:
    partition = partition_key(worker, settings.workers)
    damaged: list[str] = []
    checkpoint = read_checkpoint(store, worker, damaged.append)
    if checkpoint is not None and checkpoint.partition != partition:
        damaged.append(f"the checkpoint belongs to {checkpoint.partition}: PAYOUT_WORKERS was another")
        checkpoint = None
    holder = holders.of(partition)
    lines = read_progress(store, worker, last=2000) if checkpoint is not None else []
    last = _moment(lines[-1].timestamp) if lines else None
    if checkpoint is None:
        state, message = _without_checkpoint(holder, now)
    else:
        state, message = _with_checkpoint(store, checkpoint, holder, holders.known, last, now)
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
        requests=sum(line.attempts for line in lines),
        counts=dict(checkpoint.counts) if checkpoint else {},
        message="; ".join([*damaged, message] if message else damaged),
    )


def _without_checkpoint(holder: Holder | None, now: datetime) -> tuple[State, str]:
    if holder is None:
        return "waiting", ""
    started = _moment(holder.since)
    if started is not None and (now - started).total_seconds() > STUCK_AFTER_SECONDS:
        return "stuck", f"nothing since {duration(now - started)}; held by {holder}"
    return "running", "starting"


def _with_checkpoint(
    store: Store, checkpoint: Checkpoint, holder: Holder | None, known: bool, last: datetime | None, now: datetime
) -> tuple[State, str]:
    """The state from what the files say and who holds the worker's lock."""
    saved = _moment(checkpoint.last_save_time) or now
    complete = checkpoint.state == "complete"
    if complete and not store.exists(join(DIRECTORY, checkpoint.partition, SNAPSHOT)):
        return "failed", "its checkpoint says complete, but its ledger is gone: run it again"
    if holder is not None and holder.purpose != _FETCHING:
        return "running", "loading into ClickHouse"
    since = _moment(holder.since) if holder is not None else None
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
    timed = [(moment, line) for line in lines if (moment := _moment(line.timestamp)) is not None]
    if not timed:
        return 0.0
    first = timed[0][0] - timedelta(milliseconds=timed[0][1].duration_ms)
    end = now if running else timed[-1][0]
    start = max(first, end - timedelta(seconds=_RATE_WINDOW_SECONDS)) if running else first
    seconds = (end - start).total_seconds()
    return sum(line.ids_in_batch for moment, line in timed if moment >= start) / seconds if seconds > 0.05 else 0.0


def _moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)


class _Holders:
    """Who holds which worker's lock. ``known`` is False where locks are kept nowhere (a remote directory alone)."""

    def __init__(self, settings: Settings) -> None:
        self._locks = locks_for(settings)
        self.known = self._locks is not None

    def of(self, partition: str) -> Holder | None:
        return self._locks.holder(partition) if self._locks is not None else None


def _holders(settings: Settings) -> _Holders:
    return _Holders(settings)


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
    return {
        "answers_429": int(shared["answers_429"]),
        "hold_seconds": round(float(shared["hold_seconds"]), 1),
        "outage_seconds": round(float(shared["outage_seconds"]), 1),
        "outage_message": str(shared["outage_message"]),
    }


def _rows(settings: Settings, store: Store, now: datetime) -> tuple[int | None, float, str]:
    """Rows of goldsky-api in ClickHouse, the age of that count in seconds, and a note where there is one."""
    from payout_pipeline.warehouse.client import Warehouse, server_of

    server = server_of(settings)
    directory = Path(settings.runtime_dir) / "clickhouse"
    if server is None and not directory.is_dir():
        return None, 0.0, "the embedded database does not exist yet"
    warehouse = Warehouse(
        server=server,
        directory=directory if server is None else None,
        database=server.database if server is not None else settings.clickhouse_database,
        wait_seconds=_DATABASE_WAIT_SECONDS if server is None else 2.0,
        comment="payout-pipeline: status",
    )
    try:
        with warehouse.session("status", patient=False) as session:
            return _count_rows(session, settings), 0.0, ""
    except PayoutPipelineError as fault:
        reason = str(fault).partition("\n")[0]
    last, measured = _last_total(store)
    if last is None or measured is None:
        return None, 0.0, reason
    return last, max(0.0, (now - measured).total_seconds()), reason


def _count_rows(session: Any, settings: Settings) -> int | None:
    from payout_pipeline.warehouse.identifiers import QualifiedName
    from payout_pipeline.warehouse.schema import inspect_table
    from payout_pipeline.warehouse.statements import statement
    from payout_pipeline.warehouse.target import SOURCE

    name = QualifiedName.parse(settings.target_table)
    table = inspect_table(session, name)
    if table is None:
        return 0
    sql = statement("count_own_rows", target=name, final=table.final)
    return int(session.scalar(sql, {"source": SOURCE}, doing=f"counting the rows of {name}"))


def _last_total(store: Store) -> tuple[int | None, datetime | None]:
    """What the last load has counted."""
    try:
        found = json.loads(store.read(_TOTALS_FILE))
        return int(found["rows"]), _moment(str(found["measured_at"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None, None


# ----------------------------------------------------------------------------------------------------------- showing


def print_status(status: Status, console: Console) -> None:
    """The bars, once."""
    console.print(render_status(status))


def render_status(status: Status) -> RenderableType:
    """A bar a worker and the lines below them."""
    from rich.console import Group
    from rich.markup import escape
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, padding=(0, 1), show_edge=False)
    for name in ("worker", "", "ids", "found", "ids/s", "left", "errors", "last batch", "state"):
        grid.add_column(name, justify="left" if name in ("worker", "", "state") else "right", no_wrap=name != "state")
    colours = {"done": "green", "running": "cyan", "waiting": "dim", "stuck": "bold yellow", "failed": "bold red"}
    for worker in status.workers:
        total = worker.total_ids
        share = 1.0 if worker.state == "done" else worker.ids / total if total else 0.0
        grid.add_row(
            str(worker.worker),
            ProgressBar(total=1.0, completed=share, width=24),
            f"{worker.ids:,}" + (f" of {total:,}" if total is not None else ""),
            f"{worker.found:,}",
            f"{worker.rate:,.0f}" if worker.rate else "",
            duration(timedelta(seconds=worker.seconds_left)) if worker.seconds_left is not None else "",
            f"{worker.errors:,}",
            f"{duration(timedelta(seconds=worker.last_batch_age))} ago" if worker.last_batch_age is not None else "",
            Text.from_markup(
                f"[{colours[worker.state]}]{worker.state}[/]" + (f" {escape(worker.message)}" if worker.message else "")
            ),
        )
    lines = [Text(_rows_line(status))]
    if status.answers_429 or status.hold_seconds:
        hold = f", everybody waits {status.hold_seconds:.0f} s more" if status.hold_seconds else ""
        lines.append(Text(f"answers of 429: {status.answers_429:,}{hold}", style="yellow"))
    if status.outage_seconds:
        text = f"OUTAGE for {status.outage_seconds:.0f} s, workers wait: {status.outage_message}"
        lines.append(Text(text, style="bold red"))
    return Group(grid, *lines)


def _rows_line(status: Status) -> str:
    if status.rows is None:
        return (
            f"rows in ClickHouse: unknown ({status.rows_note})" if status.rows_note else "rows in ClickHouse: not asked"
        )
    if not status.rows_note:
        return f"rows in ClickHouse: {status.rows:,}"
    age = duration(timedelta(seconds=status.rows_age))
    return f"rows in ClickHouse: {status.rows:,} as counted {age} ago, after the last load ({status.rows_note})"


def watch_status(settings: Settings, every: float, as_json: bool) -> None:
    """Refresh until no worker has anything left to do, or Ctrl-C. One JSON object a line with ``as_json``."""
    import sys

    from rich.console import Console
    from rich.live import Live

    def look(previous: Status | None, counted_at: float) -> tuple[Status, float]:
        # Counting takes a turn at the embedded database, which a run that is loading has to wait for.
        again = previous is None or time.monotonic() - counted_at >= _COUNT_AGAIN_SECONDS
        status = read_status(settings, count_rows=again)
        if again or previous is None:
            return status, time.monotonic()
        age = previous.rows_age + (status.at - previous.at).total_seconds() if previous.rows_note else 0.0
        return dataclasses.replace(status, rows=previous.rows, rows_age=age, rows_note=previous.rows_note), counted_at

    status, counted_at = look(None, 0.0)
    if as_json:
        while True:
            sys.stdout.write(json.dumps(status.as_json()) + "\n")
            sys.stdout.flush()
            if status.finished:
                return
            time.sleep(every)
            status, counted_at = look(status, counted_at)
    console = Console(highlight=False)
    with Live(render_status(status), console=console, auto_refresh=False) as live:
        while not status.finished:
            time.sleep(every)
            status, counted_at = look(status, counted_at)
            live.update(render_status(status), refresh=True)
