"""One request at a time, until its answer is believed.

It goes through, from the outside in: the retries (tenacity), the circuit breaker (an outage makes everybody wait), the
pacer (the shared limit), gql and aiohttp, and the check that the caller gives.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from gql import Client, GraphQLRequest
from gql.client import AsyncClientSession
from graphql import ExecutionResult
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from payout_pipeline.errors import GoldskyPermanentError, GoldskyUnavailableError, SnapshotLostError
from payout_pipeline.goldsky.answers import AnswerFault
from payout_pipeline.goldsky.circuit import Circuit
from payout_pipeline.goldsky.classify import Fault, FaultKind, classify_errors
from payout_pipeline.goldsky.pacing import Pacer, StoppedError, sleep_or_stop
from payout_pipeline.goldsky.queries import HEAD
from payout_pipeline.goldsky.transport import GoldskyTransport
from payout_pipeline.scrub import excerpt

logger = logging.getLogger(__name__)

_RETRIED = frozenset({FaultKind.TRANSIENT, FaultKind.REFUSED, FaultKind.BEHIND})
_LONGEST_PAUSE = 30.0
_T = TypeVar("_T")


class SnapshotGoneError(SnapshotLostError):
    """The pinned block or deployment cannot be asked any more. ``history_not_kept``: pin by ``number_gte`` instead."""

    def __init__(self, message: str, *, history_not_kept: bool = False) -> None:
        super().__init__(message)
        self.history_not_kept = history_not_kept


@dataclass(slots=True)
class ClientStats:
    """Counts of one client, for metadata and metrics."""

    requests: int = 0
    retries: int = 0


@dataclass(slots=True)
class Tally:
    """What one question took: requests sent, and repetitions (those after an answer of 429 or an outage left out)."""

    requests: int = 0
    repetitions: int = 0


class Connection:
    """The way to one subgraph, as an async context manager.

    Every wait ends at once when ``stop`` is set (StoppedError), requests in flight included. Of any number of concurrent
    calls ``concurrent_requests`` have a request in flight (None: all of them). Times in seconds.
    """

    def __init__(
        self,
        endpoint: str,
        pacer: Pacer,
        *,
        token: str | None = None,
        timeout_seconds: float = 60.0,
        max_retries: int = 3,
        outage_budget_seconds: float = 900.0,
        stop: asyncio.Event | None = None,
        tls: ssl.SSLContext | None = None,
        first_pause: float = 0.25,
        circuit_threshold: int = 5,
        circuit_first_pause: float = 0.5,
        concurrent_requests: int | None = None,
    ) -> None:
        self.endpoint, self.pacer, self.stop = endpoint, pacer, stop
        self.max_retries, self._first_pause = max_retries, first_pause
        self._outage_budget = outage_budget_seconds
        self._transport = GoldskyTransport(endpoint, token=token, timeout_seconds=timeout_seconds, tls=tls)
        # Without a schema gql validates nothing and waits for nothing: the transport's deadline is the only one.
        self._gql = Client(transport=self._transport, fetch_schema_from_transport=False, execute_timeout=None)
        self._session: AsyncClientSession | None = None
        self.circuit = Circuit(
            pacer, self._probe_circuit, budget_seconds=outage_budget_seconds, stop=stop, threshold=circuit_threshold,
            first_pause=circuit_first_pause,
        )  # fmt: skip
        self.stats = ClientStats()
        self._limited_since: float | None = None
        self._stopped: asyncio.Future[Any] | None = None
        # Of requests, not of calls: while the answer to one is read, another one may be on its way.
        self._in_flight = asyncio.Semaphore(concurrent_requests) if concurrent_requests else contextlib.nullcontext()
        self._ended: GoldskyPermanentError | None = None  # after it nothing more is sent
        self._answered = False

    async def __aenter__(self) -> Connection:
        self._session = await self._gql.connect_async()  # type: ignore[no-untyped-call]
        if self.stop is not None:
            self._stopped = asyncio.ensure_future(self.stop.wait())
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._stopped is not None:
            self._stopped.cancel()
        self._session = None
        try:
            await self._gql.close_async()  # type: ignore[no-untyped-call]
        finally:
            await self.pacer.close()

    async def ask(
        self,
        request: GraphQLRequest,
        read: Callable[[ExecutionResult], _T],
        tally: Tally,
        *,
        most_rows: int = 0,
        patient: bool = True,
        repeat: Callable[[Fault, int], bool],
    ) -> _T:
        """Ask until ``read`` believes the answer.

        Args:
            request: what to ask.
            read: makes the result of an answer; raises AnswerFault where it is not to be believed.
            tally: counts what it took.
            most_rows: an answer of more rows is refused before it is parsed.
            patient: wait for an outage to end instead of failing after the retries.
            repeat: whether to ask again after this fault, which is that of attempt n (from 1). Outages and answers of 429
                are no attempts.

        Raises AnswerFault, GoldskyUnavailableError, GoldskyPermanentError, StoppedError.
        """

        async def attempt() -> _T:
            while True:
                if patient:
                    await self.circuit.ready()
                try:
                    return await self._believe(
                        await self._result(request, read, tally, most_rows, is_probe=not patient)
                    )
                except AnswerFault as error:
                    fault = error.fault
                    if fault.kind is FaultKind.RATE_LIMITED:
                        self._check_limited(fault)
                        continue
                    if fault.kind is not FaultKind.TRANSIENT or not patient:
                        raise
                    await self.circuit.failure(fault.message)
                    # A failure that belongs to a real outage is the outage's, not this request's.
                    if not await self.circuit.ready():
                        raise

        def before_sleep(state: RetryCallState) -> None:
            tally.repetitions += 1
            self.stats.retries += 1
            logger.info(
                "Attempt %d failed, again in %.1f s: %s", state.attempt_number, state.upcoming_sleep, _fault_of(state)
            )

        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda e: isinstance(e, AnswerFault) and e.fault.kind in _RETRIED),
            stop=lambda state: (fault := _fault_of(state)) is None or not repeat(fault, state.attempt_number),
            wait=self._pause,
            sleep=self._sleep,
            before_sleep=before_sleep,
            reraise=True,
        )
        return await retrying(attempt)

    def _pause(self, state: RetryCallState) -> float:
        """Exponential with jitter; longer where the server asks for it."""
        pause, least, fault = self._first_pause * 2.0 ** min(state.attempt_number - 1, 16), 0.0, _fault_of(state)
        if fault is not None:
            pause *= 8 if fault.overloaded else 1
            least = min(fault.retry_after or 0.0, self.pacer.max_retry_after)
        return max(min(pause, _LONGEST_PAUSE) * random.uniform(0.5, 1.0), least)

    async def _sleep(self, seconds: float) -> None:
        await sleep_or_stop(seconds, self.stop)

    def _check_limited(self, fault: Fault) -> None:
        """Give up where nothing but 429 came for as long as an outage may last."""
        now = time.monotonic()
        self._limited_since = self._limited_since if self._limited_since is not None else now
        if now - self._limited_since > self._outage_budget:
            message = (
                f"the subgraph answered nothing but 429 for {now - self._limited_since:.0f} s "
                f"(GOLDSKY_OUTAGE_BUDGET_SECONDS is {self._outage_budget:g}); last: {fault.message}. "
                "Lower GOLDSKY_RATE_LIMIT, or ask for a higher limit."
            )
            self.circuit.give_up(message)
            raise GoldskyUnavailableError(message)

    async def _believe(self, result: _T | Fault) -> _T:
        """The result of one request, once pacer and circuit know of it. Raises AnswerFault for a fault."""
        if not isinstance(result, Fault):
            self._answered, self._limited_since = True, None
            self.circuit.success()
            return result
        if result.kind is FaultKind.RATE_LIMITED:
            await self.pacer.rate_limited(result.retry_after)
            raise AnswerFault(result)
        self._limited_since = None
        if result.html and not self._answered:
            message = f"{result.message} This is a web page, no GraphQL: check GOLDSKY_ENDPOINT."
            raise AnswerFault(Fault(FaultKind.PERMANENT, message, result.status))
        if result.kind is not FaultKind.TRANSIENT:
            self.circuit.success()
        raise AnswerFault(result)

    async def _result(
        self,
        request: GraphQLRequest,
        read: Callable[[ExecutionResult], _T],
        tally: Tally,
        most_rows: int,
        *,
        is_probe: bool,
    ) -> _T | Fault:
        """One request through the pacer, its answer checked."""
        # A fault is returned, because the traceback of an exception would keep the answer in memory.
        try:
            async with self._in_flight, self.pacer.slot(is_probe=is_probe) as slot:
                if self._ended is not None:
                    slot.unused = True
                    raise self._ended
                tally.requests += 1
                self.stats.requests += 1
                answer = await self._execute(request, most_rows)
            # Outside the slot: checking an answer takes no place in the window.
            return read(answer)
        except AnswerFault as error:
            return error.fault

    async def _execute(self, request: GraphQLRequest, most_rows: int) -> ExecutionResult:
        if self._session is None:
            raise RuntimeError("use the client as an async context manager")
        started = time.monotonic()
        # Not by the session's execute(), which makes an exception of errors and drops the data beside them.
        sending: Awaitable[ExecutionResult] = self._transport.execute(request, extra_args={"most_rows": most_rows})
        if self._stopped is None:
            answer = await sending
        else:
            task = asyncio.ensure_future(sending)
            try:
                await asyncio.wait({task, self._stopped}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not task.done():
                    task.cancel()
            if not task.done():
                await asyncio.wait({task})
            if task.cancelled():
                raise StoppedError("stopped while a request was in flight")
            answer = task.result()
        logger.debug("Request %d answered after %.3f s", self.stats.requests, time.monotonic() - started)
        return answer

    async def _probe_circuit(self) -> None:
        """Whether the subgraph answers at all; an answer of any kind but a transient failure says so."""

        def read(answer: ExecutionResult) -> None:
            if answer.errors:
                raise AnswerFault(classify_errors(answer.errors))

        try:
            async with self.pacer.slot(is_probe=True):
                self.stats.requests += 1
                answer = await self._execute(GraphQLRequest(HEAD), 0)
            read(answer)
        except AnswerFault as error:
            if error.fault.kind is FaultKind.RATE_LIMITED:
                await self.pacer.rate_limited(error.fault.retry_after)
            if error.fault.kind is FaultKind.TRANSIENT:
                raise

    def final(self, fault: Fault, tally: Tally) -> Exception:
        """The exception that ends a run by a fault."""
        if fault.kind is FaultKind.PERMANENT:
            self._ended = GoldskyPermanentError(fault.message)
            return self._ended
        if fault.kind in (FaultKind.REPIN, FaultKind.BEHIND):
            return SnapshotGoneError(fault.message, history_not_kept=fault.history_not_kept)
        times = f" ({tally.requests} requests)" if tally.requests > 1 else ""
        return GoldskyUnavailableError(
            f"{excerpt(self.endpoint)} gave no usable answer{times}; last error: {fault.message}"
        )


def _fault_of(state: RetryCallState) -> Fault | None:
    error = state.outcome.exception() if state.outcome else None
    return error.fault if isinstance(error, AnswerFault) else None
