"""One worker's run: its ids go to Goldsky in batches, what comes back goes into the ledger.

The order matters and is the same every time: settings, runtime directory, ids and the target table are looked at before
the first request; the snapshot is pinned before the first batch; a batch is on disk before it counts; the checkpoint and
progress files are views of what is on disk.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from payout_pipeline.answer_rows import raw_text, rows_by_shape
from payout_pipeline.checkpoint import CheckpointWriter, checkpoint_name, iso_time, progress_name, read_checkpoint
from payout_pipeline.conditions import Chunk, ConditionFile, partition_key, prefix_range, read_conditions
from payout_pipeline.errors import (
    ErrorRateError,
    GoldskyUnavailableError,
    IncompleteError,
    InterruptedRunError,
    SnapshotLostError,
)
from payout_pipeline.ledger import (
    ERROR_STATUSES,
    Ledger,
    Pin,
    RunningLedger,
    RunPlan,
    SnapshotInfo,
    rows_from_answer,
)
from payout_pipeline.locks import locks_for
from payout_pipeline.logs import forwarded_to
from payout_pipeline.payouts import InvalidVector, Vector, parse_numerators, parse_payouts
from payout_pipeline.scrub import excerpt, scrub
from payout_pipeline.settings import Settings
from payout_pipeline.signals import StopRequest, stop_on_signals
from payout_pipeline.storage import open_store

if TYPE_CHECKING:
    from logging import Logger

    import pyarrow as pa

    from payout_pipeline.goldsky.answers import Pin as AskedPin
    from payout_pipeline.goldsky.answers import RawCondition, SubgraphInfo
    from payout_pipeline.goldsky.client import GoldskyClient

#: A second run of the same worker waits this long for the first one to end, then refuses and names it.
LOCK_WAIT_SECONDS = 30.0
#: How often a run is pinned anew (a deployment that moves, history that is pruned) before it gives up.
_PINS_PER_RUN = 3
#: How often absent ids are asked again while their number keeps changing.
_CONFIRMATIONS = 10
_LONG_WAIT_SECONDS = 1.0
_SHAPES_SHOWN = 50
_YOUNG_OBJECTS = 200_000
_FAILURES_SHOWN = 20


@dataclass(frozen=True)
class FetchSummary:
    """What a finished run of a worker has to say. Counts are ids; times are seconds."""

    partition: str
    worker: int
    ids: int
    ids_of_all_partitions: int
    ids_asked: int
    counts: dict[str, int]
    batches: int
    batches_resumed: int
    requests: int
    retries: int
    rate_limited: int
    waits: int
    waited_seconds: float
    block_number: int
    snapshot: str
    deployment: str
    head_timestamp: int | None
    has_indexing_errors: bool
    seconds: float
    shapes: list[tuple[str, int]]
    failures: list[tuple[str, str]]
    fingerprint: str
    input_sha256: str
    files: list[str]

    @property
    def ids_per_second(self) -> float:
        """Ids asked by this run per second of it."""
        return self.ids_asked / self.seconds if self.seconds > 0 else 0.0


@dataclass
class _Totals:
    """What this process did for the run so far; what earlier ones did is in the ledger."""

    started: float = field(default_factory=time.monotonic)
    ids_asked: int = 0
    batches_resumed: int = 0
    last_error: str = ""


@dataclass(frozen=True)
class _Work:
    """What a worker has to do, settled before the first request."""

    settings: Settings
    worker: int
    partition: str
    refetch: str
    ledger: Ledger
    log: Logger
    run_id: str
    backfill_id: str
    reuse_finished: Callable[[str], bool]
    chunk: Chunk | None
    input_sha256: str

    def plan(self, schema_kind: str) -> RunPlan:
        """The ledger's plan for a subgraph of this schema."""
        settings = self.settings
        is_list = self.chunk is not None
        return RunPlan(
            endpoint=settings.goldsky_endpoint,
            batch_size=settings.goldsky_batch_size,
            schema_kind=schema_kind,
            mode=settings.goldsky_mode,
            chunk=self.chunk,
            prefixes=None if is_list else prefix_range(self.worker, settings.workers),
            refetch="unresolved" if is_list and self.refetch == "unresolved" else "all",
        )


