"""One worker's run: its ids go to Goldsky in batches, what comes back goes into the ledger.

Settings, runtime directory, ids and the target table are checked before the first request; the snapshot is pinned before
the first batch; a batch is on disk before it counts; the checkpoint and progress files are views of what is on disk.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from payout_pipeline.errors import (
    ErrorRateError,
    InterruptedRunError,
    SnapshotLostError,
)
from payout_pipeline.fetch_summary import FetchStats, FetchSummary, summarise
from payout_pipeline.ids.chunks import Chunk, PrefixRange, chunk_of, partition_key, prefix_range
from payout_pipeline.ids.today import source_of_ids, todays_ids
from payout_pipeline.ledger import ERROR_STATUSES, Ledger, Pin, RunningLedger, SnapshotInfo, start_run
from payout_pipeline.ledger.checkpoint import CheckpointWriter, read_checkpoint, write_complete
from payout_pipeline.ledger.info import Refetch
from payout_pipeline.logs import forwarded_to
from payout_pipeline.questions import Questions
from payout_pipeline.scrub import excerpt, scrub
from payout_pipeline.settings import Settings
from payout_pipeline.signals import StopRequest, stop_on_signals
from payout_pipeline.storage import open_store
from payout_pipeline.worker_lock import worker_lock

if TYPE_CHECKING:
    from logging import Logger

    from payout_pipeline.goldsky.answers import SubgraphInfo
    from payout_pipeline.goldsky.client import GoldskyClient

#: How often a run is pinned anew (a deployment that moves, history that is pruned) before it gives up.
_PINS_PER_RUN = 3


@dataclass
class _Work:
    """What a worker has to do, settled before the first request, and what this process did for it so far."""

    settings: Settings
    worker: int
    partition: str
    refetch: Refetch
    ids: Chunk | PrefixRange
    ledger: Ledger
    log: Logger
    stats: FetchStats
    """Of the run so far: who runs it, and for which input."""
    started: float = field(default_factory=time.monotonic)

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
    on_killed_run: Callable[[str], None] = lambda _run_id: None,
) -> FetchSummary:
    """Ask Goldsky for every id of the worker's chunk and finish its ledger.

    An interrupted run is continued: finished batches are not asked again, failed ids are. ``refetch='unresolved'`` keeps
    the resolved rows of the last finished ledger and asks for the others. A finished ledger is taken as it is where it
    was made for the same ``backfill_id``, or where ``reuse_finished(run id)`` says that the run which made it did
    not finish. ``on_killed_run`` is told the id of an earlier run that was killed while it had the worker's lock.

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
        ids, input_sha256, described = _ids(settings, worker)
        stack.enter_context(
            worker_lock(
                settings, partition, purpose="goldsky_payouts", run_id=run_id, log=log, on_killed_run=on_killed_run
            )
        )
        ledger = Ledger(store, partition, log.warning)
        stats = FetchStats(run_id=run_id, backfill_id=backfill_id, input_sha256=input_sha256)
        work = _Work(settings, worker, partition, refetch, ids, ledger, log, stats)
        _announce(work, described)
        prepare_target(settings, log)
        read_checkpoint(store, worker, log.warning, repair=True)  # a damaged one is kept aside before it is replaced
        finished = _own_result(work, reuse_finished)
        if finished is None:
            finished = _run(work)
        write_complete(store, worker, finished)
        return summarise(settings, worker, ledger, finished)


def _ids(settings: Settings, worker: int) -> tuple[Chunk | PrefixRange, str, str]:
    """The worker's ids (in a scan: its range of prefixes), the fingerprint of the whole input, and a description."""
    if settings.goldsky_mode == "scan":
        span = prefix_range(worker, settings.workers)
        bounds = f"{span.prefixes[0]} to {span.prefixes[-1]}" if span.prefixes else "(none)"
        return span, "", f"all resolved conditions with prefixes {bounds}"
    found = todays_ids(settings)
    chunk = chunk_of(found, worker, settings.workers)
    duplicates = f" ({found.duplicates:,} duplicates left out)" if found.duplicates else ""
    described = (
        f"ids {chunk.start:,}-{max(chunk.stop - 1, chunk.start):,} ({chunk.count:,}) of {found.count:,}{duplicates} "
        f"from {source_of_ids(settings)}"
    )
    return chunk, found.sha256, described


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
    """The finished ledger, if it is this run's own result: made for the same backfill, or by a run that failed later."""
    finished = work.ledger.finished()
    if finished is None:
        return None
    former, own = FetchStats.of(finished), work.stats
    if former.input_sha256 != own.input_sha256:
        return None
    asked = work.plan(finished.schema_kind, finished.pin)
    same_backfill = bool(own.backfill_id) and former.backfill_id == own.backfill_id
    mine = same_backfill or (bool(former.run_id) and (former.run_id == own.run_id or reuse_finished(former.run_id)))
    if not mine or finished.fingerprint != asked.fingerprint or not work.ledger.is_whole(work.ids):
        return None
    work.log.info(f"{work.partition}: took the finished snapshot {finished.snapshot_id}, which was not delivered yet")
    return finished


# ---------------------------------------------------------------------------------------------------------- the run


def _run(work: _Work) -> SnapshotInfo:
    if isinstance(work.ids, Chunk) and work.ids.count == 0:  # materializes with 0 rows, and asks nothing
        return _finish(work, start_run(work.ledger, work.plan("none", Pin(0, "")), work.ids), work.stats)
    with stop_on_signals() as stop:
        try:
            finished = _finish(work, *asyncio.run(_ask(work, stop)))
        except asyncio.CancelledError:
            finished = None
    if stop.requested or finished is None:
        number = stop.signal_number or signal.SIGTERM
        raise InterruptedRunError(
            f"{work.partition} was interrupted by signal {number}; its finished batches are kept and not asked again. "
            "To continue: start it again.",
            number,
        )
    return finished


