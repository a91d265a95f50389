"""One worker's run: its ids go to Goldsky in batches, what comes back goes into the ledger.

The order matters and is the same every time: settings, runtime directory, ids and the target table are looked at before
the first request; the snapshot is pinned before the first batch; a batch is on disk before it counts; the checkpoint and
progress files are views of what is on disk.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from payout_pipeline.conditions import Chunk, PrefixRange, partition_key, prefix_range, read_conditions
from payout_pipeline.errors import (
    ErrorRateError,
    GoldskyUnavailableError,
    InterruptedRunError,
    SnapshotLostError,
)
from payout_pipeline.fetch_summary import FetchSummary, summarise
from payout_pipeline.ledger import ERROR_STATUSES, Ledger, Pin, RunningLedger, SnapshotInfo, start_run
from payout_pipeline.ledger.answers import OddTimes, rows_of_answer
from payout_pipeline.ledger.checkpoint import CheckpointWriter, read_checkpoint, write_complete
from payout_pipeline.ledger.info import Refetch
from payout_pipeline.locks import locks_for
from payout_pipeline.logs import forwarded_to
from payout_pipeline.scrub import excerpt, scrub
from payout_pipeline.settings import Settings
from payout_pipeline.signals import StopRequest, stop_on_signals
from payout_pipeline.storage import open_store

if TYPE_CHECKING:
    from logging import Logger

    import pyarrow as pa

    from payout_pipeline.goldsky.answers import SubgraphInfo
    from payout_pipeline.goldsky.client import BatchAnswer, GoldskyClient

#: A second run of the same worker waits this long for the first one to end, then refuses and names it.
LOCK_WAIT_SECONDS = 30.0
#: How often a run is pinned anew (a deployment that moves, history that is pruned) before it gives up.
_PINS_PER_RUN = 3
#: How often absent ids are asked again while their number keeps changing.
_CONFIRMATIONS = 10


@dataclass
class _Work:
    """What a worker has to do, settled before the first request, and what this process did for it so far."""

    settings: Settings
    worker: int
    partition: str
    refetch: Refetch
    ids: Chunk | PrefixRange
    input_sha256: str
    ledger: Ledger
    log: Logger
    run_id: str
    backfill_id: str

    started: float = field(default_factory=time.monotonic)
    ids_asked: int = 0
    batches_resumed: int = 0
    last_error: str = ""
    odd_times: OddTimes = field(default_factory=OddTimes)

    def plan(self, schema_kind: str, pin: Pin) -> SnapshotInfo:
        """The snapshot to be made of a subgraph of this schema at this block."""
        return SnapshotInfo.planned(
            self.partition,
            self.ids,
            endpoint=self.settings.goldsky_endpoint,
            batch_size=self.settings.goldsky_batch_size,
            schema_kind=schema_kind,
            pin=pin,
            refetch=self.refetch,
        )


def fetch_worker(
    settings: Settings,
    worker: int,
    *,
    refetch: Refetch = "all",
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
    from payout_pipeline.ingest import prepare_target

    partition = partition_key(worker, settings.workers)
    with ExitStack() as stack:
        stack.enter_context(forwarded_to(log, debug=settings.debug))
        store = open_store(settings.runtime_dir)
        store.check_writable()
        ids, input_sha256, described = _ids(settings, worker, stack)
        stack.enter_context(worker_lock(settings, partition, purpose="goldsky_payouts", run_id=run_id, log=log))
        ledger = Ledger(store, partition, log.warning)
        work = _Work(settings, worker, partition, refetch, ids, input_sha256, ledger, log, run_id, backfill_id)
        _announce(work, described)
        prepare_target(settings, log)
        finished = _own_result(work, reuse_finished)
        if finished is None:
            with stop_on_signals() as stop:
                finished = asyncio.run(_run(work, stop))
        write_complete(store, worker, finished)
        return summarise(settings, worker, ledger, finished)


def _ids(settings: Settings, worker: int, stack: ExitStack) -> tuple[Chunk | PrefixRange, str, str]:
    """The worker's ids (in a scan: its range of prefixes), the fingerprint of the whole input, and both in words."""
    if settings.goldsky_mode == "scan":
        span = prefix_range(worker, settings.workers)
        bounds = f"{span.prefixes[0]} to {span.prefixes[-1]}" if span.prefixes else "(none)"
        return span, "", f"all resolved conditions with prefixes {bounds}"
    found = stack.enter_context(closing(read_conditions(settings.condition_ids_file)))
    chunk = found.chunk(worker, settings.workers)
    duplicates = f" ({found.duplicates:,} duplicates left out)" if found.duplicates else ""
    described = (
        f"ids {chunk.start:,}-{max(chunk.stop - 1, chunk.start):,} ({chunk.count:,}) of {found.count:,}{duplicates} "
        f"from {settings.condition_ids_file}"
    )
    return chunk, found.sha256, described


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