def fetch_worker(
    settings: Settings,
    worker: int,
    *,
    refetch: str = "all",
    log: Logger,
    run_id: str = "",
    backfill_id: str = "",
    reuse_finished: Callable[[str], bool] = lambda _run_id: False,
) -> FetchSummary:
    """Ask Goldsky for every id of the worker's chunk and finish its ledger.

    A run that died is continued: finished batches are not asked again, failed ids are. ``refetch='unresolved'`` keeps
    the resolved rows of the last finished ledger and asks for the others. A finished ledger is taken as it is where it
    was made for the same ``backfill_id``, or where ``reuse_finished(run id)`` says that the run which made it never
    got to its end.

    Raises InputError, ConfigurationError, WarehouseSchemaError before the first request; GoldskyPermanentError;
    SnapshotLostError; ErrorRateError after having saved what was answered; InterruptedRunError; LockHeldError;
    StorageError.
    """
    partition = partition_key(worker, settings.workers)
    with ExitStack() as stack:
        stack.enter_context(forwarded_to(log, debug=settings.debug))
        store = open_store(settings.runtime_dir)
        store.check_writable()
        conditions = stack.enter_context(_input(settings))
        stack.enter_context(worker_lock(settings, partition, purpose="goldsky_payouts", run_id=run_id, log=log))
        work = _Work(
            settings=settings,
            worker=worker,
            partition=partition,
            refetch=refetch,
            ledger=Ledger(store, partition, log.warning),
            log=log,
            run_id=run_id,
            backfill_id=backfill_id,
            reuse_finished=reuse_finished,
            chunk=conditions.chunk(worker, settings.workers) if conditions is not None else None,
            input_sha256=conditions.sha256 if conditions is not None else "",
        )
        _announce(work, conditions)
        _check_target(settings, log)
        with stop_on_signals() as stop, _seldom_collected():
            return asyncio.run(_run(work, stop))


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """A collector that does not come by for every answer.

    An answer is thousands of small objects without cycles, which are gone when the next one comes; looking through
    them, and through Dagster's quarter of a million every now and then, took a seventh of a worker's time.
    """
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], _YOUNG_OBJECTS), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def _input(settings: Settings) -> Iterator[ConditionFile | None]:
    """The input ids; None in a scan, which has none."""
    if settings.goldsky_mode == "scan":
        yield None
        return
    spool = Path(settings.runtime_dir) if "://" not in settings.runtime_dir else None
    with closing(read_conditions(settings.condition_ids_file, spool)) as conditions:
        yield conditions


def worker_lock(
    settings: Settings, partition: str, *, purpose: str, run_id: str, log: Logger
) -> AbstractContextManager[Any]:
    """One run of a worker at a time, on this machine or, with ``PAYOUT_LIMITER_URL``, on all of them."""
    locks = locks_for(settings)
    if locks is None:
        log.warning(
            "PAYOUT_RUNTIME_DIR is remote and PAYOUT_LIMITER_URL is not set: two machines could run %s at once.",
            partition,
        )
        return nullcontext()
    return locks.hold(partition, purpose=purpose, run_id=run_id, wait_seconds=LOCK_WAIT_SECONDS, log=log.info)


def _check_target(settings: Settings, log: Logger) -> None:
    """The table that the vectors go to is looked at before Goldsky is asked for the first of them."""
    from payout_pipeline.ingest import prepare_target

    prepare_target(settings, log)


def _announce(work: _Work, conditions: ConditionFile | None) -> None:
    """A worker's log begins with its configuration."""
    settings, chunk = work.settings, work.chunk
    if conditions is not None and chunk is not None:
        what = f"ids {chunk.start:,}-{max(chunk.stop - 1, chunk.start):,} ({chunk.count:,}) of {conditions.count:,}"
        if conditions.duplicates:
            what += f" ({conditions.duplicates:,} duplicates left out)"
        what += f" from {settings.condition_ids_file}"
    else:
        span = prefix_range(work.worker, settings.workers)
        what = f"all resolved conditions with prefixes {span.lower} to {span.prefixes[-1] if span.prefixes else '-'}"
    work.log.info(
        f"WORKER {work.worker} of {settings.workers}: {what}; endpoint {scrub(settings.goldsky_endpoint)}; "
        f"{settings.goldsky_batch_size:,} ids a query, {settings.goldsky_concurrent_requests} requests in flight, "
        f"limit {settings.goldsky_rate_limit} shared, {settings.goldsky_max_retries} retries, "
        f"time-out {settings.goldsky_timeout_seconds:g} s; refetch {work.refetch}; ledger {work.ledger.place}"
    )


