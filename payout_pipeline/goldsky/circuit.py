"""One outage, one wait: after several failures in a row everybody waits together instead of burning retries.

While the circuit is open, one request at a time (the cheapest there is) tries whether the subgraph is back, with
growing pauses; all processes that share the budget of requests share the pauses as well. The first success closes it.
An outage that lasts longer than the budget ends the run's requests with GoldskyUnavailableError.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from payout_pipeline.errors import GoldskyUnavailableError
from payout_pipeline.goldsky.answers import AnswerFault
from payout_pipeline.goldsky.pacing import Pacer, Transaction, sleep_or_stop
from payout_pipeline.scrub import excerpt

logger = logging.getLogger(__name__)

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 15.0
_LOOK_AGAIN = 1.0  # another process may have found out that it is over


@dataclass(frozen=True, slots=True)
class CircuitState:
    """JSON-able by ``dataclasses.asdict``; seconds."""

    open: bool
    open_for: float
    probes: int
    outages: int
    outage_seconds: float
    message: str


class Circuit:
    """The outages of one endpoint, as one process sees them.

    ``probe`` sends one cheap request and raises where it fails. ``threshold``: consecutive failures of any requests,
    with no success between them, that open the circuit. ``budget_seconds``: of one outage, from its first sight until a
    real request (not only a probe) succeeds.
    """

    def __init__(
        self,
        pacer: Pacer,
        probe: Callable[[], Awaitable[None]],
        *,
        budget_seconds: float,
        threshold: int = 5,
        stop: asyncio.Event | None = None,
        first_pause: float = _FIRST_PAUSE,
        longest_pause: float = _LONGEST_PAUSE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pacer, self._probe, self._stop, self._clock = pacer, probe, stop, clock
        self._budget, self._threshold = budget_seconds, threshold
        self._first_pause, self._longest_pause = first_pause, longest_pause
        self._failures = 0
        self._since: float | None = None  # of the outage that no real success has ended yet
        self._open = False
        self._opened_at = 0.0
        self._confirmed = False
        self._pause = first_pause
        self._message = ""
        self._given_up = ""
        self._probes = self._outages = 0
        self._outage_seconds = 0.0
        self._lock: asyncio.Lock | None = None

    @property
    def is_open(self) -> bool:
        return self._open

    def state(self) -> CircuitState:
        now = self._clock()
        return CircuitState(
            self._open, now - self._opened_at if self._open else 0.0, self._probes, self._outages,
            self._outage_seconds + (now - self._opened_at if self._open else 0.0), self._message,
        )  # fmt: skip

    def success(self) -> None:
        """A real request was answered."""
        self._failures = 0
        self._since = None

    async def failure(self, message: str) -> None:
        """A real request failed in a way that an outage would explain."""
        self._failures += 1
        self._message = message
        if self._failures >= self._threshold and not self._open:
            await self._pacer.use(self._report)
            self._open_here(f"{self._failures} requests in a row failed")

    def seen(self, message: str) -> None:
        """Another process reports an outage."""
        if not self._open:
            self._message = message or self._message
            self._open_here("another process reports an outage")

    def give_up(self, message: str) -> None:
        """Every further request fails at once with ``message``."""
        self._given_up = message

    async def ready(self) -> bool:
        """Wait until requests make sense. True where a real outage was waited out, so that no retry was wasted on it.

        Raises GoldskyUnavailableError when the budget is used up, StoppedError on the stop signal.
        """
        if self._given_up:
            raise GoldskyUnavailableError(self._given_up)
        if not self._open:
            return False
        if self._lock is None:
            self._lock = asyncio.Lock()
        async with self._lock:
            while self._open:
                await self._step()
            if self._given_up:
                raise GoldskyUnavailableError(self._given_up)
            return self._confirmed

    async def _step(self) -> None:
        now = self._clock()
        if self._since is not None and now - self._since > self._budget:
            self._give_up_now(now - self._since)
            return
        wait = await self._pacer.use(self._take_turn)
        if wait is None:
            self._close_here("another process got an answer")
            return
        if wait > 0:
            left = self._budget - (now - (self._since or now))
            await sleep_or_stop(max(0.0, min(wait, _LOOK_AGAIN, left + 0.01)), self._stop)
            return
        self._probes += 1
        try:
            await self._probe()
        except AnswerFault as error:
            self._confirmed = True
            self._message = excerpt(str(error)) or type(error).__name__
            self._pause = min(self._pause * 2, self._longest_pause)
            await self._pacer.use(self._report)
        else:
            await self._pacer.use(self._clear)
            self._close_here("it answers again")

    def _give_up_now(self, seconds: float) -> None:
        self._open = False
        self._outage_seconds += self._clock() - self._opened_at
        self._given_up = (
            f"the subgraph has not answered for {seconds:.0f} s, which is more than its budget of {self._budget:g} s "
            f"(GOLDSKY_OUTAGE_BUDGET_SECONDS); last error: {self._message}. What was answered is kept; start again "
            "when the subgraph is back."
        )
        logger.error("Giving up: %s", self._given_up)

    def _open_here(self, why: str) -> None:
        now = self._clock()
        self._open, self._opened_at, self._confirmed = True, now, False
        self._since = self._since if self._since is not None else now
        self._pause = self._first_pause
        self._outages += 1
        logger.warning(
            "Outage: %s; all requests wait until the subgraph answers again, %.0f s at most. Last error: %s",
            why, self._budget - (now - self._since), self._message,
        )  # fmt: skip

    def _close_here(self, why: str) -> None:
        seconds = self._clock() - self._opened_at
        self._open = False
        self._failures = 0
        self._outage_seconds += seconds
        logger.warning("The outage is over after %.1f s: %s.", seconds, why)

    # What happens to the shared row.

    def _report(self, tx: Transaction) -> None:
        now, state = tx.now(), tx.state
        if not state.outage_since:
            state.outage_since = now
        state.outage_seen = now
        state.outage_message = self._message
        state.next_probe = now + int(self._pause * random.uniform(0.75, 1.0) * 1000)
        tx.save()

    def _take_turn(self, tx: Transaction) -> float | None:
        """None: somebody closed it; more than 0: seconds until the next probe is due; 0: the probe is ours to send."""
        now, state = tx.now(), tx.state
        if not state.outage_since:
            return None
        if now < state.next_probe:
            return (state.next_probe - now) / 1000
        state.next_probe = now + int((self._pause + self._pacer.lease_seconds) * 1000)
        state.outage_seen = now
        tx.save()
        return 0.0

    def _clear(self, tx: Transaction) -> None:
        state = tx.state
        state.outage_since = state.outage_seen = state.next_probe = 0
        state.outage_message = ""
        tx.save()
