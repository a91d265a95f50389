"""The Goldsky client: batches of condition ids in, checked answers out, several batches in one request.

An answer that fails a check is asked for again as a whole, then with fewer batches in a request, then with fewer ids, so
that one poisoned id never costs its neighbours. What a request was refused for because of its size is learned.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gql import GraphQLRequest

from payout_pipeline.errors import GoldskyUnavailableError
from payout_pipeline.goldsky.answers import AnswerFault, BatchAnswer, RawCondition, SubgraphInfo, read_probe
from payout_pipeline.goldsky.classify import Fault, FaultKind, classify_errors, is_indexing_error
from payout_pipeline.goldsky.connection import Connection, SnapshotGoneError, Tally
from payout_pipeline.goldsky.pacing import Pacer
from payout_pipeline.goldsky.pin import Pin
from payout_pipeline.goldsky.queries import (
    MAX_FIRST,
    PROBE,
    IdsQuery,
    PageQuery,
    Query,
    check_answer,
    chunks,
    document,
)

if TYPE_CHECKING:
    from graphql import ExecutionResult

    from payout_pipeline.settings import Settings

__all__ = ["BatchAnswer", "GoldskyClient", "SnapshotGoneError"]

logger = logging.getLogger(__name__)

_REQUESTS_PER_BATCH = 600  # room to find some two dozen poisoned ids among a thousand, one by one
_REQUESTS_WITHOUT_ANSWER = 50  # as many as it takes to find a few poisoned ids, but nothing of a batch was believed
_FEWEST_IDS = 100  # lists are not made smaller than that by what was learned


@dataclass(slots=True)
class _Lesson:
    """A request failed and was taken apart. If all its parts are answered, it failed by its size.

    ``size`` is that of a part, in queries or, ``of_ids``, in ids; ``parts`` are those not answered yet.
    """

    size: int
    of_ids: bool
    message: str
    parts: int


@dataclass(slots=True)
class _Group:
    """Queries that go into one request, and how often it may be sent."""

    queries: list[Query]
    attempts: int
    lesson: _Lesson | None = None


class GoldskyClient(Connection):
    """Asks one subgraph. Use as ``async with GoldskyClient.from_settings(settings) as client``.

    ``batches_per_request`` is how many batches one request carries; it shrinks where the subgraph refuses so many, and
    ``shrunk_because`` says why.
    """

    def __init__(self, endpoint: str, pacer: Pacer, *, batches_per_request: int = 1, **options: Any) -> None:
        """See :class:`.connection.Connection` for ``options``."""
        super().__init__(endpoint, pacer, **options)
        self.batches_per_request = batches_per_request
        self.shrunk_because = ""
        self.info: SubgraphInfo | None = None
        self._rows_per_query = MAX_FIRST
        self._believed = False

    @classmethod
    def from_settings(cls, settings: Settings, *, on_wait: Callable[[str, float], None] | None = None) -> GoldskyClient:
        """A client for ``GOLDSKY_ENDPOINT`` on the rate limit of the machine (or of ``PAYOUT_LIMITER_URL``)."""
        pacer = Pacer.open(
            settings.goldsky_endpoint,
            settings.goldsky_rate_limit,
            runtime_dir=settings.runtime_dir,
            limiter_url=settings.limiter_url.get_secret_value() if settings.limiter_url else None,
            request_timeout=settings.goldsky_timeout_seconds,
            max_retry_after=settings.goldsky_max_retry_after_seconds,
            on_wait=on_wait,
        )
        return cls(
            settings.goldsky_endpoint,
            pacer,
            batches_per_request=settings.goldsky_batches_per_request,
            token=settings.goldsky_api_token.get_secret_value() if settings.goldsky_api_token else None,
            timeout_seconds=settings.goldsky_timeout_seconds,
            max_retries=settings.goldsky_max_retries,
            outage_budget_seconds=settings.goldsky_outage_budget_seconds,
        )

    async def __aenter__(self) -> GoldskyClient:
        await super().__aenter__()
        return self

    async def probe(self) -> SubgraphInfo:
        """Schema, head and deployment in one request; also kept as ``self.info``.

        Raises GoldskyPermanentError at once where no subgraph with usable conditions answers, GoldskyUnavailableError after
        the retries.
        """

        def read(answer: ExecutionResult) -> SubgraphInfo:
            if answer.errors and not (is_indexing_error(answer.errors) and answer.data):
                raise AnswerFault(classify_errors(answer.errors))
            return read_probe(answer.data, self.endpoint, failed=bool(answer.errors))

        tally = Tally()
        try:
            self.info = await self.ask(
                GraphQLRequest(PROBE),
                read,
                tally,
                most_rows=MAX_FIRST,
                repeat=lambda _fault, attempt: attempt <= self.max_retries,
            )
        except AnswerFault as error:
            raise self.final(error.fault, tally) from error
        return self.info

    def make_pin(self, info: SubgraphInfo, margin: int, *, history_kept: bool = True) -> Pin:
        """The snapshot of a run: ``margin`` blocks behind the head, where a reorganisation of the chain does not reach.

        Without kept history (see :class:`SnapshotGoneError`) the answers are those of the head at the time of asking,
        refused if that is behind the pin.
        """
        return Pin(
            block_number=max(0, info.head_number - margin),
            deployment=info.deployment,
            kind="number" if history_kept else "number_gte",
            head_number=info.head_number,
            head_timestamp=info.head_timestamp,
            has_indexing_errors=info.has_indexing_errors,
        )

    async def fetch_batch(self, ids: Sequence[str], pin: Pin) -> BatchAnswer:
        """One batch; see :meth:`fetch_batches`."""
        return (await self.fetch_batches([ids], pin))[0]

    async def fetch_batches(self, batches: Sequence[Sequence[str]], pin: Pin) -> list[BatchAnswer]:
        """An answer for each batch of ids, at the pinned block; up to ``batches_per_request`` go in one request.

        Args:
            batches: ids of 64 lower-case hex digits, at most 1,000 in a batch, each once.
            pin: the snapshot block.

        Raises SnapshotGoneError (pin anew), GoldskyPermanentError. Everything else ends in
        ``BatchAnswer.failed``.
        """
        for ids in batches:
            if len(ids) > MAX_FIRST or len(set(ids)) != len(ids):
                raise ValueError(f"a batch has at most {MAX_FIRST} ids, each once; got {len(ids)}")
        answers = [BatchAnswer() for _ in batches]
        await self._settle([IdsQuery(ids, answer) for ids, answer in zip(batches, answers, strict=True) if ids], pin)
        return answers

    async def scan(self, ranges: Sequence[tuple[str, str | None]], pin: Pin) -> list[BatchAnswer]:
        """All resolved conditions of each range, ``after`` < id < ``upper`` (hex without 0x; ``""``: all, None: no end).

        Raises as :meth:`fetch_batches`, and GoldskyUnavailableError where a page cannot be had at all.
        """
        answers = [BatchAnswer() for _ in ranges]
        pages = [PageQuery(*bounds, answer) for bounds, answer in zip(ranges, answers, strict=True)]
        await self._settle(pages, pin)
        return answers

    # --- queries, until all of them are settled -----------------------------------------------------------------------

    async def _settle(self, queries: Sequence[Query], pin: Pin) -> None:
        started = time.monotonic()
        groups = deque([_Group(list(queries), self.max_retries + 1)] if queries else [])
        unbelieved = 0
        while groups:
            group = groups.popleft()
            todo = [part for query in group.queries for part in query.parts(self._rows_per_query)]
            if len(todo) > self.batches_per_request:
                groups.extendleft(
                    _Group(some, group.attempts) for some in reversed(chunks(todo, self.batches_per_request))
                )
                continue
            group.queries = todo
            tally = Tally()
            try:
                found, block = await self._ask_group(group, pin, tally)
            except GoldskyUnavailableError as error:
                for query in (q for g in (group, *groups) for q in g.queries):
                    query.fail(str(error))
                break
            except AnswerFault as error:
                unbelieved += tally.requests
                if not self._believed and unbelieved >= _REQUESTS_WITHOUT_ANSWER:
                    self.circuit.give_up(
                        f"of {unbelieved} answers none could be believed; last error: {error.fault.message}"
                    )
                groups.extendleft(reversed(self._after(error.fault, group, tally)))
                continue
            finally:
                for query in group.queries:
                    query.answer.requests += tally.requests
                    query.answer.attempts += tally.retries
                    query.answer.duration = time.monotonic() - started
            self._believed = True
            self._learn_from(group)
            again = [
                next_ for query, rows in zip(group.queries, found, strict=True) for next_ in query.take(rows, block)
            ]
            if again:
                groups.appendleft(_Group(again, self.max_retries + 1))

    async def _ask_group(self, group: _Group, pin: Pin, tally: Tally) -> tuple[list[dict[str, RawCondition]], int]:
        info = self.info
        if info is None:
            raise RuntimeError("probe() comes first: the query depends on the schema")
        queries = group.queries

        def read(answer: ExecutionResult) -> tuple[list[dict[str, RawCondition]], int]:
            if answer.errors:  # data beside an error is partial and never used
                raise AnswerFault(classify_errors(answer.errors))
            return check_answer(answer.data, queries, pin, info)

        def repeat(fault: Fault, attempt: int) -> bool:
            if len(queries) > 1 and (len(queries) > self.batches_per_request or (fault.heavy and attempt > 1)):
                return False  # others have learned meanwhile, or it is to be tried with fewer
            return attempt < (group.attempts if fault.splits else self.max_retries + 1)

        text, variables = document(queries, info, pin)
        request = GraphQLRequest(text, variable_values=variables)
        return await self.ask(request, read, tally, most_rows=sum(q.size for q in queries), repeat=repeat)

    def _after(self, fault: Fault, group: _Group, tally: Tally) -> list[_Group]:
        """What is asked after a group's fault: parts of it, or nothing where it is given up."""
        queries = group.queries
        if fault.kind in (FaultKind.PERMANENT, FaultKind.REPIN, FaultKind.BEHIND):
            raise self.final(fault, tally)
        if not fault.splits:
            for query in queries:
                query.fail(fault.message)
            return []
        too_large = fault.kind is FaultKind.SPLIT
        attempts = self.max_retries + 1 if too_large else 1
        if len(queries) > 1:
            size = len(queries) // 2
            parts = chunks(queries, size)
            lesson = _Lesson(size, False, fault.message, len(parts)) if fault.kind is not FaultKind.REFUSED else None
            return [_Group(part, attempts, lesson) for part in parts]
        query, message = queries[0], fault.message
        if query.answer.requests + tally.requests >= _REQUESTS_PER_BATCH:
            message = f"{_REQUESTS_PER_BATCH} requests did not settle this batch; it is asked again by the next run"
        elif query.size > 1:
            size = -(-query.size // 2)
            halves = query.parts(size)
            lesson = _Lesson(size, True, message, len(halves)) if too_large or fault.heavy else None
            # Each part is asked once until single ids are left, which get all the retries.
            return [_Group([half], self.max_retries + 1 if half.size == 1 else attempts, lesson) for half in halves]
        query.fail(message)
        return []

    def _learn_from(self, group: _Group) -> None:
        """A group was answered: if it was the last part of a request that failed, smaller ones are sent from now on."""
        lesson = group.lesson
        if lesson is None:
            return
        lesson.parts -= 1
        if lesson.parts:
            return
        if lesson.of_ids:
            self._rows_per_query = min(self._rows_per_query, max(lesson.size, _FEWEST_IDS))
        self._shrink(1 if lesson.of_ids else lesson.size, lesson.message)

    def _shrink(self, size: int, message: str) -> None:
        if size >= self.batches_per_request:
            return
        logger.warning("From now on %d instead of %d batches a request: %s", size, self.batches_per_request, message)
        self.batches_per_request, self.shrunk_because = size, message
