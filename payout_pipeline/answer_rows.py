"""An answer's conditions as ledger rows, by shape: every distinct vector is converted once, the rows only point to it.

A thousand conditions have a handful of distinct vectors. So the vector of each shape is parsed, judged and written as
text once, and Arrow's ``take`` makes the columns from the shapes and one number a row. Whatever is not plain (a number
where a string belongs, a failed id) is left to the caller's row by row way; both give the same table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING, Any

from payout_pipeline.ledger import ledger_schema
from payout_pipeline.payouts import InvalidVector, Vector, parse_numerators, parse_payouts

if TYPE_CHECKING:
    import pyarrow as pa

    from payout_pipeline.goldsky.answers import RawCondition

_ABSENT = object()  # equals no shape of an answer; an empty list is one


def rows_by_shape(
    asked: Sequence[str],
    found: Mapping[str, RawCondition],
    *,
    numerators: bool,
    block_number: int,
    fetched_at: datetime,
    resolved_at: Mapping[str, int | None] | None = None,
) -> pa.Table | None:
    """The ledger rows of one batch in the order asked, or None where the answer is not plain.

    Args:
        asked: the ids of the batch.
        found: the raw conditions of those that the subgraph knows; the others are ``absent``.
        numerators: whether vectors are ``payoutNumerators`` and ``payoutDenominator`` instead of ``payouts``.
        block_number: the pinned block.
        fetched_at: when the answer came; an aware datetime.
        resolved_at: seconds since 1970 by id, where the subgraph has a resolution time.

    Returns:
        The same table as ``ledger.rows_from_answer`` gives for these conditions.
    """
    import pyarrow as pa

    lists = [c.payout_numerators if numerators else c.payouts for c in found.values()]
    denominators = [c.payout_denominator for c in found.values()] if numerators else []
    if not _is_plain(lists, denominators):
        return None
    tuples = [None if item is None else tuple(item) for item in lists]
    keys: list[Any] = list(zip(tuples, denominators, strict=True)) if numerators else tuples
    shapes: dict[Any, int] = {_ABSENT: 0}
    code_of = dict(zip(found, [shapes.setdefault(key, len(shapes)) for key in keys], strict=True))
    codes = [code_of.get(condition_id, 0) for condition_id in asked]
    columns = _columns([_judge(shape, numerators) for shape in shapes])
    index = pa.array(codes, pa.int32())
    status = columns["status"].take(index)
    count = len(codes)
    seconds: Any = pa.nulls(count, pa.timestamp("s", "UTC"))
    if resolved_at:
        known = [text == "resolved" for text in columns["status"].to_pylist()]
        seconds = pa.array(
            [resolved_at.get(i) if known[code] else None for i, code in zip(asked, codes, strict=True)], seconds.type
        )
    return pa.Table.from_arrays(
        [
            pa.array(asked, pa.string()),
            status,
            *(columns[name].take(index) for name in ("payouts", "payout_numerators", "payout_denominator", "winner")),
            seconds,
            pa.repeat(pa.scalar(block_number, pa.uint64()), count),
            pa.repeat(pa.scalar(fetched_at, pa.timestamp("ms", "UTC")), count),
            columns["error"].take(index),
        ],
        schema=ledger_schema(),
    )


def _is_plain(lists: list[Any], denominators: list[Any]) -> bool:
    """Whether all vectors are null or lists of strings: exactly ``str``, since a marked number is one too."""
    if not set(map(type, lists)) <= {list, type(None)} or not set(map(type, denominators)) <= {str, type(None)}:
        return False
    return set(map(type, chain.from_iterable([item for item in lists if item is not None]))) <= {str}


def _judge(shape: Any, numerators: bool) -> tuple[str, str | None, Vector | None, str | None]:
    """Status, text as answered, vector and error of a shape."""
    if shape is _ABSENT:
        return "absent", None, None, None
    if numerators:
        tops = None if shape[0] is None else list(shape[0])
        verdict, text = parse_numerators(tops, shape[1]), raw_text([tops, shape[1]])
    else:
        payouts = None if shape is None else list(shape)
        verdict, text = parse_payouts(payouts), raw_text(payouts)
    if isinstance(verdict, InvalidVector):
        return "invalid", text, None, verdict.reason
    return "unresolved" if verdict is None else "resolved", text, verdict, None


def _columns(judged: list[tuple[str, str | None, Vector | None, str | None]]) -> dict[str, pa.Array]:
    import pyarrow as pa

    vectors = [vector for _, _, vector, _ in judged]
    return {
        "status": pa.array([status for status, _, _, _ in judged], pa.string()),
        "payouts": pa.array([text for _, text, _, _ in judged], pa.string()),
        "payout_numerators": pa.array([None if v is None else v.numerators for v in vectors], pa.list_(pa.uint64())),
        "payout_denominator": pa.array([None if v is None else v.denominator for v in vectors], pa.uint64()),
        "winner": pa.array([None if v is None else v.winning_index for v in vectors], pa.int32()),
        "error": pa.array([error for _, _, _, error in judged], pa.string()),
    }


def raw_text(value: object) -> str | None:
    """The payouts as answered, as JSON text; None where there are none. Numbers keep the digits that were sent."""
    if value is None:
        return None
    if isinstance(value, list):
        return "[" + ",".join(raw_text(item) or "null" for item in value) + "]"
    from payout_pipeline.goldsky.answers import JSONNumber

    if isinstance(value, JSONNumber):
        return str(value)
    import orjson

    try:
        return orjson.dumps(value).decode()
    except (TypeError, ValueError):  # an integer beyond 64 bits
        import json

        return json.dumps(value)
