"""What a run asks Goldsky: batches in groups, each group one request, and once more for the ids that no answer had."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TypeVar

from payout_pipeline.errors import GoldskyUnavailableError
from payout_pipeline.goldsky.queries import chunks
from payout_pipeline.ledger import Ledger, RunningLedger
from payout_pipeline.ledger.answers import OddTimes, rows_of_answer
from payout_pipeline.ledger.checkpoint import CheckpointWriter

if TYPE_CHECKING:
    from logging import Logger

    import pyarrow as pa

    from payout_pipeline.goldsky.client import BatchAnswer, GoldskyClient

#: How often absent ids are asked again while their number keeps changing.
_CONFIRMATIONS = 10
_T = TypeVar("_T")


class Questions:
    """The questions of one run of a worker; what is answered is on disk before it counts.

    Args:
        client: the client, after its probe.
        ledger: the worker's ledger.
        running: the run that is going.
        checkpoint: the guide's files, which follow the run.
        lanes: requests that may be in flight.
        log: told of progress at every checkpoint, and of ids that an answer left out.
    """

    def __init__(
        self,
        client: GoldskyClient,
        ledger: Ledger,
        running: RunningLedger,
        checkpoint: CheckpointWriter,
        *,
        lanes: int,
        log: Logger,
    ) -> None:
        self._client, self._ledger, self._running, self._checkpoint = client, ledger, running, checkpoint
        self._lanes, self._log = lanes, log
        self._storing = asyncio.Lock()
        self._started = time.monotonic()
        self.ids_asked = 0
        self.last_error = ""
        self.odd_times = OddTimes()

    async def ask_batches(self) -> None:
        """Ask all missing batches."""

        async def ask(group: list[int]) -> None:
            ids = [self._running.ids_to_ask(index) for index in group]
            answers = await self._client.fetch_batches(ids, self._running.pin)
            await to_its_end(self._keep_batches(group, ids, answers))

        await self._in_lanes(ask, self._running.missing_batches)

    async def scan(self) -> None:
        """Ask for all resolved conditions of each missing prefix."""

        async def ask(group: list[int]) -> None:
            ranges = [_range_of(self._running.prefix(index)) for index in group]
            answers = await self._client.scan(ranges, self._running.pin)
            await to_its_end(self._keep_batches(group, [list(answer.found) for answer in answers], answers))

        await self._in_lanes(ask, self._running.missing_batches)

    async def _keep_batches(
        self, group: Sequence[int], ids: Sequence[list[str]], answers: Sequence[BatchAnswer]
    ) -> None:
        """Store the batches of an answer, a line of progress each."""
        for index, asked, answer in zip(group, ids, answers, strict=True):
            self.ids_asked += len(asked)
            async with self._storing:
                counts = await self._store(index, asked, answer)
                refreshed = self._checkpoint.batch_done(
                    index, ids=len(asked), found=counts, seconds=answer.duration, attempts=answer.attempts
                )
            if refreshed:
                self._log_progress()

    async def confirm_absences(self) -> None:
        """Ask once more for the ids that an answer did not have, until an answer has none of them.

        No answer shows by itself that a row was left out of it, or that a limit of the server cut it off. After an answer
        that had one of these ids, the others are asked in lists of half the size. Raises GoldskyUnavailableError where
        answers keep differing.
        """
        batch_of = {i: index for index, ids in self._running.ids_with_status("absent") for i in ids}
        size = self._running.info.batch_size
        for _ in range(_CONFIRMATIONS):
            if not batch_of or not await self._ask_again(batch_of, size):
                return
            size = max(1, size // 2)
        raise GoldskyUnavailableError(
            f"{self._ledger.partition}: the subgraph left out other ids in each of {_CONFIRMATIONS} answers, so an absence "
            "means nothing. What was answered is saved.\nTo repair it: start it again when the subgraph answers alike."
        )

    async def _ask_again(self, batch_of: dict[str, int], size: int) -> bool:
        """Ask for these ids in lists of ``size``; store what is there after all and take it out. Returns whether any was."""
        pieces = chunks(list(batch_of), size)
        there: list[str] = []

        async def ask(group: list[list[str]]) -> None:
            await to_its_end(keep(await self._client.fetch_batches(group, self._running.pin)))

        async def keep(answers: Sequence[BatchAnswer]) -> None:
            for answer in answers:
                there.extend(answer.found)
                changed = [*answer.found, *answer.failed]
                for index in sorted({batch_of[i] for i in changed}):
                    async with self._storing:
                        await self._store(index, [i for i in changed if batch_of[i] == index], answer)
                for i in changed:
                    del batch_of[i]

        await self._in_lanes(ask, pieces, spread=False)
        if there:
            self._log.warning(
                f"{len(there):,} ids that an answer had left out were there when asked again, first {there[0]}; "
                "the second answer counts"
            )
        return bool(there)

    # -- the parts

    def _groups(self, items: Sequence[_T], most: int) -> Iterator[list[_T]]:
        """``items`` in groups of ``most``, or fewer where a request carries no more; that may shrink meanwhile."""
        waiting = deque(items)
        while waiting:
            size = min(most, max(1, self._client.batches_per_request), len(waiting))
            yield [waiting.popleft() for _ in range(size)]

    async def _in_lanes(
        self, ask: Callable[[list[_T]], Coroutine[Any, Any, None]], items: Sequence[_T], *, spread: bool = True
    ) -> None:
        """Ask all, ``spread`` over the requests that may be in flight so that none is idle. The first fault stops all."""
        groups = self._groups(items, -(-len(items) // (self._lanes if spread else 1)))

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

    async def _store(self, index: int, ids: Sequence[str], answer: BatchAnswer) -> int:
        """Store the rows of these ids, which belong to a batch; returns how many of them are resolved."""
        info = self._client.info
        assert info is not None  # noqa: S101 - the probe comes first
        if answer.failed:
            self.last_error = next(iter(answer.failed.values()))

        def store() -> pa.Table:
            table = rows_of_answer(ids, answer, info, datetime.now(timezone.utc), self.odd_times)
            self._running.write_batch(index, table)
            return table

        table = await asyncio.to_thread(store)
        return int(table["status"].to_pylist().count("resolved"))

    def _log_progress(self) -> None:
        counts, total = self._running.counts, self._running.ids_total
        done = sum(counts.values())
        seconds = time.monotonic() - self._started
        rate = self.ids_asked / seconds if seconds > 0 else 0.0
        left = f", about {(total - done) / rate:.0f} s left" if rate > 0 and total else ""
        of = f" of {total:,} ({100 * done / total:.1f} %)" if total else ""
        self._log.info(
            f"{self._ledger.partition}: {done:,}{of} ids, {counts['resolved']:,} payouts found, {rate:,.0f} ids/s{left}; "
            f"{self._client.stats.requests:,} requests, {self._client.pacer.stats.answers_429} answers of 429"
        )


def _range_of(prefix: str) -> tuple[str, str | None]:
    """The ids with a prefix of two digits, as the bounds of a scan."""
    number = int(prefix, 16)
    # The smallest id of the prefix itself is included: `after` is exclusive, and nothing is smaller than no digits.
    after = f"{number - 1:02x}".ljust(64, "f") if number else ""
    return after, f"{number + 1:02x}" if number < 255 else None


async def to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Await ``work``; a cancellation waits until it is done, so that what was answered is stored."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise
