"""What the local subgraph knows: conditions by id, with the blocks at which they appeared and were resolved."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Iterator
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

    def __init__(self, rows: Iterable[ConditionRow]) -> None:
        self.rows: dict[str, ConditionRow] = {}
        for row in rows:
            if row.id in self.rows:
                raise InputError(f"condition {row.id} is listed more than once; every condition may stand there once")
            self.rows[row.id] = row
        self.ids = sorted(self.rows)

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def from_rows(cls, rows: Iterable[ConditionRow]) -> ConditionStore:
        """From rows made by hand, ids as they are. Raises :class:`~payout_pipeline.errors.InputError`."""
        return cls(row if row.payouts is None else replace(row, payouts=_normalised(row.payouts)) for row in rows)

    @classmethod
    def from_files(cls, conditions: Path, unresolved: Path | None, chain: Chain) -> ConditionStore:
        """From a CSV of ``condition_id,payouts,resolved_at`` and a file of further ids that have no payouts yet.

        ``payouts`` is the JSON text of a list of decimal strings, or empty for an unresolved condition. A condition is
        resolved at the block of its ``resolved_at`` and appears a day of blocks before; without a time it is resolved
        at a block that depends on its place in the file, always well below the head.

        Raises :class:`~payout_pipeline.errors.InputError` with file and line for what cannot be read.
        """
        spread = max(1, chain.head() // 2)
        rows: dict[str, ConditionRow] = {}
        try:
            for where, identity, payouts, resolved_at in _read(conditions):
                if identity in rows:
                    raise InputError(f"{where}: condition {identity} is listed more than once")
                fallback = len(rows) * 7919 % spread
                block = max(1, fallback if resolved_at is None else chain.number_at(resolved_at))
                created = max(0, block - _DAY_IN_BLOCKS)
                rows[identity] = ConditionRow(identity, payouts, created, block, resolved_at=resolved_at)
            for identity in _listed(unresolved) if unresolved is not None else ():
                rows.setdefault(identity, ConditionRow(identity))
        except OSError as error:
            raise InputError(f"cannot read the local subgraph's data: {error}") from error
        return cls(rows.values())


def position_ids(identity: str) -> list[int]:
    """Two numbers of up to 256 bits that stand for the ERC-1155 position ids of a condition."""
    return [int(hashlib.sha256(f"{identity}/{outcome}".encode()).hexdigest(), 16) for outcome in (0, 1)]


def _read(path: Path) -> Iterator[tuple[str, str, tuple[str, ...] | None, int | None]]:
    """(place for messages, id, payouts, Unix time of the resolution) of each line of the CSV."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if [name.strip() for name in header[:2]] != ["condition_id", "payouts"]:
            raise InputError(f"{path}:1: the header is {header}; expected condition_id,payouts,resolved_at")
        for record in reader:
            if not record:
                continue
            where = f"{path}:{reader.line_num}"
            identity, payouts, when = (*record, "", "")[:3]
            yield where, _subgraph_id(identity, where), _payouts(payouts, where), _unix_time(when, where)


def _listed(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if (text := line.strip()) and not text.startswith("#"):
                yield _subgraph_id(text, f"{path}:{number}")


def _subgraph_id(text: str, where: str) -> str:
    match = _HEX64.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{where}: not a condition id (64 hex digits): {text[:80]!r}")
    return f"0x{match[1].lower()}"


def _payouts(text: str, where: str) -> tuple[str, ...] | None:
    if not text:
        return None
    try:
        return _parsed(text)
    except (InputError, orjson.JSONDecodeError) as error:
        raise InputError(f"{where}: {error}") from error


@lru_cache(maxsize=65_536)  # there are few distinct vectors, and equal ones are kept once
def _parsed(text: str) -> tuple[str, ...] | None:
    value = orjson.loads(text)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(f"payouts are not a list of decimal strings: {text[:80]!r}")
    return _normalised(tuple(value))


def _normalised(texts: tuple[str, ...]) -> tuple[str, ...]:
    decimals = [value for value in map(normalise, texts) if value is not None]
    if len(decimals) != len(texts):
        raise InputError(f"payouts {list(texts)} are not all decimal numbers")
    return tuple(map(to_text, decimals))


def _unix_time(text: str, where: str) -> int | None:
    """ISO 8601 in UTC, with or without ``Z``."""
    if not (plain := text.strip().removesuffix("Z").removesuffix("+00:00")):
        return None
    try:
        when = datetime.fromisoformat(plain)
        if when.tzinfo is not None:
            raise ValueError(f"{text!r} is not in UTC")
    except ValueError as error:
        raise InputError(f"{where}: resolved_at is not an ISO 8601 time in UTC: {error}") from error
    return int(when.replace(tzinfo=timezone.utc).timestamp())