def _announce(work: _Work, described: str) -> None:
    """A worker's log begins with its configuration."""
    settings = work.settings
    work.log.info(
        f"WORKER {work.worker} of {settings.workers}: {described}; endpoint {scrub(settings.goldsky_endpoint)}; "
        f"{settings.goldsky_batch_size:,} ids a batch, up to {settings.goldsky_batches_per_request} batches a request, "
        f"{settings.goldsky_concurrent_requests} requests in flight, limit {settings.goldsky_rate_limit} shared, "
        f"{settings.goldsky_max_retries} retries, time-out {settings.goldsky_timeout_seconds:g} s; "
        f"refetch {work.refetch}; ledger {work.ledger.place}"
    )


def _own_result(work: _Work, reuse_finished: Callable[[str], bool]) -> SnapshotInfo | None:
    """The finished ledger, if it is this run's own result: made for the same backfill, or by a run that died later."""
    finished = work.ledger.finished()
    if finished is None or finished.stats.get("input_sha256", "") != work.input_sha256:
        return None
    asked = work.plan(finished.schema_kind, finished.pin)
    former = str(finished.stats.get("run_id", ""))
    same_backfill = bool(work.backfill_id) and finished.stats.get("backfill_id") == work.backfill_id
    mine = same_backfill or (bool(former) and (former == work.run_id or reuse_finished(former)))
    if not mine or finished.fingerprint != asked.fingerprint or not work.ledger.is_whole(work.ids):
        return None
    work.log.info(f"{work.partition}: took the finished snapshot {finished.snapshot_id}, which was not delivered yet")
    return finished


# ---------------------------------------------------------------------------------------------------------- the run


async def _run(work: _Work, stop: StopRequest) -> SnapshotInfo:
    from payout_pipeline.goldsky.client import GoldskyClient
    from payout_pipeline.goldsky.pacing import StoppedError

    if isinstance(work.ids, Chunk) and work.ids.count == 0:  # materializes with 0 rows, and asks nothing
        return _finish(work, None, start_run(work.ledger, work.plan("none", Pin(0, "")), work.ids))

    def on_wait(reason: str, seconds: float) -> None:
        if work.settings.debug or reason not in ("window", "pace"):
            work.log.info("waiting %.1f s: %s", seconds, scrub(reason))

    try:
        async with GoldskyClient.from_settings(work.settings, stop=stop.bind(), on_wait=on_wait) as client:
            history_kept = True
            for left in reversed(range(_PINS_PER_RUN)):
                info = await client.probe()
                running = _begin(work, client, info, history_kept)
                try:
                    await _ask_all(work, client, running)
                    return await asyncio.to_thread(_finish, work, client, running)
                except SnapshotLostError as lost:
                    if not left:
                        raise
                    work.log.warning("%s. The run of %s is pinned anew.", scrub(str(lost)), work.partition)
                    running.discard()
                    history_kept = history_kept and not getattr(lost, "history_not_kept", False)
    except StoppedError:
        number = stop.signal_number or 15
        raise InterruptedRunError(
            f"{work.partition} was interrupted by signal {number}; its finished batches are kept and not asked again. "
            "To continue: start it again.",
            number,
        ) from None
    raise AssertionError("the last attempt returns or raises")