# ---------------------------------------------------------------------------------------------------------- the run


async def _run(work: _Work, stop: StopRequest) -> FetchSummary:
    from payout_pipeline.goldsky.client import GoldskyClient
    from payout_pipeline.goldsky.pacing import StoppedError
    from payout_pipeline.warehouse.client import load_engine

    totals = _Totals()
    if work.chunk is not None and work.chunk.count == 0:
        return _finish_empty(work, totals)
    loaded: list[asyncio.Future[None]] = []

    def on_wait(reason: str, seconds: float) -> None:
        if seconds > _LONG_WAIT_SECONDS and not loaded:  # time for what the load would begin with
            loaded.append(asyncio.ensure_future(asyncio.to_thread(load_engine, work.settings)))
        if work.settings.debug or reason != "window":
            work.log.info("waiting %.1f s: %s", seconds, scrub(reason))

    try:
        stopped = stop.bind()
        async with GoldskyClient.from_settings(work.settings, stop=stopped, on_wait=on_wait) as client:
            info = await client.probe()
            for attempt in range(1, _PINS_PER_RUN + 1):
                running = work.ledger.start(work.plan(info.schema_kind), reuse_finished=_reusable(work))
                if running.complete:
                    break
                try:
                    _pin(work, client, info, running)
                    await _ask_all(work, client, running, totals)
                    break
                except SnapshotLostError as lost:
                    if attempt == _PINS_PER_RUN:
                        raise
                    work.log.warning("%s. The run of %s is pinned anew.", scrub(str(lost)), work.partition)
                    running.discard()
                    history_kept = not getattr(lost, "history_not_kept", False)
                    info = await client.probe()
                    if not history_kept:
                        running = work.ledger.start(work.plan(info.schema_kind))
                        _pin(work, client, info, running, history_kept=False)
            return _finish(work, client, running, totals)
    except StoppedError:
        number = stop.signal_number or 15
        raise InterruptedRunError(
            f"{work.partition} was interrupted by signal {number}; its finished batches are kept and not asked again. "
            "To continue: start it again.",
            number,
        ) from None


def _reusable(work: _Work) -> bool:
    """Whether the finished ledger is this run's own result: made for the same backfill, or by a run that died later."""
    finished = work.ledger.finished()
    if finished is None or work.input_sha256 != finished.stats.get("input_sha256", ""):
        return False
    same_backfill = bool(work.backfill_id) and finished.stats.get("backfill_id") == work.backfill_id
    former = str(finished.stats.get("run_id", ""))
    if former and former == work.run_id:  # the step is being retried
        return True
    return same_backfill or (bool(former) and work.reuse_finished(former))


def _pin(
    work: _Work, client: GoldskyClient, info: SubgraphInfo, running: RunningLedger, *, history_kept: bool = True
) -> None:
    """Fix the snapshot, or take up that of the run which is continued."""
    if running.pin is not None:
        if running.pin.deployment != info.deployment:
            raise SnapshotLostError(
                f"The deployment behind {scrub(work.settings.goldsky_endpoint)} changed from {running.pin.deployment} "
                f"to {info.deployment} since the run began"
            )
        return
    asked = client.make_pin(info, work.settings.goldsky_block_margin, history_kept=history_kept)
    running.set_pin(
        Pin(
            block_number=asked.number,
            deployment=asked.deployment,
            kind=asked.mode,
            head_number=info.head_number,
            head_timestamp=info.head_timestamp,
            has_indexing_errors=info.has_indexing_errors,
        )
    )
    work.log.info(
        f"snapshot: block {asked.number:,} ({'at' if asked.mode == 'number' else 'at or after'}), "
        f"head {info.head_number:,}, deployment {info.deployment}"
    )


