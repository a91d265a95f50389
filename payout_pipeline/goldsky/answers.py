"""Questions and answers: the GraphQL documents, and the checks that an answer has to pass before it is believed.

Pure functions over parsed JSON. Ids outside this module have no ``0x``; the subgraph's have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeGuard

from payout_pipeline.goldsky.classify import Fault, FaultKind
from payout_pipeline.scrub import excerpt

if TYPE_CHECKING:
    from graphql import DocumentNode

SchemaKind = Literal["payouts", "numerators"]
PinMode = Literal["number", "number_gte"]

MAX_FIRST = 1000  # graph-node's default limit of `first` (GRAPH_GRAPHQL_MAX_FIRST)
_MAX_BLOCK = 2**31 - 1  # Block_height.number is a GraphQL Int
_ROUND_PAGE = 50  # page sizes people and servers choose are multiples of this, or powers of two
_UNLIKELY = 0.01


class JSONNumber(str):
    """The text of a JSON number that a float would have rounded: exact, and marked as not having been a string."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"JSONNumber({str(self)!r})"


class RawCondition(NamedTuple):
    """What the subgraph said of one condition, as raw JSON values; ``None`` where the schema lacks the field.

    Strings stay strings. A number with a fraction, or one of more than 64 bits, is kept as :class:`JSONNumber`.
    """

    payouts: Any
    payout_numerators: Any
    payout_denominator: Any
    resolution_timestamp: Any


class Fields(NamedTuple):
    """Which fields of ``Condition`` a subgraph has, and so which are asked for."""

    kind: SchemaKind
    resolution_timestamp: bool


@dataclass(frozen=True, slots=True)
class SubgraphInfo:
    """What one probe learnt. ``head_timestamp``: seconds since 1970, ``None`` where the subgraph does not say."""

    schema_kind: SchemaKind
    has_resolution_timestamp: bool
    head_number: int
    head_hash: str | None
    head_timestamp: int | None
    deployment: str
    has_indexing_errors: bool

    @property
    def fields(self) -> Fields:
        return Fields(self.schema_kind, self.has_resolution_timestamp)


@dataclass(frozen=True, slots=True)
class Pin:
    """The block that a whole run asks: exactly ``number``, or with ``number_gte`` the head, if it is not behind."""

    number: int
    deployment: str
    mode: PinMode = "number"

    def __post_init__(self) -> None:
        if type(self.number) is not int or not 0 <= self.number <= _MAX_BLOCK:
            raise ValueError(f"a block number is a whole number from 0 to {_MAX_BLOCK}, not {self.number!r}")
        if self.mode not in ("number", "number_gte"):
            raise ValueError(f"a pin is by number or by number_gte, not {self.mode!r}")


