"""What is believed of an answer: the checks that it has to pass.

Pure functions over parsed JSON. Ids outside this package have no ``0x``; the subgraph's have.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeGuard

from payout_pipeline.goldsky.classify import Fault, FaultKind
from payout_pipeline.goldsky.pin import MAX_BLOCK, Pin
from payout_pipeline.scrub import excerpt

SchemaKind = Literal["payouts", "numerators"]

MAX_VALUE_CHARACTERS = 100_000  # 257 outcomes of 34 digits are a tenth of it
_HEX = frozenset("0123456789abcdef")


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


@dataclass(frozen=True, slots=True)
class SubgraphInfo:
    """What one probe learnt. ``head_timestamp``: seconds since 1970, ``None`` where the subgraph does not say."""

    schema_kind: SchemaKind
    has_resolution_timestamp: bool
    head_number: int
    head_timestamp: int | None
    deployment: str
    has_indexing_errors: bool


@dataclass(slots=True)
class BatchAnswer:
    """What became of each id of a batch: it is in exactly one of ``found``, ``absent`` and ``failed``.

    ``found`` holds raw JSON values; ``failed`` the last error. ``block_number`` is that of the answers (0 if there was
    none; the lowest where pieces of the batch were answered at several blocks). ``attempts``: 1 + repetitions of
    requests; ``requests``: those that carried ids of it. ``duration`` in seconds, waiting for the rate limit included.
    Of a scan it is one range, which has neither ``absent`` nor ``failed``.
    """

    found: dict[str, RawCondition] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    block_number: int = 0
    attempts: int = 1
    requests: int = 0
    duration: float = 0.0


class AnswerFault(Exception):  # noqa: N818 - a fault that was classified, not an error of the program
    """An answer that is not believed, or an error in its place."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


def refuse(message: str, *, splits: bool = True) -> AnswerFault:
    """An answer that must not be stored; the same question is asked again, and then, if it ``splits``, in parts."""
    return AnswerFault(Fault(FaultKind.REFUSED, f"the answer was refused: {message}", splits=splits))


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
    if type(number) is not int or not 0 <= number <= MAX_BLOCK or not isinstance(deployment, str) or not deployment:
        raise refuse(f"its head is {excerpt(repr(number))} of deployment {excerpt(repr(deployment))}")
    timestamp = block.get("timestamp")
    return SubgraphInfo(
        schema_kind=kind,
        has_resolution_timestamp="resolutionTimestamp" in names,
        head_number=number,
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
        raise refuse("it does not tell its block and deployment", splits=False) from None
    if deployment != pin.deployment:
        raise AnswerFault(
            Fault(
                FaultKind.REPIN,
                f"the deployment behind the endpoint changed from {excerpt(pin.deployment)} to "
                f"{excerpt(str(deployment))} during the run; answers of two deployments are never mixed",
            )
        )
    asked = pin.block_number
    if type(number) is not int or (number != asked if pin.kind == "number" else number < asked):
        raise refuse(f"it is of block {excerpt(repr(number))}, asked was {pin.kind} {asked}", splits=False)
    if has_errors is not False:
        raise AnswerFault(
            Fault(
                FaultKind.REPIN,
                f"the subgraph has indexing errors at block {number}; a block before the failure answers normally: "
                "raise GOLDSKY_BLOCK_MARGIN",
            )
        )
    return int(number)


def read_exactly(body: bytes | bytearray) -> Any:
    """The JSON of ``body`` with no number ever made a float. Raises ValueError or RecursionError on what is none."""

    def constant(name: str) -> object:
        raise ValueError(f"{name} is no JSON")

    def whole(text: str) -> int | str:
        return int(text) if len(text) < 20 else JSONNumber(text)

    return json.loads(body, parse_float=JSONNumber, parse_int=whole, parse_constant=constant)


def _condition(row: dict[str, Any], info: SubgraphInfo) -> RawCondition:
    by_share = info.schema_kind == "payouts"
    try:
        return RawCondition(
            _bounded(row["payouts"]) if by_share else None,
            None if by_share else _bounded(row["payoutNumerators"]),
            None if by_share else _bounded(row["payoutDenominator"]),
            _bounded(row["resolutionTimestamp"]) if info.has_resolution_timestamp else None,
        )
    except KeyError as error:
        raise refuse(f"a row lacks the field {excerpt(str(error))}") from None
    except RecursionError:
        raise refuse("a value is nested too deeply") from None


def _bounded(value: Any) -> Any:
    """``value``, or a remark in its place, which makes the vector invalid, where it cannot be kept."""
    try:
        length = _length(value)
    except UnicodeEncodeError:
        return "(a value with half of a surrogate pair, which is no text)"
    if length <= MAX_VALUE_CHARACTERS:
        return value
    return f"(a value of {length:,} characters; up to {MAX_VALUE_CHARACTERS:,} are kept)"


def _length(value: Any) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode())
    if isinstance(value, list):
        return sum(map(_length, value), len(value))
    if isinstance(value, dict):
        return sum(_length(key) + _length(inner) for key, inner in value.items())
    return 8


def check_ids(rows: list[Any], ids: Sequence[str], info: SubgraphInfo) -> dict[str, RawCondition]:
    """The conditions found among ``ids``. Raises AnswerFault.

    Each row's id was asked for, in the same form, and none comes twice. An id without a row is absent only once a second
    answer agrees (``Questions.confirm_absences``): a server may cut lists off, or leave rows out, without saying so.
    """
    if len(rows) > len(ids):
        raise refuse(f"{len(rows)} rows for {len(ids)} ids")
    asked = {"0x" + i: i for i in ids}
    found: dict[str, RawCondition] = {}
    for row in rows:
        try:
            name = asked[row["id"]]
        except (KeyError, TypeError):
            raise refuse(_what_is_wrong(row, asked)) from None
        if name in found:
            raise refuse(f"the id 0x{name} comes twice")
        found[name] = _condition(row, info)
    return found


def _what_is_wrong(row: object, asked: Collection[str]) -> str:
    if not isinstance(row, dict) or "id" not in row:
        return "a row is no object with an id"
    identifier = row["id"]
    how = " in upper case" if isinstance(identifier, str) and identifier.lower() in asked else ""
    return f"the id {excerpt(str(identifier), 80)} was not asked for{how}"


def check_page(
    rows: list[Any], after: str, upper: str | None, first: int, info: SubgraphInfo
) -> dict[str, RawCondition]:
    """The conditions of a scan's page (no ``0x``, ascending). Raises AnswerFault."""
    if len(rows) > first:
        raise refuse(f"{len(rows)} rows where at most {first} were asked for")
    previous = "0x" + after
    found: dict[str, RawCondition] = {}
    for row in rows:
        identifier = row.get("id") if isinstance(row, dict) else None
        if not _is_id(identifier):
            raise refuse(f"{excerpt(repr(identifier), 80)} is no condition id")
        if identifier <= previous:
            raise refuse(f"the id {identifier} comes after {excerpt(previous, 80)}: not in strictly ascending order")
        if upper is not None and identifier >= "0x" + upper:
            raise refuse(f"the id {identifier} lies beyond the upper end 0x{upper}")
        found[identifier[2:]] = _condition(row, info)
        previous = identifier
    return found


def _is_id(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and len(value) == 66 and value.startswith("0x") and _HEX.issuperset(value[2:])