async def _ask_all(work: _Work, client: GoldskyClient, running: RunningLedger, totals: _Totals) -> None:
    """Ask every missing batch, as many at a time as the settings allow. Stops all at the first fault."""
    reporter = _Reporter(work, running, totals, client)
    await asyncio.to_thread(reporter.begin)
    if work.chunk is not None:
        jobs: Iterator[int] = iter(running.missing_batches)
        ask = _ask_batch
    else:
        done = running.finished_batches
        jobs = iter([index for index in _prefixes(work) if index not in done])
        ask = _scan_prefix

    allowed = work.settings.goldsky_concurrent_requests
    storing = _Storing(1 if work.ledger.store.local_path() is not None else allowed)
    suspects = _Suspects(work, running)

    async def lane() -> None:
        for index in jobs:
            store, absent = await ask(work, client, running, index, totals, reporter)
            await asyncio.shield(storing.begin(store))
            await suspects.add(client, index, absent)

    try:
        await _in_lanes(work, lane, storing)
        if work.chunk is not None:
            await _confirm_absences(work, client, running, totals, suspects)
    finally:
        await asyncio.to_thread(reporter.end)


class _Storing:
    """Batches on their way to disk. A fault among them is known at once, and what was answered is kept in any case.

    ``threads``: one for a disk, since each more takes turns with the others and with the event loop, and a batch is ready
    later; where a write waits for the network, several.
    """

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="storing")
        self._under_way: set[asyncio.Future[None]] = set()
        self.fault: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def begin(self, store: Callable[[], None]) -> asyncio.Future[None]:
        """Run ``store`` in a thread."""
        batch: asyncio.Future[None] = asyncio.get_running_loop().run_in_executor(
            self._threads, copy_context().run, store
        )
        self._under_way.add(batch)
        batch.add_done_callback(self._ended)
        return batch

    def _ended(self, batch: asyncio.Future[None]) -> None:
        self._under_way.discard(batch)
        fault = None if batch.cancelled() else batch.exception()
        if fault is not None and not self.fault.done():
            self.fault.set_exception(fault)

    async def end(self) -> None:
        """Wait for what is under way; faults have been told already."""
        await asyncio.gather(*self._under_way, return_exceptions=True)
        self._threads.shutdown(wait=False)
        if self.fault.done():
            self.fault.exception()


