"""What the server remembers of every GraphQL request, and what tests want to know of it."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class LoggedRequest:
    """One GraphQL request.

    ``arrived``: monotonic seconds; ``status``: 0 until it is answered or when it never is; ``operation``: name of the
    query; ``aliases``: number of lists; ``ids``: as asked; ``block``: the ``block`` argument; ``rows``: conditions in
    the lists of the answer; ``seconds``: until the answer.
    """

    number: int
    arrived: float = field(default_factory=time.monotonic)
    status: int = 0
    operation: str | None = None
    aliases: int = 0
    ids: tuple[str, ...] = ()
    id_count: int = 0
    block: dict[str, Any] | None = None
    rows: int = 0
    faults: tuple[str, ...] = ()
    seconds: float | None = None


class RequestLog(list[LoggedRequest]):
    """All requests since the log was last cleared, in order of arrival."""

    @property
    def entries(self) -> list[LoggedRequest]:
        """A copy, which does not grow."""
        return list(self)

    def batches(self) -> list[LoggedRequest]:
        """Requests that named ids."""
        return [entry for entry in self.entries if entry.id_count]

    def asked_ids(self, status: int) -> Counter[str]:
        """How often each id was asked for in requests that were answered with that status."""
        return Counter(i for entry in self.entries if entry.status == status for i in entry.ids)

    def statuses(self) -> Counter[int]:
        """Number of requests by status."""
        return Counter(entry.status for entry in self.entries)

    def max_in_window(self, seconds: float) -> int:
        """The largest number of requests that arrived within any window of that length."""
        return max_in_window((entry.arrived for entry in self.entries), seconds)


def max_in_window(arrivals: Iterable[float], seconds: float) -> int:
    """The largest number of arrivals within any half-open window of ``seconds``."""
    window: deque[float] = deque()
    most = 0
    for arrival in sorted(arrivals):
        window.append(arrival)
        while arrival - window[0] >= seconds:
            window.popleft()
        most = max(most, len(window))
    return most