async def _ask(work: _Work, stop: StopRequest) -> tuple[RunningLedger, FetchStats, str]:
    """Ask everything, pinned anew where the snapshot is lost: the run, how it asked, and its last error."""
    from payout_pipeline.goldsky.client import GoldskyClient

    stop.cancels_this_task()
    async with GoldskyClient.from_settings(work.settings) as client:
        history_kept = True
        for left in reversed(range(_PINS_PER_RUN)):
            info = await client.probe()
            running = _begin(work, client, info, history_kept)
            try:
                resumed = running.batches_done
                questions = await _ask_all(work, client, running)
                return running, _stats(work, client, questions, resumed), questions.last_error
            except SnapshotLostError as lost:
                if not left:
                    raise
                work.log.warning("%s. The run of %s is pinned anew.", scrub(str(lost)), work.partition)
                running.discard()
                history_kept = history_kept and not getattr(lost, "history_not_kept", False)
    raise AssertionError("the last attempt returns or raises")


def _begin(work: _Work, client: GoldskyClient, info: SubgraphInfo, history_kept: bool) -> RunningLedger:
    """Pin the snapshot, or continue the interrupted run with its block."""
    pin = client.make_pin(info, work.settings.goldsky_block_margin, history_kept=history_kept)
    running = start_run(work.ledger, work.plan(info.schema_kind, pin), work.ids)
    work.log.info(
        f"snapshot: block {running.pin.block_number:,} ({'at' if running.pin.kind == 'number' else 'at or after'}), "
        f"head {info.head_number:,}, deployment {info.deployment}; "
        f"{running.batches_done:,} of {running.batch_count:,} batches are finished already"
    )
    return running


async def _ask_all(work: _Work, client: GoldskyClient, running: RunningLedger) -> Questions:
    """Ask every missing batch, then once more for the ids that no answer had."""
    store, settings = work.ledger.store, work.settings
    checkpoint = CheckpointWriter(store, work.worker, running, interval=settings.checkpoint_interval)
    checkpoint.begin()
    questions = Questions(
        client, work.ledger, running, checkpoint, lanes=settings.goldsky_concurrent_requests, log=work.log
    )
    try:
        if isinstance(work.ids, PrefixRange):
            await questions.scan()
        else:
            await questions.ask_batches()
            await questions.confirm_absences()
    finally:
        checkpoint.save()
    return questions


# ---------------------------------------------------------------------------------------------------------- the end


def _stats(work: _Work, client: GoldskyClient, questions: Questions, resumed: int) -> FetchStats:
    """How the run asked."""
    if questions.odd_times.count:
        work.log.warning(f"{work.partition}: {questions.odd_times}")
    return replace(
        work.stats,
        ids_asked=questions.ids_asked,
        batches_resumed=resumed,
        requests=client.stats.requests,
        batches_per_request=client.batches_per_request,
        shrunk_because=scrub(client.shrunk_because),
        retries=client.stats.retries,
        rate_limited=client.pacer.stats.answers_429,
        waits=client.pacer.stats.waits,
        waited_seconds=round(client.pacer.stats.wait_seconds, 3),
        odd_times=questions.odd_times.count,
    )


def _finish(work: _Work, running: RunningLedger, stats: FetchStats, last_error: str = "") -> SnapshotInfo:
    """Make the ledger of the run, unless too many of its ids failed."""
    _check_error_rate(work, running, last_error)
    stats = replace(stats, seconds=round(time.monotonic() - work.started, 3))
    info = running.finish(asdict(stats))
    work.log.info(
        f"✅ WORKER {work.worker} COMPLETE! {info.ids:,} ids: "
        + ", ".join(f"{count:,} {status}" for status, count in info.counts.items())
        + f"; {stats.requests:,} requests in {stats.seconds:.1f} s ({stats.ids_per_second:,.0f} ids/s), "
        f"{stats.retries} retries, {stats.rate_limited} answers of 429"
    )
    return info


def _check_error_rate(work: _Work, running: RunningLedger, last_error: str) -> None:
    """Raises ErrorRateError where more ids failed, or are invalid, than ``PAYOUT_MAX_ERROR_RATE`` allows."""
    counts = running.counts
    total, errors = sum(counts.values()), sum(counts[status] for status in ERROR_STATUSES)
    limit = work.settings.max_error_rate
    if not total or errors / total <= limit:
        return
    repair = (
        "What was answered is saved."
        f"\nTo repair it: start {work.partition} again when Goldsky answers; only the failed ids are asked again."
    )
    if counts["invalid"] / total > limit:
        # Asking for the failed ids alone would end here for ever.
        running.discard()
        repair = (
            "The invalid vectors alone are too many.\nTo repair it: inspect one with `payout-pipeline query`; set "
            f"PAYOUT_MAX_ERROR_RATE higher if they are to be left out; start {work.partition} again, which asks all ids."
        )
    raise ErrorRateError(
        f"{work.partition}: {errors:,} of {total:,} ids failed or are invalid ({100 * errors / total:.2f} %): "
        f"{counts['failed']:,} failed, {counts['invalid']:,} invalid; PAYOUT_MAX_ERROR_RATE allows {100 * limit:g} %. "
        + (f"Last error: {excerpt(last_error, 300)}. " if last_error else "")
        + repair
    )
