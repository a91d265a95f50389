"""What the local subgraph knows: conditions by id, with the blocks at which they appeared and were resolved."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path

import orjson

from payout_pipeline.errors import InputError
from payout_pipeline.subgraph.chain import NEVER, Chain
from payout_pipeline.subgraph.decimals import normalise, to_text

_HEX64 = re.compile(r"(?:0[xX])?([0-9a-fA-F]{64})")
_DAY_IN_BLOCKS = 43_200


@dataclass(slots=True)
class ConditionRow:
    """One condition.

    ``payouts``: None for a condition that is never resolved, otherwise decimals as strings (an empty tuple is a list
    of no elements, which graph-node tells apart from null). Blocks are numbers; ``resolved_at`` is Unix time.
    """

    id: str
    payouts: tuple[str, ...] | None = None
    created_block: int = 1
    resolved_block: int = 2
    deleted_block: int = NEVER
    resolved_at: int | None = None


class ConditionStore:
    """All conditions: ``rows`` by id, ``ids`` in byte order (PostgreSQL's order in a database of locale C)."""

    def __init__(self, rows: dict[str, ConditionRow]) -> None:
        self.rows = rows
        self.ids = sorted(rows)

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def from_rows(cls, rows: Iterable[ConditionRow]) -> ConditionStore:
        """From rows made by hand, ids as they are."""
        return cls(
            {row.id: row if row.payouts is None else replace(row, payouts=_normalised(row.payouts)) for row in rows}
        )

    @classmethod
    def from_files(cls, conditions: Path, unresolved: Path | None, chain: Chain) -> ConditionStore:
        """From a CSV of ``condition_id,payouts,resolved_at`` and a file of further ids that have no payouts yet.

        ``payouts`` is the JSON text of a list of decimal strings, or empty for an unresolved condition. A condition is
        resolved at the block of its ``resolved_at`` and appears a day of blocks before; without a time it is resolved
        at a block that depends on its place in the file, always well below the head.

        Raises :class:`~payout_pipeline.errors.InputError` with file and line for what cannot be read.
        """
        rows: dict[str, ConditionRow] = {}
        spread = max(1, chain.head() // 2)
        place = f"{conditions}"
        try:
            with conditions.open(encoding="utf-8-sig", newline="") as file:
                for number, record in enumerate(reader := csv.reader(file)):
                    place = f"{conditions}:{reader.line_num}"
                    if number == 0:
                        _check_header(record)
                    elif record:
                        row = _row(record, chain, number * 7919 % spread)
                        if rows.setdefault(row.id, row) is not row:
                            raise ValueError(f"condition {row.id} is listed more than once")
            for number, line in enumerate(
                [] if unresolved is None else unresolved.read_text("utf-8-sig").split("\n"), 1
            ):
                place = f"{unresolved}:{number}"
                if line.strip() and not line.strip().startswith("#"):
                    identity = _subgraph_id(line)
                    rows.setdefault(identity, ConditionRow(identity))
        except OSError as error:
            raise InputError(f"cannot read the local subgraph's data: {error}") from error
        except ValueError as error:
            raise InputError(f"{place}: {error}") from error
        return cls(rows)


def _check_header(header: Sequence[str]) -> None:
    if [name.strip() for name in header[:2]] != ["condition_id", "payouts"]:
        raise ValueError(f"the header is {header}; expected condition_id,payouts,resolved_at")


def _row(record: Sequence[str], chain: Chain, fallback: int) -> ConditionRow:
    identity, payouts, when = (*record, "", "")[:3]
    resolved_at = _unix_time(when)
    block = max(1, fallback if resolved_at is None else chain.number_at(resolved_at))
    created = max(0, block - _DAY_IN_BLOCKS)
    return ConditionRow(_subgraph_id(identity), _parsed(payouts), created, block, resolved_at=resolved_at)


def _subgraph_id(text: str) -> str:
    match = _HEX64.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"not a condition id (64 hex digits): {text[:80]!r}")
    return f"0x{match[1].lower()}"


@lru_cache(maxsize=65_536)  # there are few distinct vectors, and equal ones are kept once
def _parsed(text: str) -> tuple[str, ...] | None:
    value = orjson.loads(text) if text else None
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"payouts are not a list of decimal strings: {text[:80]!r}")
    return _normalised(tuple(value))


def _normalised(texts: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return tuple(to_text(normalise(text)) for text in texts)
    except ValueError as error:
        raise ValueError(f"payouts {list(texts)} are not all decimal numbers: {error}") from error


def _unix_time(text: str) -> int | None:
    plain = text.strip().removesuffix("Z").removesuffix("+00:00")
    try:
        return int(datetime.fromisoformat(plain).replace(tzinfo=timezone.utc).timestamp()) if plain else None
    except ValueError as error:
        raise ValueError(f"resolved_at is not an ISO 8601 time in UTC: {error}") from error
