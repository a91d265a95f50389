"""The Goldsky client: lists of condition ids in, checked answers out.

One request goes through, from the outside in: the batch (splitting), the retries (tenacity), the circuit (an outage
makes everybody wait), the pacer (the shared limit), gql and aiohttp, and the checks of :mod:`.answers`. An answer that
fails a check is asked for again as a whole, then in halves, so that one poisoned id never costs its neighbours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from gql import Client, GraphQLRequest
from gql.client import AsyncClientSession
from gql.transport.exceptions import TransportQueryError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from payout_pipeline.errors import GoldskyPermanentError, GoldskyUnavailableError, SnapshotLostError
from payout_pipeline.goldsky import answers
from payout_pipeline.goldsky.answers import AnswerFault, Pin, RawCondition, SubgraphInfo
from payout_pipeline.goldsky.circuit import Circuit
from payout_pipeline.goldsky.classify import Fault, FaultKind, classify_errors, is_indexing_error
from payout_pipeline.goldsky.pacing import Pacer, StoppedError, sleep_or_stop
from payout_pipeline.goldsky.transport import Answer, GoldskyTransport, collector_paused
from payout_pipeline.scrub import excerpt

if TYPE_CHECKING:
    from graphql import DocumentNode

    from payout_pipeline.settings import Settings

logger = logging.getLogger(__name__)

_RETRIED = frozenset({FaultKind.TRANSIENT, FaultKind.REFUSED})
_FIRST_PAUSE = 0.25
_LONGEST_PAUSE = 30.0
_REQUESTS_PER_BATCH = 600  # room to find some two dozen poisoned ids among a thousand, one by one
_T = TypeVar("_T")


class SnapshotGoneError(SnapshotLostError):
    """The pinned block or deployment cannot be asked any more. ``history_not_kept``: pin by ``number_gte`` instead."""

    def __init__(self, message: str, *, history_not_kept: bool = False) -> None:
        super().__init__(message)
        self.history_not_kept = history_not_kept


@dataclass(slots=True)
class BatchAnswer:
    """What became of each id of a batch: it is in exactly one of ``found``, ``absent`` and ``failed``.

    ``found`` holds raw JSON values; ``failed`` the last error. ``block_number`` is that of the answers (0 if there was
    none; the lowest where pieces of the batch were answered at several blocks). ``attempts``: 1 + repetitions of
    requests. ``duration`` in seconds, waiting for the rate limit included. ``unavailable``: the subgraph is given up.
    """

    found: dict[str, RawCondition] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    block_number: int = 0
    attempts: int = 1
    requests: int = 0
    duration: float = 0.0
    unavailable: bool = False


@dataclass(slots=True)
class ScanPage:
    """Resolved conditions in ascending order of id. An **empty** page is the end; a short one is not."""

    found: dict[str, RawCondition]
    block_number: int
    requests: int
    duration: float

    @property
    def last_id(self) -> str | None:
        """Where the next page goes on: its ``after``."""
        return next(reversed(self.found)) if self.found else None


@dataclass(slots=True)
class ClientStats:
    """Counts of one client, for metadata and metrics."""

    requests: int = 0
    retries: int = 0
    refused: int = 0
    splits: int = 0
    asked_again: int = 0  # ids at the end of a suspicious page
    outage_waits: int = 0


class _Counter:
    __slots__ = ("attempts", "requests")

    def __init__(self) -> None:
        self.attempts, self.requests = 1, 0


class GoldskyClient:
    """Asks one subgraph. Use as ``async with GoldskyClient.from_settings(settings) as client``.

    Every wait ends at once when ``stop`` is set (StoppedError), requests in flight included. Of any number of concurrent
    calls ``concurrent_requests`` have a request in flight (None: all of them).
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
        first_pause: float = _FIRST_PAUSE,
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
        self.info: SubgraphInfo | None = None
        self.stats = ClientStats()
        self._limited_since: float | None = None
        self._stopped: asyncio.Future[Any] | None = None
        # Of requests, not of batches: while the answer to one is read, another one may be on its way.
        self._in_flight = asyncio.Semaphore(concurrent_requests) if concurrent_requests else contextlib.nullcontext()
        self._ended: GoldskyPermanentError | None = None  # after it nothing more is sent

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        *,
        stop: asyncio.Event | None = None,
        on_wait: Callable[[str, float], None] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> GoldskyClient:
        """A client for ``GOLDSKY_ENDPOINT`` on the rate limit of the machine (or of ``PAYOUT_LIMITER_URL``)."""
        pacer = Pacer.open(
            settings.goldsky_endpoint,
            settings.goldsky_rate_limit,
            runtime_dir=settings.runtime_dir,
            request_timeout=settings.goldsky_timeout_seconds,
            limiter_url=settings.limiter_url.get_secret_value() if settings.limiter_url else None,
            max_retry_after=settings.goldsky_max_retry_after_seconds,
            stop=stop,
            on_wait=on_wait,
        )
        return cls(
            settings.goldsky_endpoint,
            pacer,
            token=settings.goldsky_api_token.get_secret_value() if settings.goldsky_api_token else None,
            timeout_seconds=settings.goldsky_timeout_seconds,
            max_retries=settings.goldsky_max_retries,
            outage_budget_seconds=settings.goldsky_outage_budget_seconds,
            stop=stop,
            tls=tls,
            concurrent_requests=settings.goldsky_concurrent_requests,
        )

    async def __aenter__(self) -> GoldskyClient:
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

    # --- what callers ask -----------------------------------------------------------------------------------------

    async def probe(self, *, patient: bool = True) -> SubgraphInfo:
        """Schema, head and deployment in one request; also kept as ``self.info``.

        Raises GoldskyPermanentError at once where no subgraph with usable conditions answers. An outage is waited for
        unless ``patient`` is false (then: GoldskyUnavailableError after the retries).
        """

        def read(answer: Answer) -> SubgraphInfo:
            if answer.errors and not (is_indexing_error(answer.errors) and answer.data):
                raise AnswerFault(classify_errors(answer.errors))
            return answers.read_probe(answer.data, self.endpoint, failed=bool(answer.errors))

        counter = _Counter()
        try:
            info = await self._ask(
                answers.probe_document(), None, read, counter, self.max_retries + 1, patient=patient, probing=True
            )
        except AnswerFault as error:
            raise self._final(error.fault, counter) from error
        self.info = info
        return info

    def make_pin(self, info: SubgraphInfo, margin: int, *, history_kept: bool = True) -> Pin:
        """The snapshot of a run: ``margin`` blocks behind the head, where a reorganisation of the chain does not reach.

        Without kept history (see :class:`SnapshotGoneError`) the answers are those of the head at the time of asking,
        refused if that is behind the pin.
        """
        number = max(0, info.head_number - margin)
        return Pin(number, info.deployment, "number" if history_kept else "number_gte")

    async def fetch_batch(self, ids: Sequence[str], pin: Pin) -> BatchAnswer:
        """Ask for ``ids`` (64 lower-case hex digits each, at most 1,000, no duplicates) at the pinned block.

        Raises SnapshotGoneError (pin anew), GoldskyPermanentError, StoppedError. Everything else ends in
        ``BatchAnswer.failed``.
        """
        info = self._probed()
        if len(ids) > answers.MAX_FIRST or len(set(ids)) != len(ids):
            raise ValueError(f"a batch has at most {answers.MAX_FIRST} ids, each once; got {len(ids)}")
        started, result, counter = time.monotonic(), BatchAnswer(), _Counter()
        retries = self.max_retries + 1
        pieces = deque([(list(ids), retries)]) if ids else deque()
        while pieces:
            piece, attempts = pieces.popleft()
            if counter.requests >= _REQUESTS_PER_BATCH:
                message = f"{counter.requests} requests did not settle this batch; it is asked again by the next run"
                result.failed.update(dict.fromkeys(piece, message))
                continue
            try:
                found, block = await self._ask_for(piece, pin, info, counter, attempts)
            except GoldskyUnavailableError as error:
                result.unavailable = True
                for left in (piece, *(other for other, _ in pieces)):
                    result.failed.update(dict.fromkeys(left, str(error)))
                break
            except AnswerFault as error:
                fault = error.fault
                if fault.kind in (FaultKind.PERMANENT, FaultKind.REPIN):
                    raise self._final(fault, counter) from error
                if len(piece) == 1:
                    result.failed[piece[0]] = fault.message
                elif fault.kind is FaultKind.RATE_LIMITED:
                    result.failed.update(dict.fromkeys(piece, fault.message))
                else:
                    # Halves, each asked once until single ids are left, which get all the retries.
                    self.stats.splits += 1
                    middle = len(piece) // 2
                    for half in (piece[middle:], piece[:middle]):
                        pieces.appendleft((half, retries if len(half) == 1 or fault.kind is FaultKind.SPLIT else 1))
                continue
            result.found = result.found | found if result.found else found
            result.block_number = min(result.block_number or block, block)
            cut_off = answers.doubtful(piece, found)
            if cut_off:
                self.stats.asked_again += len(cut_off)
                pieces.appendleft((cut_off, retries))
            if len(found) < len(piece):
                again = set(cut_off)
                result.absent.extend([i for i in piece if i not in found and i not in again])
        result.attempts, result.requests = counter.attempts, counter.requests
        result.duration = time.monotonic() - started
        return result

    batches_per_request = 1
    shrunk_because = ""

    async def fetch_batches(self, batches: Sequence[Sequence[str]], pin: Pin) -> list[BatchAnswer]:
        """An answer for each batch."""
        return [await self.fetch_batch(ids, pin) for ids in batches]

    async def scan_page(self, after: str, upper: str | None, pin: Pin, first: int = answers.MAX_FIRST) -> ScanPage:
        """The next resolved conditions with ``after`` < id < ``upper`` (hex without 0x; ``""``: all, None: no end).

        Raises as :meth:`fetch_batch`, and GoldskyUnavailableError where a page cannot be had at all.
        """
        info = self._probed()
        if not 1 <= first <= answers.MAX_FIRST:
            raise ValueError(f"a page has 1 to {answers.MAX_FIRST} rows, not {first}")
        started, counter = time.monotonic(), _Counter()
        variables = {"after": "0x" + after} | ({"upper": "0x" + upper} if upper is not None else {})
        while True:
            document = answers.scan_document(info.fields, pin, first, upper is not None)

            def read(answer: Answer, rows: int = first) -> tuple[dict[str, RawCondition], int]:
                _no_errors(answer)
                return answers.check_page(answer.data, answer.body, after, upper, rows, pin, info.fields)

            try:
                found, block = await self._ask(document, variables, read, counter, self.max_retries + 1)
            except AnswerFault as error:
                if error.fault.kind in (FaultKind.SPLIT, FaultKind.REFUSED, FaultKind.TRANSIENT) and first > 1:
                    self.stats.splits += 1
                    first = max(1, first // 2 if error.fault.kind is FaultKind.SPLIT else first // 8)
                    continue
                raise self._final(error.fault, counter) from error
            return ScanPage(found, block, counter.requests, time.monotonic() - started)

    async def scan(
        self, after: str, upper: str | None, pin: Pin, first: int = answers.MAX_FIRST
    ) -> AsyncIterator[ScanPage]:
        """All pages of a range, until an empty one: a short page may be a limit that nobody told us of."""
        while True:
            page = await self.scan_page(after, upper, pin, first)
            if page.last_id is None:
                return
            yield page
            after = page.last_id

    # --- one question, until it is answered -------------------------------------------------------------------------

    def _probed(self) -> SubgraphInfo:
        if self.info is None:
            raise RuntimeError("probe() comes first: the query depends on the schema")
        return self.info

    async def _ask_for(
        self, ids: list[str], pin: Pin, info: SubgraphInfo, counter: _Counter, attempts: int
    ) -> tuple[dict[str, RawCondition], int]:
        asked = {"0x" + i: i for i in ids}

        def read(answer: Answer) -> tuple[dict[str, RawCondition], int]:
            _no_errors(answer)
            return answers.check_batch(answer.data, answer.body, asked, pin, info.fields)

        document = answers.batch_document(info.fields, pin, len(ids))
        return await self._ask(document, {"ids": list(asked)}, read, counter, attempts)

    async def _ask(
        self,
        document: DocumentNode,
        variables: dict[str, Any] | None,
        read: Callable[[Answer], _T],
        counter: _Counter,
        attempts: int,
        *,
        patient: bool = True,
        probing: bool = False,
    ) -> _T:
        """Ask until ``read`` believes the answer: at most ``attempts`` times, not counting outages and 429."""
        request = GraphQLRequest(document, variable_values=variables)

        async def once() -> _T:
            while True:
                if patient:
                    await self.circuit.ready()
                try:
                    return await self._send(request, read, counter, patient=patient, probing=probing)
                except AnswerFault as error:
                    fault = error.fault
                    if fault.kind is FaultKind.RATE_LIMITED:
                        await self._limited(fault)
                        continue
                    if fault.kind is not FaultKind.TRANSIENT or not patient:
                        raise
                    await self.circuit.failure(fault.message)
                    # A failure that belongs to a real outage is the outage's, not this request's.
                    if not await self.circuit.ready():
                        raise
                    self.stats.outage_waits += 1

        try:
            return await once()
        except AnswerFault as error:
            if error.fault.kind not in _RETRIED or attempts <= 1:
                raise
            failed: list[AnswerFault] = [error]

        async def again() -> _T:
            if failed:  # the attempt above: the machinery of retries costs as much as a request, and is rarely needed
                raise failed.pop()
            return await once()

        def before_sleep(state: RetryCallState) -> None:
            counter.attempts += 1
            self.stats.retries += 1
            error = state.outcome.exception() if state.outcome else None
            logger.info(
                "Attempt %d of %d failed, again in %.1f s: %s",
                state.attempt_number, attempts, state.upcoming_sleep, error,
            )  # fmt: skip

        retrying = AsyncRetrying(
            stop=stop_after_attempt(attempts),
            retry=retry_if_exception(lambda e: isinstance(e, AnswerFault) and e.fault.kind in _RETRIED),
            wait=self._pause,
            sleep=self._sleep,
            before_sleep=before_sleep,
            reraise=True,
        )
        return await retrying(again)

    def _pause(self, state: RetryCallState) -> float:
        """Exponential with jitter; longer where the server asks for it."""
        error = state.outcome.exception() if state.outcome else None
        pause = self._first_pause * 2.0 ** min(state.attempt_number - 1, 16)
        least = 0.0
        if isinstance(error, AnswerFault):
            pause *= 8 if error.fault.overloaded else 1
            least = min(error.fault.retry_after or 0.0, self.pacer.max_retry_after)
        return max(min(pause, _LONGEST_PAUSE) * random.uniform(0.5, 1.0), least)

    async def _sleep(self, seconds: float) -> None:
        await sleep_or_stop(seconds, self.stop)

    async def _limited(self, fault: Fault) -> None:
        """A 429: hold everybody; give up where nothing else came for as long as an outage may last."""
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
        self, request: GraphQLRequest, read: Callable[[Answer], _T], counter: _Counter, *, patient: bool, probing: bool
    ) -> _T:
        """One request through the pacer, its answer checked. Raises AnswerFault."""
        async with self._in_flight, self.pacer.slot(is_probe=not patient) as slot:
            if self._ended is not None:
                slot.unused = True
                raise self._ended
            counter.requests += 1
            self.stats.requests += 1
            sent = time.monotonic()
            try:
                answer = await self._execute(request)
                self._log_request(request, sent)
            except AnswerFault as error:
                fault = error.fault
                if fault.kind is FaultKind.RATE_LIMITED:
                    await self.pacer.rate_limited(fault.retry_after)
                    raise
                self._limited_since = None
                slot.answered = fault.status is not None
                if probing and fault.html:
                    message = f"{fault.message} This is a web page, no GraphQL: check GOLDSKY_ENDPOINT."
                    raise AnswerFault(Fault(FaultKind.PERMANENT, message, fault.status)) from error
                raise
            self._limited_since = None
        # Outside the slot: checking an answer takes no place in the window.
        try:
            with collector_paused():
                result = read(answer)
        except AnswerFault as error:
            if error.fault.kind is FaultKind.RATE_LIMITED:
                await self.pacer.rate_limited(None)
            elif error.fault.kind is not FaultKind.TRANSIENT:
                self.circuit.success()
                self.stats.refused += error.fault.kind is FaultKind.REFUSED
            raise
        self.circuit.success()
        return result

    async def _execute(self, request: GraphQLRequest) -> Answer:
        if self._session is None:
            raise RuntimeError("use the client as an async context manager")
        sending: Awaitable[Any] = self._session.execute(request, get_execution_result=True)
        try:
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
        except TransportQueryError as error:
            return Answer(error.data, error.errors, b"")
        if not isinstance(answer, Answer):
            raise TypeError(f"the transport returned {type(answer).__name__}")
        return answer

    def _log_request(self, request: GraphQLRequest, sent: float) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            ids = len((request.variable_values or {}).get("ids", ()))
            logger.debug("Request %d: %d ids, answered after %.3f s", self.stats.requests, ids, time.monotonic() - sent)

    async def _probe_circuit(self) -> None:
        """Whether the subgraph answers at all; an answer of any kind but a transient failure says so."""

        def read(answer: Answer) -> None:
            if answer.errors:
                fault = classify_errors(answer.errors)
                if fault.kind is FaultKind.TRANSIENT:
                    raise AnswerFault(fault)

        request = GraphQLRequest(answers.head_document())
        try:
            async with self.pacer.slot(is_probe=True) as slot:
                self.stats.requests += 1
                try:
                    answer = await self._execute(request)
                except AnswerFault as error:
                    slot.answered = error.fault.status is not None
                    if error.fault.kind is FaultKind.RATE_LIMITED:
                        await self.pacer.rate_limited(error.fault.retry_after)
                        return
                    raise
            read(answer)
        except AnswerFault as error:
            if error.fault.kind is FaultKind.TRANSIENT:
                raise

    def _final(self, fault: Fault, counter: _Counter) -> Exception:
        """The exception that ends a run by a fault."""
        if fault.kind is FaultKind.PERMANENT:
            self._ended = GoldskyPermanentError(fault.message)
            return self._ended
        if fault.kind is FaultKind.REPIN:
            return SnapshotGoneError(fault.message, history_not_kept=fault.history_not_kept)
        times = f" ({counter.requests} requests)" if counter.requests > 1 else ""
        return GoldskyUnavailableError(
            f"{excerpt(self.endpoint)} gave no usable answer{times}; last error: {fault.message}"
        )


def _no_errors(answer: Answer) -> None:
    """Data beside an error is partial and never used."""
    if answer.errors:
        raise AnswerFault(classify_errors(answer.errors))
