"""The rules of the shared rate limit: never more than N requests in any window, as the server counts them.

The server counts a request at some moment between its sending and its answer, and only the server knows when. So a
request counts from its admission on, for as long as it is in flight, and for one whole window after it has ended.
Whatever the server's clock read when it counted, no N+1 requests can then lie within one window of each other.

All that is known of one endpoint's limit is a :class:`Budget`, which all processes share: the functions here change it,
and a :class:`SharedBudget` applies them to the stored one, one process at a time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import BaseModel

from payout_pipeline.scrub import excerpt
from payout_pipeline.shared_store import SharedStore, T
from payout_pipeline.storage import process_is_alive

if TYPE_CHECKING:
    from payout_pipeline.settings import RateLimit

logger = logging.getLogger(__name__)

_GUARD_MS = 20  # times are whole milliseconds, and a server's window may be closed at both ends
_OUTAGE_BELIEVED_MS = 120_000  # a process that was killed in an outage leaves its report behind


@dataclass(frozen=True)
class Limit:
    """The rate limit in whole milliseconds.

    Admissions keep a small ``distance``, of all processes together. Where another client behind the same address has
    used the server's window, the first 429 then stops all processes while only two or three requests are in flight.
    """

    requests: int
    window: int
    distance: int

    @classmethod
    def of(cls, limit: RateLimit) -> Limit:
        """The limit of the settings, with a guard for rounded times."""
        milliseconds = limit.seconds * 1000
        return cls(
            requests=limit.requests,
            window=int(-(-milliseconds // 1)) + _GUARD_MS,
            distance=min(int(milliseconds / limit.requests / 8), 100),
        )


class Budget(BaseModel):
    """What all processes know together of one endpoint. Times are milliseconds of the store's clock."""

    in_flight: dict[str, int] = {}  # lease: when its request has ended at the latest
    ended: dict[int, int] = {}  # until when they count: number of requests that have ended
    last_admission: int = 0
    hold_until: int = 0  # nothing is sent before
    hold_reason: str = ""
    answers_429: int = 0
    outage_since: int = 0
    outage_until: int = 0  # unless it is reported again
    outage_message: str = ""

    def used(self) -> int:
        """How many requests count."""
        return len(self.in_flight) + sum(self.ended.values())


class SharedBudget:
    """The budget of one endpoint in a shared store."""

    def __init__(self, store: SharedStore, endpoint: str, limit: RateLimit) -> None:
        self.where, self.limit, self.close = store.where, Limit.of(limit), store.close
        self._store, self._key = store, f"rate:{budget_key(endpoint)}"

    def change(self, action: Callable[[Budget, int], T]) -> T:
        """Apply ``action(budget, now)`` and store the budget; returns the result. Raises as `SharedStore.edit`."""

        def edit(text: str | None, now: int) -> tuple[str, T]:
            try:
                budget = Budget.model_validate_json(text) if text is not None else Budget()
                _forget_what_is_over(budget, now, self.limit)
            except ValueError as error:
                logger.warning(
                    "The rate limit in %s begins anew with a pause of %.1f s, because what was sent before is no longer "
                    "known: %s", self.where, self.limit.window / 1000, excerpt(str(error)),
                )  # fmt: skip
                budget = Budget(hold_until=now + self.limit.window, hold_reason="the rate limit began anew")
            result = action(budget, now)
            return budget.model_dump_json(), result

        return self._store.edit(self._key, edit)


@dataclass(frozen=True)
class Refusal:
    """``wait_seconds`` until it makes sense to try again. ``reason``: "window", or that of a hold after a 429."""

    wait_seconds: float
    reason: str


