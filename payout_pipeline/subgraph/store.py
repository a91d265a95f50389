"""What the local subgraph knows: conditions by id, with the blocks at which they appeared and were resolved."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path

import orjson

from payout_pipeline.errors import InputError
from payout_pipeline.subgraph.chain import Chain
from payout_pipeline.subgraph.decimals import normalised

_HEX64 = re.compile(r"(?:0[xX])?([0-9a-fA-F]{64})")


@dataclass(slots=True)
class ConditionRow:
    """One condition.

    ``payouts``: None for a condition that is never resolved, otherwise decimals as strings (an empty tuple is a list
    of no elements, which graph-node tells apart from null). Blocks are numbers.
    """

    id: str
    payouts: tuple[str, ...] | None = None
    created_block: int = 1
    resolved_block: int = 2


class ConditionStore:
    """All conditions: ``rows`` by id, ``ids`` in byte order (PostgreSQL's order in a database of locale C)."""

    def __init__(self, rows: dict[str, ConditionRow]) -> None:
        self.rows = rows
        self.ids = sorted(rows)

    @classmethod
    def from_rows(cls, rows: Iterable[ConditionRow]) -> ConditionStore:
        """From rows made by hand, ids as they are."""
        return cls(
            {row.id: row if row.payouts is None else replace(row, payouts=_decimals(row.payouts)) for row in rows}
        )

    @classmethod
    def from_files(cls, conditions: Path, unresolved: Path | None, chain: Chain) -> ConditionStore:
        """From a CSV of ``condition_id,payouts,resolved_at`` and a file of further ids that have no payouts yet.

        ``payouts`` is the JSON text of a list of decimal strings, or empty for an unresolved condition. A condition is
        resolved at the block of its ``resolved_at``, without a time at block 2.

        Raises :class:`~payout_pipeline.errors.InputError` with file and line for what cannot be read.
        """
        rows: dict[str, ConditionRow] = {}
        place = f"{conditions}:1"
        try:
            for line, record in _records(conditions):
                place = f"{conditions}:{line}"
                row = _row(record, chain)
                if rows.setdefault(row.id, row) is not row:
                    raise ValueError(f"condition {row.id} is listed more than once")
            lines = unresolved.read_text("utf-8-sig").split("\n") if unresolved else []
            for number, text in enumerate(lines, 1):
                place = f"{unresolved}:{number}"
                if text.strip() and not text.strip().startswith("#"):
                    identity = _subgraph_id(text)
                    rows.setdefault(identity, ConditionRow(identity))
        except OSError as error:
            raise InputError(f"cannot read the local subgraph's data: {error}") from error
        except ValueError as error:
            raise InputError(f"{place}: {error}") from error
        return cls(rows)


def _records(path: Path) -> Iterator[tuple[int, dict[str, str | None]]]:
    """Line number and fields of each record."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        header = [name.strip() for name in reader.fieldnames or ()]
        if header[:2] != ["condition_id", "payouts"]:
            raise ValueError(f"the header is {header}; expected condition_id,payouts,resolved_at")
        reader.fieldnames = header
        for record in reader:
            yield reader.line_num, record


def _row(record: dict[str, str | None], chain: Chain) -> ConditionRow:
    when = (record.get("resolved_at") or "").strip().removesuffix("Z").removesuffix("+00:00")
    row = ConditionRow(_subgraph_id(record["condition_id"] or ""), _payouts(record["payouts"] or ""))
    if when:
        try:
            resolved_at = datetime.fromisoformat(when).replace(tzinfo=timezone.utc)
        except ValueError as error:
            raise ValueError(f"resolved_at is not an ISO 8601 time in UTC: {error}") from error
        row.resolved_block = max(row.resolved_block, chain.number_at(int(resolved_at.timestamp())))
    return row


def _subgraph_id(text: str) -> str:
    match = _HEX64.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"not a condition id (64 hex digits): {text[:80]!r}")
    return f"0x{match[1].lower()}"


@lru_cache(maxsize=65_536)  # there are few distinct vectors, and equal ones are kept once
def _payouts(text: str) -> tuple[str, ...] | None:
    value = orjson.loads(text) if text else None
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"payouts are not a list of decimal strings: {text[:80]!r}")
    return _decimals(tuple(value))


def _decimals(texts: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return tuple(map(normalised, texts))
    except ValueError as error:
        raise ValueError(f"payouts {list(texts)} are not all decimal numbers: {error}") from error
