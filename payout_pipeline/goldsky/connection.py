"""One question at a time, asked until its answer is believed.

A request passes, from the outside in: the retries, the circuit breaker (in an outage all requests wait together), the
pacer (the shared limit), gql's transport, and the check that the caller gives.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

from gql import GraphQLRequest
from graphql import ExecutionResult

from payout_pipeline.errors import GoldskyPermanentError, GoldskyUnavailableError, SnapshotLostError
from payout_pipeline.goldsky.answers import AnswerFault
from payout_pipeline.goldsky.circuit import Circuit
from payout_pipeline.goldsky.classify import Fault, FaultKind, classify_errors
from payout_pipeline.goldsky.pacing import Pacer
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
class Tally:
    """Requests sent, and repetitions among them (those after an answer of 429 or an outage left out)."""

    requests: int = 0
    retries: int = 0


class Connection:
    """The way to one subgraph, as an async context manager. Times in seconds."""

    def __init__(
        self,
        endpoint: str,
        pacer: Pacer,
        *,
        token: str | None = None,
        timeout_seconds: float = 60.0,
        max_retries: int = 3,
        outage_budget_seconds: float = 900.0,
        tls: ssl.SSLContext | None = None,
        first_pause: float = 0.25,
        circuit_threshold: int = 5,
        circuit_first_pause: float = 0.5,
    ) -> None:
        self.endpoint, self.pacer, self.max_retries = endpoint, pacer, max_retries
        self._first_pause, self._outage_budget = first_pause, outage_budget_seconds
        self._transport = GoldskyTransport(endpoint, token=token, timeout_seconds=timeout_seconds, tls=tls)
        self.circuit = Circuit(
            pacer, self._probe_circuit, budget_seconds=outage_budget_seconds, threshold=circuit_threshold,
            first_pause=circuit_first_pause,
        )  # fmt: skip
        self.stats = Tally()
        self._limited_since: float | None = None
        self._answered = False

    async def __aenter__(self) -> Connection:
        await self._transport.connect()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._transport.close()
        finally:
            await self.pacer.close()

    async def ask(
        self,
        request: GraphQLRequest,
        read: Callable[[ExecutionResult], _T],
        tally: Tally,
        *,
        most_rows: int = 0,
        repeat: Callable[[Fault, int], bool],
    ) -> _T:
        """Ask until ``read`` believes the answer.

        Args:
            request: what to ask.
            read: makes the result of an answer; raises AnswerFault where it is not to be believed.
            tally: counts what it took.
            most_rows: an answer of more rows is refused before it is parsed.
            repeat: whether to ask again after this fault, which is that of attempt n (from 1). Outages and answers of 429
                are no attempts.

        Raises AnswerFault, GoldskyUnavailableError.
        """
        attempt = 0
        while True:
            await self.circuit.ready()
            result = await self._send(request, read, tally, most_rows)
            if not isinstance(result, Fault):
                return result
            if result.kind is FaultKind.RATE_LIMITED:
                self._check_limited(result)
                continue
            if result.kind is FaultKind.TRANSIENT:
                await self.circuit.failure(result.message)
                # A failure that belongs to a real outage is the outage's, not this request's.
                if await self.circuit.ready():
                    continue
            attempt += 1
            if result.kind not in _RETRIED or not repeat(result, attempt):
                raise AnswerFault(result)
            tally.retries += 1
            self.stats.retries += 1
            pause = self._pause(result, attempt)
            logger.info("Attempt %d failed, again in %.1f s: %s", attempt, pause, result.message)
            await asyncio.sleep(pause)

    def _pause(self, fault: Fault, attempt: int) -> float:
        """Exponential with jitter; longer where the server asks for it."""
        pause = self._first_pause * 2.0 ** min(attempt - 1, 16) * (8 if fault.overloaded else 1)
        least = min(fault.retry_after or 0.0, self.pacer.max_retry_after)
        return max(min(pause, _LONGEST_PAUSE) * random.uniform(0.5, 1.0), least)

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

    async def _send(
        self, request: GraphQLRequest, read: Callable[[ExecutionResult], _T], tally: Tally, most_rows: int
    ) -> _T | Fault:
        """One request through the pacer: what ``read`` makes of the answer, or the fault, as pacer and circuit note it."""
        # A fault is returned, because the traceback of an exception would keep the answer in memory.
        try:
            # Checking an answer is part of the slot: a 429 has to be noted before the next request is sent.
            async with self.pacer.slot():
                tally.requests += 1
                result = await self._execute(request, read, most_rows)
        except AnswerFault as error:
            fault = error.fault
        else:
            self._answered, self._limited_since = True, None
            self.circuit.success()
            return result
        if fault.kind is FaultKind.RATE_LIMITED:
            return fault
        self._limited_since = None
        if fault.html and not self._answered:
            message = f"{fault.message} This is a web page, no GraphQL: check GOLDSKY_ENDPOINT."
            return Fault(FaultKind.PERMANENT, message, fault.status)
        if fault.kind is not FaultKind.TRANSIENT:
            self.circuit.success()
        return fault

    async def _execute(self, request: GraphQLRequest, read: Callable[[ExecutionResult], _T], most_rows: int = 0) -> _T:
        """Send one request, which has its place in the window, and read the answer. Raises AnswerFault."""
        self.stats.requests += 1
        started = time.monotonic()
        try:
            answer = await self._transport.execute(request, extra_args={"most_rows": most_rows})
            logger.debug("Request %d answered after %.3f s", self.stats.requests, time.monotonic() - started)
            return read(answer)
        except AnswerFault as error:
            if error.fault.kind is FaultKind.RATE_LIMITED:
                await self.pacer.rate_limited(error.fault.retry_after)
            raise

    async def _probe_circuit(self) -> None:
        """Whether the subgraph answers at all; an answer of any kind but a transient failure says so."""

        def read(answer: ExecutionResult) -> None:
            if answer.errors:
                raise AnswerFault(classify_errors(answer.errors))

        try:
            async with self.pacer.slot():
                await self._execute(GraphQLRequest(HEAD), read)
        except AnswerFault as error:
            if error.fault.kind is FaultKind.TRANSIENT:
                raise

    def final(self, fault: Fault, tally: Tally) -> Exception:
        """The exception that ends a run by a fault."""
        if fault.kind is FaultKind.PERMANENT:
            return GoldskyPermanentError(fault.message)
        if fault.kind in (FaultKind.REPIN, FaultKind.BEHIND):
            return SnapshotGoneError(fault.message, history_not_kept=fault.history_not_kept)
        times = f" ({tally.requests} requests)" if tally.requests > 1 else ""
        return GoldskyUnavailableError(
            f"{excerpt(self.endpoint)} gave no usable answer{times}; last error: {fault.message}"
        )