def _begin(work: _Work, client: GoldskyClient, info: SubgraphInfo, history_kept: bool) -> RunningLedger:
    """Pin the snapshot, or take up the run that died with its block."""
    asked = client.make_pin(info, work.settings.goldsky_block_margin, history_kept=history_kept)
    pin = Pin(
        block_number=asked.number,
        deployment=asked.deployment,
        kind=asked.mode,
        head_number=info.head_number,
        head_timestamp=info.head_timestamp,
        has_indexing_errors=info.has_indexing_errors,
    )
    running = start_run(work.ledger, work.plan(info.schema_kind, pin), work.ids)
    work.batches_resumed = running.batches_done
    work.log.info(
        f"snapshot: block {running.pin.block_number:,} ({'at' if running.pin.kind == 'number' else 'at or after'}), "
        f"head {info.head_number:,}, deployment {info.deployment}; "
        f"{running.batches_done:,} of {running.batch_count:,} batches are finished already"
    )
    return running


async def _ask_all(work: _Work, client: GoldskyClient, running: RunningLedger) -> None:
    """Ask every missing batch, then once more for the ids that no answer had."""
    read_checkpoint(work.ledger.store, work.worker, work.log.warning, repair=True)
    checkpoint = CheckpointWriter(work.ledger.store, work.worker, running, interval=work.settings.checkpoint_interval)
    checkpoint.begin()
    asking = _Asking(work, client, running, checkpoint)
    try:
        if isinstance(work.ids, PrefixRange):
            await asking.scan()
        else:
            await asking.batches()
            await asking.confirm_absences()
    finally:
        checkpoint.save()


