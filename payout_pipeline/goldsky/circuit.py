"""The circuit breaker: after several failures in a row all requests wait together instead of using up their retries.

While it is open, one request at a time (the cheapest there is) probes whether the subgraph is back, with growing pauses.
The first success closes it. An outage that lasts longer than the budget ends the run's requests. Each process has its own
circuit breaker; its probes are part of the shared rate limit.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable

from payout_pipeline.errors import GoldskyUnavailableError
from payout_pipeline.goldsky.answers import AnswerFault
from payout_pipeline.goldsky.pacing import Pacer
from payout_pipeline.scrub import excerpt

logger = logging.getLogger(__name__)

_LONGEST_PAUSE = 15.0


class Circuit:
    """The circuit breaker of one endpoint.

    Args:
        pacer: told of the outage, so that ``payout-pipeline status`` can show it.
        probe: sends one cheap request; raises AnswerFault where it fails.
        budget_seconds: of one outage, from its first failure until a real request (not only a probe) succeeds.
        threshold: consecutive failures of any requests, with no success between them, that open the circuit.
        first_pause: seconds before the first probe; it doubles with every probe that fails.
    """

    def __init__(
        self,
        pacer: Pacer,
        probe: Callable[[], Awaitable[None]],
        *,
        budget_seconds: float,
        threshold: int = 5,
        first_pause: float = 0.5,
    ) -> None:
        self._pacer, self._probe = pacer, probe
        self._budget, self._threshold, self._first_pause = budget_seconds, threshold, first_pause
        self.is_open = False
        self._failures = 0
        self._since: float | None = None  # start of the outage that no real success has ended yet
        self._confirmed = False  # a probe has failed too
        self._given_up = ""
        self._one_at_a_time = asyncio.Lock()

    def success(self) -> None:
        """A real request was answered."""
        self._failures, self._since = 0, None

    async def failure(self, message: str) -> None:
        """A real request failed in a way that an outage would explain."""
        self._failures += 1
        if self._failures < self._threshold or self.is_open:
            return
        self.is_open, self._confirmed = True, False
        self._since = self._since if self._since is not None else time.monotonic()
        logger.warning(
            "Outage: %d requests in a row failed; all requests wait until the subgraph answers again, %.0f s at most. "
            "Last error: %s",
            self._failures, max(0.0, self._since + self._budget - time.monotonic()), message,
        )  # fmt: skip
        await self._pacer.report_outage(message)

    def give_up(self, message: str) -> None:
        """Every further request fails at once with ``message``."""
        self._given_up = message

    async def ready(self) -> bool:
        """Wait until requests make sense. True where a real outage was waited out, so that it costs no retry.

        Raises GoldskyUnavailableError when the budget is used up.
        """
        waited = self.is_open
        if waited:
            async with self._one_at_a_time:
                if self.is_open:
                    await self._wait_for_an_answer()
        if self._given_up:
            raise GoldskyUnavailableError(self._given_up)
        return waited and self._confirmed

    async def _wait_for_an_answer(self) -> None:
        pause, opened, message = self._first_pause, time.monotonic(), ""
        since = self._since if self._since is not None else opened
        while (left := since + self._budget - time.monotonic()) > 0:
            await asyncio.sleep(min(pause * random.uniform(0.75, 1.0), left))
            try:
                await self._probe()
            except AnswerFault as error:
                self._confirmed, message = True, excerpt(str(error))
                pause = min(pause * 2, _LONGEST_PAUSE)
                await self._pacer.report_outage(message)
                continue
            self.is_open, self._failures = False, 0
            await self._pacer.report_outage("")
            logger.warning("The outage is over after %.1f s: it answers again.", time.monotonic() - opened)
            return
        self.is_open = False
        self.give_up(
            f"the subgraph has not answered for {time.monotonic() - since:.0f} s, which is more than its budget of "
            f"{self._budget:g} s (GOLDSKY_OUTAGE_BUDGET_SECONDS); last error: {message}. What was answered is kept; "
            "start again when the subgraph is back."
        )
        logger.error("Giving up: %s", self._given_up)