def admit(budget: Budget, now: int, limit: Limit, lease: str, lease_ms: int) -> Refusal | None:
    """Count one more request, in flight for ``lease_ms`` at most; a Refusal where it may not be sent now."""
    for stale in [name for name in budget.in_flight if owner_is_stale(name)]:
        finish(budget, now, limit, stale)
    if now < budget.hold_until:
        return Refusal((budget.hold_until - now) / 1000, budget.hold_reason)
    if budget.used() >= limit.requests:
        # A request in flight may end at any moment, and counts for one window after that.
        return Refusal((min([*budget.ended, now + limit.window]) - now) / 1000, "window")
    if now < budget.last_admission + limit.distance:
        return Refusal((budget.last_admission + limit.distance - now) / 1000, "window")
    budget.in_flight[lease] = now + lease_ms
    budget.last_admission = now
    return None


def finish(budget: Budget, now: int, limit: Limit, lease: str) -> None:
    """The request has ended, with an answer or without: it counts for one window from now on."""
    if budget.in_flight.pop(lease, None) is not None:
        _count(budget, now, limit)


def give_back(budget: Budget, lease: str) -> None:
    """The request was never sent."""
    budget.in_flight.pop(lease, None)


def hold(budget: Budget, now: int, seconds: float, reason: str) -> int:
    """After a 429: no process sends anything for ``seconds``. Returns the number of such answers so far."""
    until = now + int(seconds * 1000) + 1
    if until > budget.hold_until:
        budget.hold_until, budget.hold_reason = until, reason
    budget.answers_429 += 1
    return budget.answers_429


def report_outage(budget: Budget, now: int, message: str) -> None:
    """Note for ``payout-pipeline status`` that the subgraph does not answer; an empty message: it does again."""
    budget.outage_since = (budget.outage_since or now) if message else 0
    budget.outage_until = now + _OUTAGE_BELIEVED_MS if message else 0
    budget.outage_message = message


def budget_key(endpoint: str) -> str:
    """One budget per host and path, so that several endpoints or local servers do not share one."""
    parts = urlsplit(endpoint)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return hashlib.sha256(f"{(parts.hostname or '').lower()}:{port}{parts.path.rstrip('/')}".encode()).hexdigest()[:16]


def owner() -> str:
    """How a lease of this process begins."""
    return f"{_machine()}:{os.getpid()}:"


def owner_is_stale(lease: str) -> bool:
    """Whether the process that took the lease has ended. Of another machine's process that is never known here."""
    machine, _, rest = lease.partition(":")
    pid = rest.partition(":")[0]
    return machine == _machine() and pid.isdigit() and not process_is_alive(int(pid))


@lru_cache(maxsize=1)
def _machine() -> str:
    """This machine since its start, and its process id namespace: within it one can see whether a process is alive."""
    name = socket.gethostname()
    with suppress(OSError):  # Linux only
        name += Path("/proc/sys/kernel/random/boot_id").read_text() + str(Path("/proc/self/ns/pid").readlink())
    return hashlib.sha256(name.encode()).hexdigest()[:12]


def _count(budget: Budget, ended: int, limit: Limit) -> None:
    """A request that ended counts for one window, rounded up so that the size of a budget does not grow with N."""
    grain = max(1, limit.window // 100)
    until = -(-(ended + limit.window) // grain) * grain
    budget.ended[until] = budget.ended.get(until, 0) + 1


def _forget_what_is_over(budget: Budget, now: int, limit: Limit) -> None:
    if now < budget.last_admission:
        raise ValueError("the clock went back, or the machine was restarted")
    for lease, latest in list(budget.in_flight.items()):
        if latest <= now:  # its end was never reported
            del budget.in_flight[lease]
            _count(budget, latest, limit)
    budget.ended = {until: count for until, count in budget.ended.items() if until > now}
    if budget.outage_until <= now:
        report_outage(budget, now, "")


def describe(budget: Budget, now: int) -> dict[str, Any]:
    """The state of a budget for display: times as seconds from now."""
    return {
        "used": budget.used(),
        "in_flight": len(budget.in_flight),
        "hold_seconds": round(max(0, budget.hold_until - now) / 1000, 1),
        "answers_429": budget.answers_429,
        "outage_seconds": round((now - budget.outage_since) / 1000, 1) if budget.outage_since else 0.0,
        "outage_message": budget.outage_message,
    }