class _Asking:
    """The questions of a run: groups of batches, each group one request."""

    def __init__(
        self, work: _Work, client: GoldskyClient, running: RunningLedger, checkpoint: CheckpointWriter
    ) -> None:
        self._work, self._client, self._running, self._checkpoint = work, client, running, checkpoint
        self._lanes = work.settings.goldsky_concurrent_requests
        self._storing = asyncio.Lock()

    async def batches(self) -> None:
        """Ask all missing batches, spread over the requests that may be in flight so that none is idle."""
        missing = self._running.missing_batches
        evenly = max(1, -(-len(missing) // self._lanes))

        async def ask(group: Sequence[int]) -> None:
            ids = [self._running.ids_to_ask(index) for index in group]
            answers = await self._client.fetch_batches(ids, self._pin)
            await _to_its_end(self._keep_batches(group, ids, answers))

        await self._in_lanes(ask, self._groups(missing, evenly))

    async def _keep_batches(
        self, group: Sequence[int], ids: Sequence[list[str]], answers: Sequence[BatchAnswer]
    ) -> None:
        for index, asked, answer in zip(group, ids, answers, strict=True):
            self._work.ids_asked += len(asked)
            await self._keep(index, self._rows(asked, answer), answer.duration, answer.attempts)

    async def scan(self) -> None:
        """Ask for all resolved conditions of each missing prefix."""

        async def ask(group: Sequence[int]) -> None:
            prefixes = [self._running.prefix(index) for index in group]
            answers = [await self._scanned(prefix) for prefix in prefixes]
            await _to_its_end(self._keep_batches(group, [list(answer.found) for answer in answers], answers))

        await self._in_lanes(ask, self._groups(self._running.missing_batches, 1))

    async def _scanned(self, prefix: str) -> BatchAnswer:
        from payout_pipeline.goldsky.client import BatchAnswer

        number = int(prefix, 16)
        # The smallest id of the prefix itself is included: `after` is exclusive, and nothing is smaller than no digits.
        after = f"{number - 1:02x}".ljust(64, "f") if number else ""
        whole = BatchAnswer()
        async for page in self._client.scan(after, f"{number + 1:02x}" if number < 255 else None, self._pin):
            whole.found |= page.found
            whole.block_number = min(whole.block_number or page.block_number, page.block_number)
            whole.requests += page.requests
        return whole

    async def confirm_absences(self) -> None:
        """Ask once more for the ids that an answer did not have, until nothing changes: an absence counts when two
        answers agree.

        No answer shows by itself that an id was left out of it. In a refresh, ids that the former snapshot had as absent
        already, and that are still, have their second answer.
        """
        known: set[str] = set()
        if self._running.carried:
            absent = self._work.ledger.read(["condition_id"], ["absent"])
            known = {i for batch in absent for i in batch.column(0).to_pylist()}
        batch_of = {i: index for index, ids in self._running.ids_with_status("absent") for i in ids if i not in known}
        for _ in range(_CONFIRMATIONS):
            if not batch_of or not await self._ask_again(batch_of):
                return
        raise GoldskyUnavailableError(
            f"{self._work.partition}: the subgraph left out other ids in each of {_CONFIRMATIONS} answers, so an absence "
            "means nothing. What was answered is saved.\nTo repair it: start it again when the subgraph answers alike."
        )

    async def _ask_again(self, batch_of: dict[str, int]) -> bool:
        """Ask for these ids, store what is there after all and take it out; returns whether there was any."""
        ids, size = list(batch_of), self._work.settings.goldsky_batch_size
        pieces = [ids[start : start + size] for start in range(0, len(ids), size)]
        there: list[str] = []

        async def ask(group: Sequence[list[str]]) -> None:
            answers = await self._client.fetch_batches(group, self._pin)
            await _to_its_end(keep(answers))

        async def keep(answers: Sequence[BatchAnswer]) -> None:
            for answer in answers:
                changed = [*answer.found, *answer.failed]
                there.extend(answer.found)
                for index in sorted({batch_of[i] for i in changed}):
                    mine = [i for i in changed if batch_of[i] == index]
                    await self._keep(index, self._rows(mine, answer))
                for i in changed:
                    del batch_of[i]

        await self._in_lanes(ask, self._groups(pieces, len(pieces)))
        if there:
            self._work.log.warning(
                f"{len(there):,} ids that an answer had left out were there when asked again, first {there[0]}; "
                "the second answer counts"
            )
        return bool(there)

    # -- the parts

    @property
    def _pin(self) -> Any:
        from payout_pipeline.goldsky.answers import Pin as AskedPin

        pin = self._running.pin
        return AskedPin(pin.block_number, pin.deployment, pin.kind)

    def _groups(self, items: Sequence[Any], most: int) -> Iterator[list[Any]]:
        """``items`` in groups of ``most``, or fewer where a request carries no more; that may shrink meanwhile."""
        waiting = deque(items)
        while waiting:
            size = max(1, min(most, self._client.batches_per_request, len(waiting)))
            yield [waiting.popleft() for _ in range(size)]

    async def _in_lanes(self, ask: Callable[[Any], Coroutine[Any, Any, None]], groups: Iterator[Any]) -> None:
        """Ask the groups, as many at a time as requests may be in flight. The first fault stops all."""

        async def lane() -> None:
            for group in groups:
                await ask(group)

        lanes = [asyncio.ensure_future(lane()) for _ in range(self._lanes)]
        try:
            await asyncio.gather(*lanes)
        finally:
            for task in lanes:
                task.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)

    def _rows(self, ids: Sequence[str], answer: BatchAnswer) -> pa.Table:
        """The ledger rows of an answer."""
        info = self._client.info
        assert info is not None  # noqa: S101 - the probe comes first
        if answer.failed:
            self._work.last_error = next(iter(answer.failed.values()))
        return rows_of_answer(ids, answer, info, datetime.now(timezone.utc), self._work.odd_times)

    async def _keep(self, index: int, table: pa.Table, seconds: float = 0.0, attempts: int = 0) -> None:
        """Store rows of a batch, then count them; ``attempts`` is 0 for later answers of a batch on disk."""
        async with self._storing:
            await asyncio.to_thread(self._running.write_batch, index, table)
            if not attempts:
                return
            found = int(sum(1 for status in table["status"].to_pylist() if status == "resolved"))
            if self._checkpoint.batch_done(index, ids=len(table), found=found, seconds=seconds, attempts=attempts):
                self._log_progress()

    def _log_progress(self) -> None:
        work, counts = self._work, self._running.counts
        done, total = sum(counts.values()), self._running.ids_total
        seconds = time.monotonic() - work.started
        rate = work.ids_asked / seconds if seconds > 0 else 0.0
        left = f", about {(total - done) / rate:.0f} s left" if rate > 0 and total else ""
        of = f" of {total:,} ({100 * done / total:.1f} %)" if total else ""
        work.log.info(
            f"{work.partition}: {done:,}{of} ids, {counts['resolved']:,} payouts found, {rate:,.0f} ids/s{left}; "
            f"{self._client.stats.requests:,} requests, {self._client.pacer.stats.answers_429} answers of 429"
        )


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Await ``work``; a cancellation waits until it is done, so that what was answered is stored."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


# ---------------------------------------------------------------------------------------------------------- the end


def _finish(work: _Work, client: GoldskyClient | None, running: RunningLedger) -> SnapshotInfo:
    """Make the ledger of the run, unless too many of its ids failed."""
    _check_error_rate(work, running)
    seconds = time.monotonic() - work.started
    stats: dict[str, Any] = {
        "run_id": work.run_id,
        "backfill_id": work.backfill_id,
        "input_sha256": work.input_sha256,
        "ids_asked": work.ids_asked,
        "batches_resumed": work.batches_resumed,
        "requests": client.stats.requests if client else 0,
        "retries": client.stats.retries if client else 0,
        "batches_per_request": client.batches_per_request if client else 0,
        "shrunk_because": scrub(client.shrunk_because) if client else "",
        "rate_limited": client.pacer.stats.answers_429 if client else 0,
        "waits": client.pacer.stats.waits if client else 0,
        "waited_seconds": round(client.pacer.stats.wait_seconds, 3) if client else 0.0,
        "odd_times": work.odd_times.count,
        "seconds": round(seconds, 3),
    }
    if work.odd_times.count:
        work.log.warning(f"{work.partition}: {work.odd_times}")
    info = running.finish(stats)
    work.log.info(
        f"✅ WORKER {work.worker} COMPLETE! {info.ids:,} ids: "
        + ", ".join(f"{count:,} {status}" for status, count in info.counts.items())
        + f"; {stats['requests']:,} requests in {seconds:.1f} s ({work.ids_asked / max(seconds, 0.001):,.0f} ids/s), "
        f"{stats['retries']} retries, {stats['rate_limited']} answers of 429"
    )
    return info


def _check_error_rate(work: _Work, running: RunningLedger) -> None:
    """Raises ErrorRateError where more ids failed, or are invalid, than ``PAYOUT_MAX_ERROR_RATE`` allows."""
    counts = running.counts
    total, errors = sum(counts.values()), sum(counts[status] for status in ERROR_STATUSES)
    limit = work.settings.max_error_rate
    if not total or errors / total <= limit:
        return
    repair = f"start {work.partition} again when Goldsky answers; only the failed ids are asked again."
    if counts["invalid"] / total > limit:
        # Asking for the failed ids alone would end here for ever.
        running.discard()
        repair = (
            "its invalid vectors alone are too many: set PAYOUT_MAX_ERROR_RATE higher if they are to be left out, then "
            f"start {work.partition} again, which asks all ids anew. `payout-pipeline query` shows one as it was answered."
        )
    raise ErrorRateError(
        f"{work.partition}: {errors:,} of {total:,} ids failed or are invalid ({100 * errors / total:.2f} %): "
        f"{counts['failed']:,} failed, {counts['invalid']:,} invalid; PAYOUT_MAX_ERROR_RATE allows {100 * limit:g} %. "
        "What was answered is saved."
        + (f" Last error: {excerpt(work.last_error, 300)}." if work.last_error else "")
        + f"\nTo repair it: {repair}"
    )
