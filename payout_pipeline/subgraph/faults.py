"""Faults that a test can switch on: what they are, when they strike, and what they do to an answer.

A fault strikes on chosen requests (``requests``: numbers counted from 1 since the log was last cleared), with a
``probability`` (seeded), at most ``times`` times, and only on queries with the root field ``operation``. With the
option ``alias`` (index of a list in the query, from 0) it strikes only queries that have so many lists, and the faults
marked * spoil that list alone.

======================  =========================================================================================
kind                    options
======================  =========================================================================================
``status``              ``status`` (503), ``text``, ``content_type``, ``retry_after``, ``echo`` (repeats URL and headers)
``body``                ``form``: html, empty, object, message, null_data, text (with ``text``), truncated* (in the middle,
                        or after the list ``alias``), gzip_bomb (``bytes`` unpacked, 400 MB); ``status``
``errors``*             ``message`` or ``messages``; ``with_data`` (the true data beside the errors); ``echo``. With
                        ``alias`` the errors have its path and it is null in the data
``statement_timeout``   ``max_ids``: queries for more ids than that time out, and all ids are echoed as graph-node does
``poison``              ``ids``: a query that names one of them fails; otherwise as ``errors``, or ``status`` if given
``page_cap``*           ``rows`` (100): no list is longer, silently
``foreign_id``*         an id that was not asked for takes the place of the last row's
``extra_id``*           ``rows`` (1) with ids that were not asked for come on top
``duplicate_id``*       the first row comes twice
``upper_case_id``*      the first row's id is in upper case
``malformed_id``*       the first row's id is no id (``text``)
``omit_id``*            ``ids`` or the first row are left out
``raw``*                ``fields``: id → field → any JSON (or bytes of JSON), which is served as it is
``missing_alias``*      the list is not in the answer
``hang``                accepts and never answers; ``seconds`` ends it with a closed connection
``drop``                closes the connection without an answer
``reset``               sends ``fraction`` (0.5) of the body, then resets the connection
``slow``                ``seconds`` more until the answer
``redirect``            ``location``, ``status`` (307)
``stale_head``          ``seconds`` by which the head looks older
``indexing_errors``     ``_meta.hasIndexingErrors`` is true although data is served
``failed``              ``block``: deterministic failure from there on, with graph-node's ``subgraphError`` policy
``deployment``          ``deployment``: another id in ``_meta``
``outage``              ``seconds`` from the request that it strikes; ``mode``: status (503), hang or drop
======================  =========================================================================================
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count, islice
from typing import Any

import orjson

from payout_pipeline.errors import ConfigurationError
from payout_pipeline.subgraph.log import LoggedRequest


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

    @property
    def ends(self) -> bool:
        """Whether it takes or cuts the whole answer."""
        return self.kind in _ENDS

    def hits(self, alias: int) -> bool:
        """Whether it spoils the list with that index."""
        return bool(self.options.get("alias", alias) == alias)


class FaultBoard:
    """The faults that are on. May be changed from another thread while the server runs."""

    def __init__(self, seed: int = 0) -> None:
        self.dice = random.Random(seed)
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

    def seed(self, seed: int) -> None:
        """Starts the dice anew."""
        self.dice.seed(seed)

    def describe(self) -> list[dict[str, Any]]:
        """The faults that are on, as JSON-able objects."""
        return [{**asdict(fault), "requests": fault.requests and sorted(fault.requests)} for fault in self._faults]

    def judge(self, request: LoggedRequest, ids: Sequence[str]) -> list[Fault]:
        """The faults that strike a request; of those that take or cut the whole answer at most one, the first."""
        if lasting := [fault for fault in self._faults if time.monotonic() < fault.until]:
            lasting[0].struck += 1
            return lasting[:1]
        struck: list[Fault] = []
        for fault in self._faults:
            taken = fault.ends and any(other.ends for other in struck)
            if not taken and self._strikes(fault, request, ids):
                fault.struck += 1
                struck.append(fault)
                if fault.kind == "outage":
                    fault.until = time.monotonic() + float(fault.options.get("seconds", 60.0))
        return struck

    def _strikes(self, fault: Fault, request: LoggedRequest, ids: Sequence[str]) -> bool:
        options = fault.options
        if fault.times is not None and fault.struck >= fault.times:
            return False
        if fault.requests is not None and request.number not in fault.requests:
            return False
        if fault.operation is not None and fault.operation not in request.kinds:
            return False
        if options.get("alias", -1) >= request.aliases:
            return False
        if fault.kind == "statement_timeout" and len(ids) <= int(options.get("max_ids", 0)):
            return False
        if fault.kind == "poison" and set(ids).isdisjoint(options.get("ids", ())):
            return False
        return fault.probability >= 1.0 or self.dice.random() < fault.probability


def option_of(faults: Iterable[Fault], kind: str, name: str, default: Any) -> Any:
    """An option of the first fault of a kind; ``default`` where there is no such fault."""
    return next((fault.options.get(name, _DEFAULTS.get(kind)) for fault in faults if fault.kind == kind), default)


_DEFAULTS = {"stale_head": 86_400, "failed": 0}


def spoil_rows(
    faults: Iterable[Fault], alias: int, asked: Sequence[str], ids: list[str], rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """What is served in the place of ``rows``, which are the conditions ``ids``. Of a list that was not ``asked`` for by
    ids, rows are capped and rewritten, but neither added nor left out."""
    for fault in faults:
        if not fault.hits(alias):
            continue
        if fault.kind == "page_cap":
            rows = rows[: int(fault.options.get("rows", 100))]
        elif fault.kind == "raw":
            rows = [_raw(row, fault.options["fields"].get(identity)) for row, identity in zip(rows, ids, strict=False)]
        elif fault.kind in _ROW_FAULTS and asked and rows:
            rows = _ROW_FAULTS[fault.kind](asked, rows, fault.options)
        ids = [row.get("id", "") for row in rows]
    return rows


def _raw(row: dict[str, Any], fields: Mapping[str, Any] | None) -> dict[str, Any]:
    given = {name: value for name, value in (fields or {}).items() if name in row}
    return {**row, **{name: orjson.Fragment(v) if isinstance(v, bytes) else v for name, v in given.items()}}


def _unasked(asked: Sequence[str]) -> Iterator[str]:
    """Ids of the right form that are not among those asked for."""
    taken = set(asked)
    return (identity for number in count() if (identity := f"0x{number:064x}") not in taken)


def _extra(asked: Sequence[str], rows: list[dict[str, Any]], options: Mapping[str, Any]) -> list[dict[str, Any]]:
    added = islice(_unasked(asked), int(options.get("rows", 1)))
    return [*rows, *({**rows[-1], "id": identity} for identity in added)]


def _omit(_asked: Sequence[str], rows: list[dict[str, Any]], options: Mapping[str, Any]) -> list[dict[str, Any]]:
    left_out = set(options.get("ids", [rows[0].get("id")]))
    return [row for row in rows if row.get("id") not in left_out]


_ROW_FAULTS: dict[str, Callable[[Sequence[str], list[dict[str, Any]], Mapping[str, Any]], list[dict[str, Any]]]] = {
    "foreign_id": lambda asked, rows, _options: [*rows[:-1], {**rows[-1], "id": next(_unasked(asked))}],
    "extra_id": _extra,
    "duplicate_id": lambda _asked, rows, _options: [rows[0], *rows],
    "upper_case_id": lambda _asked, rows, _options: [{**rows[0], "id": "0x" + rows[0]["id"][2:].upper()}, *rows[1:]],
    "malformed_id": lambda _asked, rows, options: [{**rows[0], "id": options.get("text", "0xnot-an-id")}, *rows[1:]],
    "omit_id": _omit,
}


_ENDS = ("status", "body", "errors", "statement_timeout", "poison", "hang", "drop", "reset", "redirect", "outage")
_OF_META = ("stale_head", "indexing_errors", "failed", "deployment")
KINDS = (*_ENDS, "slow", *_ROW_FAULTS, "page_cap", "raw", "missing_alias", *_OF_META)


def timeout_message(ids: Sequence[str]) -> str:
    """graph-node's text for a cancelled statement; it echoes every bind parameter."""
    binds = ", ".join(f'"{identity}"' for identity in ids)
    return (
        "Failed to get entities from store: canceling statement due to statement timeout, query = /* controller='filter' "
        '*/\nselect \'Condition\' as entity, to_jsonb(c.*) as data from "sgd1"."condition" c where c.id in (...) '
        f"-- binds: [12, {binds}]"
    )
