"""Faults that a test can switch on: what they are, when they strike, and what they do to an answer.

A fault strikes on chosen requests (``requests``: numbers counted from 1 since the log was last cleared), with a
``probability`` (seeded), at most ``times`` times, and only on queries with the root field ``operation``.

===================  ============================================================================================
kind                 options
===================  ============================================================================================
``status``           ``status`` (503), ``text``, ``content_type``, ``retry_after``, ``echo`` (repeats URL and headers)
``body``             ``form``: html, empty, truncated, object, message, null_data, text (with ``text``); ``status``
``errors``           ``message`` or ``messages``; ``with_data`` (the true data beside the errors); ``echo``
``statement_timeout``  ``max_ids``: queries for more ids than that time out, and all ids are echoed as graph-node does
``poison``           ``ids``: a query that names one of them fails; otherwise as ``errors``, or ``status`` if given
``page_cap``         ``rows`` (100): no list is longer, silently
``foreign_id``       an id that was not asked for takes the place of the last row's
``extra_id``         a row with an id that was not asked for comes on top
``duplicate_id``     the first row comes twice
``upper_case_id``    the first row's id is in upper case
``malformed_id``     the first row's id is no id (``text``)
``omit_id``          ``ids`` or the first row are left out
``raw``              ``fields``: id → field → any JSON, which is served as it is
``hang``             accepts and never answers; ``seconds`` ends it with a closed connection
``drop``             closes the connection without an answer
``reset``            sends ``fraction`` (0.5) of the body, then resets the connection
``slow``             ``seconds`` more until the answer
``redirect``         ``location``, ``status`` (307)
``stale_head``       ``seconds`` by which the head looks older
``indexing_errors``  ``_meta.hasIndexingErrors`` is true although data is served
``failed``           ``block``: deterministic failure from there on, with graph-node's ``subgraphError`` policy
``deployment``       ``deployment``: another id in ``_meta``
``outage``           ``seconds`` from the request that it strikes; ``mode``: status (503), hang or drop
===================  ============================================================================================
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import orjson

from payout_pipeline.errors import ConfigurationError
from payout_pipeline.subgraph.engine import PLAIN, Disguise, with_rows
from payout_pipeline.subgraph.values import Value

Kind = Literal[
    "status",
    "body",
    "errors",
    "statement_timeout",
    "poison",
    "page_cap",
    "foreign_id",
    "extra_id",
    "duplicate_id",
    "upper_case_id",
    "malformed_id",
    "omit_id",
    "raw",
    "hang",
    "drop",
    "reset",
    "slow",
    "redirect",
    "stale_head",
    "indexing_errors",
    "failed",
    "deployment",
    "outage",
]
KINDS: tuple[str, ...] = get_args(Kind)

_DISGUISES = frozenset(
    {
        "page_cap",
        "foreign_id",
        "extra_id",
        "duplicate_id",
        "upper_case_id",
        "malformed_id",
        "omit_id",
        "raw",
        "stale_head",
        "indexing_errors",
        "failed",
        "deployment",
    }
)

HTML = "<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"


@dataclass(slots=True)
class Fault:
    """One fault; see the table of this module. ``struck`` counts how often it has done something."""

    kind: Kind
    probability: float = 1.0
    requests: tuple[int, ...] | None = None
    times: int | None = None
    operation: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    struck: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigurationError(f"no fault of the kind {self.kind!r}; the kinds are {', '.join(KINDS)}")
        if self.requests is not None:
            self.requests = tuple(self.requests)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a fault may look at: the request's number, its root fields and the ids it names."""

    number: int
    kinds: Sequence[str]
    ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done with one request.

    ``terminal``: the fault that takes the place of (or spoils) the answer, if any; ``disguise``: how the answer lies;
    ``delay``: seconds on top; ``names``: kinds of all faults that struck, for the log.
    """

    terminal: Fault | None = None
    disguise: Disguise = PLAIN
    delay: float = 0.0
    names: tuple[str, ...] = ()


class FaultBoard:
    """The faults that are on. Safe to change from another thread while the server runs."""

    def __init__(self, seed: int = 0) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._random = random.Random(seed)
        self._outage: tuple[float, Fault] | None = None

    def add(
        self,
        kind: Kind,
        *,
        probability: float = 1.0,
        requests: Iterable[int] | None = None,
        times: int | None = None,
        operation: str | None = None,
        **options: Value,
    ) -> Fault:
        """Switches a fault on and returns it."""
        chosen = None if requests is None else tuple(requests)
        fault = Fault(kind, probability, chosen, times, operation, options)
        with self._lock:
            self._faults.append(fault)
        return fault

    def remove(self, fault: Fault) -> None:
        """Switches one fault off; an outage that it began ends too."""
        with self._lock:
            self._faults = [other for other in self._faults if other is not fault]
            if self._outage is not None and self._outage[1] is fault:
                self._outage = None

    def clear(self) -> None:
        """Switches everything off."""
        with self._lock:
            self._faults.clear()
            self._outage = None

    def seed(self, seed: int) -> None:
        """Starts the dice anew."""
        with self._lock:
            self._random = random.Random(seed)

    def random(self) -> float:
        """A number from the seeded dice, for the jitter of the latency."""
        with self._lock:
            return self._random.random()

    def describe(self) -> list[dict[str, Any]]:
        """The faults that are on, as JSON-able objects."""
        with self._lock:
            return [asdict(fault) for fault in self._faults]

    def judge(self, asked: Asked) -> Verdict:
        """Decides what happens to a request. The first fault that takes the whole answer wins; the others add up."""
        with self._lock:
            terminal: Fault | None = None
            disguise, delay, names = PLAIN, 0.0, list[str]()
            if self._outage is not None:
                until, fault = self._outage
                if time.monotonic() < until:
                    fault.struck += 1
                    return Verdict(fault, names=("outage",))
                self._outage = None
            for fault in self._faults:
                ends = fault.kind not in _DISGUISES and fault.kind != "slow"
                if (ends and terminal is not None) or not self._strikes(fault, asked):
                    continue
                fault.struck += 1
                names.append(fault.kind)
                if fault.kind == "slow":
                    delay += float(fault.options.get("seconds", 1.0))
                elif fault.kind in _DISGUISES:
                    disguise = _disguised(disguise, fault)
                else:
                    terminal = fault
                    if fault.kind == "outage":
                        self._outage = (time.monotonic() + float(fault.options.get("seconds", 60.0)), fault)
            return Verdict(terminal, disguise, delay, tuple(names))

    def _strikes(self, fault: Fault, asked: Asked) -> bool:
        if fault.times is not None and fault.struck >= fault.times:
            return False
        if fault.requests is not None and asked.number not in fault.requests:
            return False
        if fault.operation is not None and fault.operation not in asked.kinds:
            return False
        if fault.kind == "statement_timeout" and len(asked.ids) <= int(fault.options.get("max_ids", 0)):
            return False
        if fault.kind == "poison" and not set(fault.options.get("ids", ())) & set(asked.ids):
            return False
        return fault.probability >= 1.0 or self._random.random() < fault.probability


def _disguised(disguise: Disguise, fault: Fault) -> Disguise:
    options = fault.options
    if fault.kind == "page_cap":
        return replace(disguise, page_cap=int(options.get("rows", 100)))
    if fault.kind == "raw":
        return replace(disguise, raw_fields={**disguise.raw_fields, **options["fields"]})
    if fault.kind == "stale_head":
        return replace(disguise, head_age=int(options.get("seconds", 86_400)))
    if fault.kind == "indexing_errors":
        return replace(disguise, has_indexing_errors=True)
    if fault.kind == "failed":
        return replace(disguise, failed_at=int(options.get("block", 0)))
    if fault.kind == "deployment":
        return replace(disguise, deployment=str(options["deployment"]))
    return with_rows(disguise, lambda asked, ids, objects: _ROW_FAULTS[fault.kind](asked, ids, objects, options))


def _with_id(template: bytes, old: str, new: str) -> bytes:
    return template.replace(orjson.dumps(old), orjson.dumps(new), 1)


def _unasked(asked: Sequence[str]) -> str:
    """An id of the right form that is not among those asked for."""
    taken, number = set(asked), 0
    while (identity := f"0x{number:064x}") in taken:
        number += 1
    return identity


RowFault = Callable[[Sequence[str], list[str], list[bytes], Mapping[str, Any]], list[bytes]]


def _foreign(asked: Sequence[str], ids: list[str], objects: list[bytes], _options: Mapping[str, Any]) -> list[bytes]:
    return [*objects[:-1], _with_id(objects[-1], ids[-1], _unasked(asked))] if objects else objects


def _extra(asked: Sequence[str], ids: list[str], objects: list[bytes], _options: Mapping[str, Any]) -> list[bytes]:
    return [*objects, _with_id(objects[-1], ids[-1], _unasked(asked))] if objects else objects


def _duplicate(_asked: Sequence[str], _ids: list[str], objects: list[bytes], _o: Mapping[str, Any]) -> list[bytes]:
    return [*objects[:1], *objects]


def _upper_case(_asked: Sequence[str], ids: list[str], objects: list[bytes], _o: Mapping[str, Any]) -> list[bytes]:
    return [_with_id(objects[0], ids[0], "0x" + ids[0][2:].upper()), *objects[1:]] if objects else objects


def _malformed(_asked: Sequence[str], ids: list[str], objects: list[bytes], opts: Mapping[str, Any]) -> list[bytes]:
    text = str(opts.get("text", "0xnot-an-id"))
    return [_with_id(objects[0], ids[0], text), *objects[1:]] if objects else objects


def _omit(_asked: Sequence[str], ids: list[str], objects: list[bytes], opts: Mapping[str, Any]) -> list[bytes]:
    left_out = set(opts.get("ids", ids[:1]))
    return [row for identity, row in zip(ids, objects, strict=True) if identity not in left_out]


_ROW_FAULTS: dict[str, RowFault] = {
    "foreign_id": _foreign,
    "extra_id": _extra,
    "duplicate_id": _duplicate,
    "upper_case_id": _upper_case,
    "malformed_id": _malformed,
    "omit_id": _omit,
}


def timeout_message(ids: Sequence[str]) -> str:
    """graph-node's text for a cancelled statement; it echoes every bind parameter."""
    binds = ", ".join(f'"{identity}"' for identity in ids)
    statement = (
        "/* controller='filter',application='sgd1',route='0123456789abcdef-0123456789abcdef',action='12' */\n"
        'select \'Condition\' as entity, to_jsonb(c.*) as data from (select c.* from "sgd1"."condition" c where '
        "c.block_range @> $1 and c.id in (...) order by c.id limit 1000) c"
    )
    reason = "canceling statement due to statement timeout"
    return f"Failed to get entities from store: {reason}, query = {statement} -- binds: [12, {binds}]"