class AnswerFault(Exception):  # noqa: N818 - a fault that was classified, not an error of the program
    """An answer that is not believed, or an error in its place."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


def refuse(message: str) -> AnswerFault:
    """An answer that must not be stored; the same question is asked again."""
    return AnswerFault(Fault(FaultKind.REFUSED, f"the answer was refused: {message}"))


# --- documents ----------------------------------------------------------------------------------------------------

# `__type`, `__schema` and `_meta` without aliases: only under these keys are they still answered by a deployment that
# has failed. `_meta` without a block is the head.
_PROBE = """
query Probe {
  __schema { queryType { fields { name } } }
  __type(name: "Condition") { kind fields { name } }
  _meta { block { number hash timestamp } deployment hasIndexingErrors }
}
"""
_HEAD = "query Head { _meta { block { number } deployment hasIndexingErrors } }"


def _parse(text: str) -> DocumentNode:
    from graphql import parse

    return parse(text, no_location=True)


@lru_cache(maxsize=1)
def probe_document() -> DocumentNode:
    """Schema and head in one request."""
    return _parse(_PROBE)


@lru_cache(maxsize=1)
def head_document() -> DocumentNode:
    """The cheapest question there is: whether the subgraph answers at all."""
    return _parse(_HEAD)


def _selection(fields: Fields) -> str:
    vector = "payouts" if fields.kind == "payouts" else "payoutNumerators payoutDenominator"
    return f"id {vector}{' resolutionTimestamp' if fields.resolution_timestamp else ''}"


def _meta(pin: Pin) -> str:
    # The same block argument in a neighbouring root field makes one group of both: one snapshot, all or nothing.
    return f"_meta(block: {{{pin.mode}: {pin.number}}}) {{ deployment block {{ number }} hasIndexingErrors }}"


@lru_cache(maxsize=256)
def batch_document(fields: Fields, pin: Pin, first: int) -> DocumentNode:
    """The question for a list of ids. ``first`` is written out, because graph-node takes a variable one for 100 when it
    estimates the weight of a query; the ids are a variable."""
    return _parse(
        f"query Conditions($ids: [ID!]!) {{ conditions(first: {int(first)}, where: {{id_in: $ids}}, "
        f"block: {{{pin.mode}: {pin.number}}}) {{ {_selection(fields)} }} {_meta(pin)} }}"
    )


@lru_cache(maxsize=256)
def scan_document(fields: Fields, pin: Pin, first: int, bounded: bool) -> DocumentNode:
    """The question for the next resolved conditions in id order, after ``$after`` (and, bounded, before ``$upper``)."""
    resolved = "payouts_not: null" if fields.kind == "payouts" else 'payoutDenominator_gt: "0"'
    upper_variable, upper = (", $upper: ID!", ", id_lt: $upper") if bounded else ("", "")
    return _parse(
        f"query Resolved($after: ID!{upper_variable}) {{ conditions(first: {int(first)}, orderBy: id, "
        f"orderDirection: asc, where: {{id_gt: $after{upper}, {resolved}}}, block: {{{pin.mode}: {pin.number}}}) "
        f"{{ {_selection(fields)} }} {_meta(pin)} }}"
    )


# --- checks ---------------------------------------------------------------------------------------------------------


def read_probe(data: object, endpoint: str, *, failed: bool) -> SubgraphInfo:
    """What the probe says; raises AnswerFault, permanent where this is no subgraph of conditions.

    ``failed``: the answer came with ``indexing_error``, which a deployment that failed adds to it.
    """

    def permanent(message: str) -> AnswerFault:
        return AnswerFault(Fault(FaultKind.PERMANENT, f"{excerpt(endpoint)}: {message}"))

    if not isinstance(data, dict):
        raise refuse("the probe has no data")
    schema, condition, meta = data.get("__schema"), data.get("__type"), data.get("_meta")
    try:
        root = {field["name"] for field in schema["queryType"]["fields"]}  # type: ignore[index]
    except (TypeError, KeyError):
        raise permanent("it answers GraphQL, but not the introspection that tells its schema") from None
    if "conditions" not in root:
        some = ", ".join(sorted(str(name) for name in root)[:10])
        raise permanent(f"this subgraph has no `conditions`, but {excerpt(some)}; set GOLDSKY_ENDPOINT to one that has")
    try:
        names = {field["name"] for field in condition["fields"]}  # type: ignore[index]
    except (TypeError, KeyError):
        raise permanent("this subgraph has `conditions`, but no type `Condition`") from None
    kind: SchemaKind
    if "payouts" in names:
        kind = "payouts"
    elif {"payoutNumerators", "payoutDenominator"} <= names:
        kind = "numerators"
    else:
        some = ", ".join(sorted(str(name) for name in names)[:10])
        raise permanent(
            "`Condition` of this subgraph has neither `payouts` nor `payoutNumerators` and `payoutDenominator`, but "
            f"{excerpt(some)}; positions-subgraph and pnl-subgraph have them"
        )
    try:
        block = meta["block"]  # type: ignore[index]
        number, deployment = block["number"], meta["deployment"]  # type: ignore[index]
        errors = meta["hasIndexingErrors"]  # type: ignore[index]
    except (TypeError, KeyError):
        raise permanent("it has `conditions`, but no `_meta` that tells its head: no graph-node subgraph") from None
    if type(number) is not int or not 0 <= number <= _MAX_BLOCK or not isinstance(deployment, str) or not deployment:
        raise refuse(f"its head is {excerpt(repr(number))} of deployment {excerpt(repr(deployment))}")
    timestamp, block_hash = block.get("timestamp"), block.get("hash")
    return SubgraphInfo(
        schema_kind=kind,
        has_resolution_timestamp="resolutionTimestamp" in names,
        head_number=number,
        head_hash=block_hash if isinstance(block_hash, str) else None,
        head_timestamp=timestamp if type(timestamp) is int and timestamp > 0 else None,
        deployment=deployment,
        has_indexing_errors=failed or errors is not False,
    )


def check_meta(data: dict[str, Any], pin: Pin) -> int:
    """The block that an answer is of; raises AnswerFault where it is not the pinned snapshot."""
    meta = data.get("_meta")
    try:
        number, deployment = meta["block"]["number"], meta["deployment"]  # type: ignore[index]
        has_errors = meta["hasIndexingErrors"]  # type: ignore[index]
    except (TypeError, KeyError):
        raise refuse("it does not tell its block and deployment") from None
    if deployment != pin.deployment:
        raise AnswerFault(
            Fault(
                FaultKind.REPIN,
                f"the deployment behind the endpoint changed from {excerpt(pin.deployment)} to "
                f"{excerpt(str(deployment))} during the run; answers of two deployments are never mixed",
            )
        )
    if type(number) is not int or (number != pin.number if pin.mode == "number" else number < pin.number):
        raise refuse(f"it is of block {excerpt(repr(number))}, asked was {pin.mode} {pin.number}")
    if has_errors is not False:
        raise AnswerFault(
            Fault(
                FaultKind.REPIN,
                f"the subgraph has indexing errors at block {number}; a block before the failure answers normally: "
                "raise GOLDSKY_BLOCK_MARGIN",
            )
        )
    return int(number)


def _rows(data: object) -> list[dict[str, Any]]:
    if not isinstance(data, dict):
        raise refuse("it has no data")
    rows = data.get("conditions")
    if not isinstance(rows, list):
        raise refuse("`conditions` is no list")
    return rows


def _conditions(rows: list[Any], ids: list[str], body: bytes, fields: Fields) -> dict[str, RawCondition]:
    """The raw conditions of the rows under ``ids``, which are in the rows' order; a missing field refuses the answer.

    Where a value is not of the type that the schema promises, the text of the answer is read again without ever making a
    number a float.
    """
    nothing: list[Any] = [None] * len(rows)

    def columns() -> tuple[list[Any], list[Any], list[Any], list[Any]]:
        by_share = fields.kind == "payouts"
        return (
            [row["payouts"] for row in rows] if by_share else nothing,
            nothing if by_share else [row["payoutNumerators"] for row in rows],
            nothing if by_share else [row["payoutDenominator"] for row in rows],
            [row["resolutionTimestamp"] for row in rows] if fields.resolution_timestamp else nothing,
        )

    try:
        payouts, numerators, denominators, timestamps = columns()
        vectors = payouts if fields.kind == "payouts" else numerators
        scalars = set(map(type, denominators)) | set(map(type, timestamps))
        as_promised = (
            _LISTS.issuperset(map(type, vectors))
            and _STRINGS.issuperset(map(type, chain.from_iterable(filter(None, vectors))))
            and _SCALARS.issuperset(scalars)
        )
        if not as_promised:
            rows = read_exactly(body)["data"]["conditions"]
            payouts, numerators, denominators, timestamps = columns()
    except KeyError as error:
        raise refuse(f"a row lacks the field {excerpt(str(error))}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise refuse(f"it cannot be read exactly: {excerpt(str(error))}") from None
    return dict(
        zip(
            ids,
            map(_NEW, repeat(RawCondition), zip(payouts, numerators, denominators, timestamps, strict=True)),
            strict=True,
        )
    )


_LISTS = frozenset({list, type(None)})
_STRINGS = frozenset({str})
_SCALARS = frozenset({str, int, type(None)})
_NEW: Callable[..., Any] = tuple.__new__  # a thousand times per answer: without the detour over Python


def read_exactly(body: bytes) -> Any:
    """The JSON of ``body`` with no number ever made a float. Raises ValueError on what is no strict JSON."""

    def constant(name: str) -> object:
        raise ValueError(f"{name} is no JSON")

    def whole(text: str) -> int | str:
        return int(text) if len(text) < 20 else JSONNumber(text)

    return json.loads(body, parse_float=JSONNumber, parse_int=whole, parse_constant=constant)


def check_batch(
    data: object, body: bytes, asked: Mapping[str, str], pin: Pin, fields: Fields
) -> tuple[dict[str, RawCondition], int]:
    """The conditions found among ``asked`` (id with ``0x`` → id without), and the block. Raises AnswerFault.

    Each row's id was asked for, in the same form, and none comes twice. Whether something is missing is another
    question: :func:`doubtful`.
    """
    rows = _rows(data)
    block = check_meta(data, pin)  # type: ignore[arg-type]
    if len(rows) > len(asked):
        raise refuse(f"{len(rows)} rows for {len(asked)} ids")
    try:
        names = [asked[row["id"]] for row in rows]
    except (KeyError, TypeError):
        raise refuse(_what_is_wrong(rows, asked)) from None
    found = _conditions(rows, names, body, fields)
    if len(found) != len(rows):
        twice = next(name for position, name in enumerate(names) if name in names[:position])
        raise refuse(f"the id 0x{twice} comes twice")
    return found, block


def _what_is_wrong(rows: list[Any], asked: Mapping[str, str]) -> str:
    for row in rows:
        if not isinstance(row, dict) or "id" not in row:
            return "a row is no object with an id"
        identifier = row["id"]
        if not isinstance(identifier, str) or identifier not in asked:
            how = " in upper case" if isinstance(identifier, str) and identifier.lower() in asked else ""
            return f"the id {excerpt(str(identifier), 80)} was not asked for{how}"
    return "a row cannot be read"


def doubtful(asked: Collection[str], found: dict[str, RawCondition]) -> list[str]:
    """The ids that an answer may have cut off, in ascending order; empty where the answer can be believed as it is.

    Rows come in ascending order of ids, so a limit that nobody told us of takes away the end, never the middle: if the
    greatest id asked for is there, nothing was cut off, and what is missing below the last row is really absent. If the
    end is missing, the page is suspicious where its size is one that limits have (100 is graph-node's own default), or
    where so long a missing end is improbable, given how many ids are missing before it. Only that end is asked again.
    """
    if not found or len(found) == len(asked):
        return []  # no limit is zero, and nothing is missing
    last = max(found)
    tail = sorted(identifier for identifier in asked if identifier > last)
    if not tail:
        return []
    returned = len(found)
    missing_before = len(asked) - returned - len(tail)
    share = (missing_before + 1) / (returned + missing_before + 2)
    improbable = len(tail) * math.log(share) < math.log(_UNLIKELY)
    round_size = returned % _ROUND_PAGE == 0 or (returned >= 64 and returned & (returned - 1) == 0)
    return tail if round_size or improbable else []


def check_page(
    data: object, body: bytes, after: str, upper: str | None, first: int, pin: Pin, fields: Fields
) -> tuple[dict[str, RawCondition], int]:
    """The conditions of a scan's page (no ``0x``, ascending), and the block. Raises AnswerFault."""
    rows = _rows(data)
    block = check_meta(data, pin)  # type: ignore[arg-type]
    if len(rows) > first:
        raise refuse(f"{len(rows)} rows where at most {first} were asked for")
    previous, names = "0x" + after, list[str]()
    for row in rows:
        identifier = row.get("id") if isinstance(row, dict) else None
        if not _is_id(identifier):
            raise refuse(f"{excerpt(repr(identifier), 80)} is no condition id")
        if identifier <= previous:
            raise refuse(f"the id {identifier} comes after {excerpt(previous, 80)}: not in strictly ascending order")
        if upper is not None and identifier >= "0x" + upper:
            raise refuse(f"the id {identifier} lies beyond the upper end 0x{upper}")
        names.append(identifier[2:])
        previous = identifier
    return _conditions(rows, names, body, fields), block


_HEX = frozenset("0123456789abcdef")


def _is_id(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and len(value) == 66 and value.startswith("0x") and _HEX.issuperset(value[2:])