async def _in_lanes(
    work: _Work, lane: Callable[[], Coroutine[Any, Any, None]], storing: _Storing | None = None
) -> None:
    """Run ``lane`` in more places than requests may be in flight; the first fault, of ``storing`` too, stops them all.

    The client lets no more requests go than the settings allow. A lane more for each two of them means that another
    request is on its way while an answer is read and goes to disk; no more than that is lost when the process is killed.
    """
    allowed = work.settings.goldsky_concurrent_requests
    lanes = [asyncio.ensure_future(lane()) for _ in range(allowed + -(-allowed // 2))]
    whole = asyncio.gather(*lanes)
    try:
        first: set[asyncio.Future[Any]] = {whole} if storing is None else {whole, storing.fault}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        await (storing.fault if storing is not None and storing.fault.done() else whole)
    finally:
        for task in lanes:
            task.cancel()
        await asyncio.gather(whole, *lanes, return_exceptions=True)
        if storing is not None:
            await storing.end()


class _Suspects:
    """Ids that an answer of this process did not have. As soon as there are enough for a request they are asked again.

    ``caught``: the subgraph left out ids that it has, so that two answers which agree are not enough for any of them.
    What got no answer is left for the end.
    """

    def __init__(self, work: _Work, running: RunningLedger) -> None:
        self._running, self._size = running, work.settings.goldsky_batch_size
        self._known = _absent_before(work) if running.carried else set()
        # Of a batch whose failed ids alone are asked now the others have had one answer, from an earlier process.
        self._earlier = running.finished_batches | running.partial_batches
        self._waiting: dict[str, int] = {}
        self._unanswered: dict[str, int] = {}
        self.caught = False

    async def add(self, client: GoldskyClient, index: int, absent: Sequence[str]) -> None:
        """Note the absent ids of a batch, and ask again for those that fill a request."""
        if index not in self._earlier:
            self._waiting.update((i, index) for i in absent if i not in self._known)
        if len(self._waiting) >= self._size and not self.caught:
            piece = dict(islice(self._waiting.items(), self._size))
            for i in piece:
                del self._waiting[i]
            answer = await client.fetch_batch(list(piece), _asked(self._running))
            self.caught |= bool(answer.found)
            self._unanswered.update((i, at) for i, at in piece.items() if i in answer.found or i in answer.failed)

    def batch_of(self) -> dict[str, int]:
        """The ids whose absence is still to be confirmed, with their batches."""
        skipped = set() if self.caught else self._running.finished_batches - self._earlier
        stored = self._running.ids_with_status("absent", skipped)
        return {i: at for at, ids in stored for i in ids if i not in self._known} | self._waiting | self._unanswered


async def _confirm_absences(
    work: _Work, client: GoldskyClient, running: RunningLedger, totals: _Totals, suspects: _Suspects
) -> None:
    """Ask once more for the ids that an answer did not have: an absence counts when two answers agree.

    No answer shows by itself that an id was left out of it. Ids that the former snapshot had as absent already, and
    that are still, have their second answer. One request for a thousand absent ids.
    """
    batch_of = suspects.batch_of()
    wanted = 2 if suspects.caught else 1  # answers in a row that agree; one more where ids were left out
    for _ in range(_CONFIRMATIONS):
        if not batch_of:
            return
        if await _ask_again(work, client, running, totals, batch_of):
            wanted = 2
        wanted -= 1
        if wanted == 0:
            return
    raise GoldskyUnavailableError(
        f"{work.partition}: the subgraph left out other ids in each of {_CONFIRMATIONS} answers, so an absence means "
        "nothing. What was answered is saved.\nTo repair it: start it again when the subgraph answers alike."
    )


async def _ask_again(
    work: _Work, client: GoldskyClient, running: RunningLedger, totals: _Totals, batch_of: dict[str, int]
) -> bool:
    """Ask for the absent ids of ``batch_of``, store what is there after all and take it out; whether there was any."""
    suspects = list(batch_of)
    size = work.settings.goldsky_batch_size
    pieces = iter([suspects[start : start + size] for start in range(0, len(suspects), size)])
    seen = False

    async def lane() -> None:
        nonlocal seen
        for piece in pieces:
            answer = await client.fetch_batch(piece, _asked(running))
            answered_at = datetime.now(timezone.utc)
            changed = [i for i in piece if i in answer.found or i in answer.failed]
            if answer.failed:
                totals.last_error = next(iter(answer.failed.values()))
            for index in sorted({batch_of[i] for i in changed}):
                ids = [i for i in changed if batch_of[i] == index]
                table = _table(ids, answer.found, answer.failed, answer.block_number, answered_at, client)
                await asyncio.to_thread(running.amend, index, table)
            for i in changed:
                del batch_of[i]
            if answer.found:
                seen = True
                work.log.warning(
                    f"{len(answer.found):,} ids that an answer had left out were there when asked again, "
                    f"first {next(iter(answer.found))}; the second answer counts"
                )

    await _in_lanes(work, lane)
    return seen


def _absent_before(work: _Work) -> set[str]:
    """The ids that the finished ledger has as absent."""
    return {i for batch in work.ledger.read(["condition_id"], ["absent"]) for i in batch.column(0).to_pylist()}


async def _ask_batch(
    work: _Work, client: GoldskyClient, running: RunningLedger, index: int, totals: _Totals, reporter: _Reporter
) -> tuple[Callable[[], None], Sequence[str]]:
    """Ask for a batch; the first that is returned stores it, the second are the ids that the answer did not have."""
    ids = running.ids_to_ask(index)
    answer = await client.fetch_batch(ids, _asked(running))
    answered_at = datetime.now(timezone.utc)
    totals.ids_asked += len(ids)
    if answer.failed:
        totals.last_error = next(iter(answer.failed.values()))

    def store() -> None:
        table = _table(ids, answer.found, answer.failed, answer.block_number, answered_at, client)
        running.write_batch(index, table)
        reporter.batch(index, len(ids), _resolved(table), answer.duration, answer.attempts)

    return store, answer.absent


async def _scan_prefix(
    work: _Work, client: GoldskyClient, running: RunningLedger, index: int, totals: _Totals, reporter: _Reporter
) -> tuple[Callable[[], None], Sequence[str]]:
    """Ask for all pages of a prefix; what is returned stores them, and names no absent ids: a scan has none."""
    import pyarrow as pa

    prefix = f"{index:02x}"
    pages: list[pa.Table] = []
    started, requests = time.monotonic(), 0
    # The smallest id of the prefix itself is included: `after` is exclusive, and nothing is smaller than no digits.
    after = f"{index - 1:02x}".ljust(64, "f") if index else ""
    upper = f"{index + 1:02x}" if index < 255 else None
    async for page in client.scan(after, upper, _asked(running)):
        ids = list(page.found)
        pages.append(_table(ids, page.found, {}, page.block_number, datetime.now(timezone.utc), client))
        requests += page.requests
    table = pa.concat_tables(pages) if pages else _table([], {}, {}, 0, datetime.now(timezone.utc), client)
    totals.ids_asked += table.num_rows
    seconds = time.monotonic() - started

    def store() -> None:
        running.write_batch(index, table, prefix)
        reporter.batch(index, table.num_rows, _resolved(table), seconds, requests)

    return store, ()


def _resolved(table: pa.Table) -> int:
    import pyarrow.compute as pc

    return int(pc.sum(pc.equal(table["status"], "resolved")).as_py() or 0)


def _asked(running: RunningLedger) -> AskedPin:
    from payout_pipeline.goldsky.answers import Pin as AskedPin

    pin = running.pin
    if pin is None:
        raise IncompleteError(f"run {running.run_id} has no snapshot")
    return AskedPin(pin.block_number, pin.deployment, pin.kind)


def _table(
    ids: Sequence[str],
    found: Mapping[str, RawCondition],
    failed: Mapping[str, str],
    block_number: int,
    answered_at: datetime,
    client: GoldskyClient,
) -> pa.Table:
    """The ledger rows of an answer."""
    info = client.info
    numerators = info is not None and info.schema_kind == "numerators"
    resolved_at: dict[str, int | None] = {}
    if info is not None and info.has_resolution_timestamp:
        resolved_at = {i: _seconds(c.resolution_timestamp) for i, c in found.items()}
    if not failed:
        table = rows_by_shape(
            ids,
            found,
            numerators=numerators,
            block_number=block_number,
            fetched_at=answered_at,
            resolved_at=resolved_at,
        )
        if table is not None:
            return table
    answered: dict[str, Vector | InvalidVector | None] = {}
    raw: dict[str, str | None] = {}
    for condition_id, condition in found.items():
        if numerators:
            vector = parse_numerators(condition.payout_numerators, condition.payout_denominator)
            shown = raw_text([condition.payout_numerators, condition.payout_denominator])
        else:
            vector = parse_payouts(condition.payouts)
            shown = raw_text(condition.payouts)
        answered[condition_id] = vector
        raw[condition_id] = shown
    return rows_from_answer(
        ids,
        answered,
        raw=raw,
        block_number=block_number,
        fetched_at=answered_at,
        resolved_at=resolved_at,
        failed={condition_id: excerpt(error, 500) for condition_id, error in failed.items()},
    )


def _seconds(value: object) -> int | None:
    """A resolution time in seconds since 1970, as the subgraph gives it (a number or its digits); None if it is none."""
    try:
        seconds = int(str(value))
    except ValueError:
        return None
    # 2106-02-07, the end of ClickHouse's DateTime; 0 is how some deployments write an unknown time.
    return seconds if 0 < seconds < 2**32 else None


# ------------------------------------------------------------------------------------------------- telling about it


class _Reporter:
    """Checkpoint, progress file and log of a run, refreshed as batches come in. A view: the ledger is the truth."""

    def __init__(self, work: _Work, running: RunningLedger, totals: _Totals, client: GoldskyClient) -> None:
        self._work, self._running, self._totals, self._client = work, running, totals, client
        self._writer = checkpoint_writer(work, running, client.info.schema_kind if client.info else "")

    def begin(self) -> None:
        """Note where the run starts from; an unreadable checkpoint is set aside here, loudly, and made anew."""
        store, worker = self._work.ledger.store, self._work.worker
        read_checkpoint(store, worker, self._work.log.warning, repair=True)
        resumed = self._running.batches_done
        self._totals.batches_resumed = resumed
        if resumed:
            self._work.log.info(f"resuming: {resumed:,} of {self._running.batch_count:,} batches are finished already")
        else:
            self._writer.start_progress_anew()
        self._writer.save(self._running)

    def batch(self, index: int, ids: int, found: int, seconds: float, attempts: int) -> None:
        """A batch is on disk."""
        refreshed = self._writer.batch_done(
            index, ids=ids, found=found, duration_seconds=seconds, attempts=attempts, totals=self._running
        )
        if refreshed:
            self._log_progress(self._running.counts)

    def end(self) -> None:
        """The last state, whatever ended the run."""
        self._writer.save(self._running)

    def _log_progress(self, counts: dict[str, int]) -> None:
        done = sum(counts.values())
        seconds = time.monotonic() - self._totals.started
        rate = self._totals.ids_asked / seconds if seconds > 0 else 0.0
        total = self._running.ids_total
        left = f", about {(total - done) / rate:.0f} s left" if rate > 0 and total else ""
        of = f" of {total:,} ({100 * done / total:.1f} %)" if total else ""
        self._work.log.info(
            f"{self._work.partition}: {done:,}{of} ids, {counts['resolved']:,} payouts found, {rate:,.0f} ids/s{left}; "
            f"{self._client.stats.requests:,} requests, {self._client.pacer.stats.answers_429} answers of 429"
        )


def checkpoint_writer(work: _Work, running: RunningLedger, schema_kind: str) -> CheckpointWriter:
    """The writer of the guide's checkpoint and progress files for a run."""
    return CheckpointWriter(
        work.ledger.store,
        worker=work.worker,
        partition=work.partition,
        fingerprint=work.plan(schema_kind).fingerprint,
        ids=running.ids_total if work.chunk is not None else None,
        batches=running.batch_count if work.chunk is not None else len(_prefixes(work)),
        start_time=iso_time(datetime.fromisoformat(running.started_at)),
        interval=work.settings.checkpoint_interval,
        pin=running.pin,
    )


def _prefixes(work: _Work) -> list[int]:
    """A scan's batches: the two-digit prefixes of the worker's range, as numbers."""
    return [int(prefix, 16) for prefix in prefix_range(work.worker, work.settings.workers).prefixes]


# ---------------------------------------------------------------------------------------------------------- the end


def _finish_empty(work: _Work, totals: _Totals) -> FetchSummary:
    """A chunk without ids materializes with 0 rows, and asks nothing."""
    running = work.ledger.start(work.plan("none"))
    if running.pin is None:
        running.set_pin(Pin(block_number=0, deployment=""))
    return _finish(work, None, running, totals)


def _finish(work: _Work, client: GoldskyClient | None, running: RunningLedger, totals: _Totals) -> FetchSummary:
    """Make the ledger of the run, unless too many of its ids failed."""
    counts = running.counts
    total = sum(counts.values())
    errors = sum(counts[status] for status in ERROR_STATUSES)
    limit = work.settings.max_error_rate
    if total and errors / total > limit:
        raise ErrorRateError(
            f"{work.partition}: {errors:,} of {total:,} ids failed or are invalid ({100 * errors / total:.2f} %); "
            f"PAYOUT_MAX_ERROR_RATE allows {100 * limit:g} %. What was answered is saved."
            + (f" Last error: {excerpt(totals.last_error, 300)}." if totals.last_error else "")
            + f"\nTo repair it: start {work.partition} again when Goldsky answers; only the failed ids are asked again."
        )
    seconds = time.monotonic() - totals.started
    stats: dict[str, Any] = {
        "run_id": work.run_id,
        "backfill_id": work.backfill_id,
        "input_sha256": work.input_sha256,
        "requests": client.stats.requests if client else 0,
        "retries": client.stats.retries if client else 0,
        "rate_limited": client.pacer.stats.answers_429 if client else 0,
        "waits": client.pacer.stats.waits if client else 0,
        "waited_seconds": round(client.pacer.stats.wait_seconds, 3) if client else 0.0,
        "seconds": round(seconds, 3),
    }
    if work.chunk is None and not running.complete:
        _check_scan_is_whole(work, running)
    info = running.finish(stats)
    checkpoint_writer(work, running, info.schema_kind).save(running, complete=True)
    summary = _summary(work, info, totals, stats)
    work.log.info(
        f"✅ WORKER {work.worker} COMPLETE! {info.ids:,} ids: "
        + ", ".join(f"{count:,} {status}" for status, count in info.counts.items())
        + f"; {stats['requests']:,} requests in {seconds:.1f} s ({summary.ids_per_second:,.0f} ids/s), "
        f"{stats['retries']} retries, {stats['rate_limited']} answers of 429"
    )
    return summary


def _check_scan_is_whole(work: _Work, running: RunningLedger) -> None:
    wanted = set(_prefixes(work))
    missing = sorted(wanted - running.finished_batches)
    if missing:
        raise IncompleteError(
            f"{work.partition}: the scan lacks {len(missing)} of {len(wanted)} prefixes; start it again."
        )


def _summary(work: _Work, info: SnapshotInfo, totals: _Totals, stats: dict[str, Any]) -> FetchSummary:
    others = 0
    for worker in range(1, work.settings.workers + 1):
        if worker != work.worker:
            other = Ledger(work.ledger.store, partition_key(worker, work.settings.workers)).finished()
            others += other.ids if other else 0
    return FetchSummary(
        partition=work.partition,
        worker=work.worker,
        ids=info.ids,
        ids_of_all_partitions=info.ids + others,
        ids_asked=totals.ids_asked,
        counts=info.counts,
        batches=info.batches,
        batches_resumed=totals.batches_resumed,
        requests=stats["requests"],
        retries=stats["retries"],
        rate_limited=stats["rate_limited"],
        waits=stats["waits"],
        waited_seconds=stats["waited_seconds"],
        block_number=info.pin.block_number,
        snapshot=f"{'at' if info.pin.kind == 'number' else 'at or after (history is not kept)'} block {info.pin.block_number}",
        deployment=info.pin.deployment,
        head_timestamp=info.pin.head_timestamp,
        has_indexing_errors=info.pin.has_indexing_errors,
        seconds=stats["seconds"],
        shapes=payout_shapes(work.ledger),
        failures=[
            (condition_id, f"{status}: {error}")
            for condition_id, status, error in work.ledger.failures(_FAILURES_SHOWN)
        ],
        fingerprint=info.fingerprint,
        input_sha256=work.input_sha256,
        files=[
            work.ledger.place,
            work.ledger.store.describe(checkpoint_name(work.worker)),
            work.ledger.store.describe(progress_name(work.worker)),
        ],
    )


def payout_shapes(ledger: Ledger) -> list[tuple[str, int]]:
    """How often each vector occurs in a finished ledger, as ``[1, 0]/1``, the most frequent first (at most 50)."""
    import numpy as np

    shapes: Counter[str] = Counter()
    for batch in ledger.read(["payouts", "payout_numerators", "payout_denominator"], ["resolved"]):
        # One text has one vector, so a row of each text is enough; several texts can have the same one.
        texts = batch.column(0).dictionary_encode().indices.to_numpy()
        _, first, counts = np.unique(texts, return_index=True, return_counts=True)
        rows = batch.take(first)
        for numerators, denominator, count in zip(
            rows.column(1).to_pylist(), rows.column(2).to_pylist(), counts.tolist(), strict=True
        ):
            shapes[f"{numerators}/{denominator}"] += count
    return shapes.most_common(_SHAPES_SHOWN)
