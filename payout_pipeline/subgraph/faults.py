"""Faults that a test can switch on: what they are and when they strike.

A fault strikes on chosen requests (``requests``: numbers counted from 1 since the log was last cleared), with a
``probability`` (seeded), at most ``times`` times, and with ``operation="conditions"`` only on queries for conditions.
With the option ``alias`` (index of a list in the query, from 0) it strikes only queries that have so many lists, and the
faults marked * spoil that list alone.

======================  =========================================================================================
kind                    options
======================  =========================================================================================
``status``              ``status`` (503), ``text``, ``retry_after``; ``echo`` repeats URL and headers
``body``                ``form``: html, empty, object, message, null_data, text (with ``text``), truncated* (in the middle,
                        or after the list ``alias``)
``errors``*             ``message``; ``with_data`` (the true data beside the error); ``echo``. With ``alias`` the error has
                        its path and it is null in the data
``statement_timeout``   ``max_ids`` (0): queries for more ids than that time out, and all ids are echoed as graph-node does
``poison``              ``ids``: a query that names one of them fails; otherwise as ``errors``, or ``status`` if given
``page_cap``*           ``rows`` (100): no list is longer, silently
``foreign_id``*         an id that was not asked for takes the place of the last row's
``extra_id``*           a row with an id that was not asked for comes on top
``duplicate_id``*       the first row comes twice
``upper_case_id``*      the first row's id is in upper case
``malformed_id``*       the first row's id is no id
``omit_id``*            the first row is left out
``raw``*                ``fields``: id → field → any JSON, which is served as it is
``missing_alias``*      the list is not in the answer
``hang``                accepts and never answers; ``seconds`` ends it with a closed connection
``drop``                closes the connection without an answer
``reset``               sends half of the body, then resets the connection
``slow``                ``seconds`` (1) more until the answer
``stale_head``          ``seconds`` (a day) by which the head looks older
``indexing_errors``     ``_meta.hasIndexingErrors`` is true although data is served
``failed``              the deployment has failed: ``_meta`` and introspection are answered, data is not
``deployment``          ``deployment``: another id in ``_meta``
``outage``              ``seconds`` (60) from the request that it strikes; ``mode``: status (503), hang or drop
======================  =========================================================================================
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from payout_pipeline.errors import ConfigurationError
from payout_pipeline.subgraph.log import LoggedRequest

#: Those that take the place of the answer, or cut it off.
REPLACES = ("status", "body", "errors", "statement_timeout", "poison", "hang", "drop", "reset", "outage")
OF_ROWS = ("foreign_id", "extra_id", "duplicate_id", "upper_case_id", "malformed_id", "omit_id", "page_cap", "raw")
KINDS = (*REPLACES, *OF_ROWS, "missing_alias", "slow", "stale_head", "indexing_errors", "failed", "deployment")


@dataclass(slots=True)
class Fault:
    """One fault; see the table of this module. ``struck`` counts how often it has done something."""

    kind: str
    requests: frozenset[int] | None = None
    probability: float = 1.0
    times: int | None = None
    operation: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    struck: int = 0
    until: float = 0.0  # monotonic seconds at which an outage ends

    def strikes(self, request: LoggedRequest, ids: Sequence[str], chance: random.Random) -> bool:
        """Whether it does something to a request that names these ids."""
        if self.times is not None and self.struck >= self.times:
            return False
        if self.requests is not None and request.number not in self.requests:
            return False
        if self.operation == "conditions" and not request.aliases:
            return False
        if self.options.get("alias", -1) >= request.aliases:
            return False
        if self.kind == "statement_timeout" and len(ids) <= self.options.get("max_ids", 0):
            return False
        if self.kind == "poison" and set(ids).isdisjoint(self.options["ids"]):
            return False
        return self.probability >= 1.0 or chance.random() < self.probability


class Faults:
    """The faults that are on. May be changed from another thread while the server runs."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self._faults: list[Fault] = []

    def add(self, kind: str, *, requests: Iterable[int] | None = None, **options: Any) -> Fault:
        """Switches a fault on and returns it. Raises :class:`~payout_pipeline.errors.ConfigurationError`."""
        if kind not in KINDS:
            raise ConfigurationError(f"no fault of the kind {kind!r}; the kinds are {', '.join(KINDS)}")
        when = {name: options.pop(name) for name in ("probability", "times", "operation") if name in options}
        fault = Fault(kind, None if requests is None else frozenset(requests), options=options, **when)
        self._faults = [*self._faults, fault]
        return fault

    def remove(self, fault: Fault) -> None:
        """Switches one fault off; an outage that it began ends too."""
        self._faults = [other for other in self._faults if other is not fault]

    def clear(self) -> None:
        """Switches everything off."""
        self._faults = []

    def striking(self, request: LoggedRequest, ids: Sequence[str]) -> list[Fault]:
        """The faults that strike a request; of those that take the answer's place at most one, the first."""
        if lasting := [fault for fault in self._faults if time.monotonic() < fault.until]:
            lasting[0].struck += 1
            return lasting[:1]
        struck: list[Fault] = []
        for fault in self._faults:
            taken = fault.kind in REPLACES and any(other.kind in REPLACES for other in struck)
            if not taken and fault.strikes(request, ids, self.random):
                fault.struck += 1
                struck.append(fault)
                if fault.kind == "outage":
                    fault.until = time.monotonic() + fault.options.get("seconds", 60.0)
        return struck
