"""What the local subgraph knows: conditions, sorted by id, with the blocks at which they appeared and were resolved.

Columns are NumPy arrays and equal payout vectors are kept once, so that two million conditions fit in a few hundred
megabytes and a thousand ids are found in well under a millisecond.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from payout_pipeline.errors import InputError
from payout_pipeline.subgraph.chain import NEVER, Chain
from payout_pipeline.subgraph.decimals import integer_vector, normalise, to_text

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

NO_TIME = np.iinfo(np.int64).min
_HEX64 = re.compile(r"(?:0[xX])?([0-9a-fA-F]{64})")
_DAY_IN_BLOCKS = 43_200


@dataclass(frozen=True, slots=True)
class ConditionRow:
    """One condition of a hand-made store.

    ``payouts``: None for a condition that is never resolved, otherwise decimals as strings (an empty tuple is a list
    of no elements, which graph-node tells apart from null). Blocks are numbers; ``resolved_at`` is Unix time.
    """

    id: str
    payouts: tuple[str, ...] | None = None
    created_block: int = 1
    resolved_block: int = 2
    deleted_block: int = NEVER
    resolved_at: int | None = None


class PayoutVector:
    """One distinct payout vector in all the forms in which the schemas serve it (``*_json`` are JSON bytes)."""

    __slots__ = ("denominator", "denominator_json", "numerators", "numerators_json", "payouts", "payouts_json", "slots")

    def __init__(self, decimals: Sequence[Decimal]) -> None:
        self.payouts = tuple(decimals)
        self.slots = len(self.payouts)
        self.numerators, self.denominator = integer_vector(self.payouts) if self.payouts else ([], 0)
        self.payouts_json = orjson.dumps([to_text(value) for value in self.payouts])
        self.numerators_json = orjson.dumps([str(value) for value in self.numerators])
        self.denominator_json = orjson.dumps(str(self.denominator))


class ConditionStore:
    """All conditions, in byte order of their ids (PostgreSQL's order in a database of locale C).

    ``ids``: fixed-width UTF-8; ``vector``: index into ``vectors``, -1 for never resolved; ``created``, ``resolved``,
    ``deleted``: block numbers (:data:`~payout_pipeline.subgraph.chain.NEVER` if it does not happen); ``resolved_at``:
    Unix time or :data:`NO_TIME`.
    """

    def __init__(
        self,
        ids: Sequence[bytes],
        vector: Sequence[int],
        vectors: list[PayoutVector],
        *,
        created: Sequence[int] | npt.NDArray[np.int64],
        resolved: Sequence[int] | npt.NDArray[np.int64],
        deleted: Sequence[int] | None = None,
        resolved_at: Sequence[int] | npt.NDArray[np.int64] | None = None,
    ) -> None:
        unsorted = np.array(ids if len(ids) else [b""], dtype=np.bytes_)[: len(ids)]
        order = np.argsort(unsorted, kind="stable")
        self.ids: npt.NDArray[np.bytes_] = unsorted[order]
        if len(ids) and bool((self.ids[1:] == self.ids[:-1]).any()):
            twice = self.ids[1:][self.ids[1:] == self.ids[:-1]][0].decode()
            raise InputError(f"condition {twice} is listed more than once; every condition may stand there once")
        self.width = self.ids.dtype.itemsize
        self.vectors = vectors
        self.vector = np.array(vector, dtype=np.int32)[order]
        self.created = np.array(created, dtype=np.int32)[order]
        resolved_blocks = np.array(resolved, dtype=np.int64)[order]
        self.resolved = np.where(self.vector < 0, NEVER, resolved_blocks).astype(np.int32)
        self.deleted = np.full(len(ids), NEVER, np.int32) if deleted is None else np.array(deleted, np.int32)[order]
        times = np.full(len(ids), NO_TIME, np.int64) if resolved_at is None else np.array(resolved_at, np.int64)[order]
        self.resolved_at = times
        self.plain_ids = all(map(re.compile(rb"[0-9A-Za-z~_-]*").fullmatch, self.ids.tolist()))

    def __len__(self) -> int:
        return len(self.ids)

    # -- making one -------------------------------------------------------------------------------------------------

    @classmethod
    def from_rows(cls, rows: Iterable[ConditionRow]) -> ConditionStore:
        """From hand-made rows, ids as they are."""
        listed = list(rows)
        table = _VectorTable()
        return cls(
            [row.id.encode() for row in listed],
            [-1 if row.payouts is None else table.index_of_texts(row.payouts) for row in listed],
            table.vectors,
            created=[row.created_block for row in listed],
            resolved=[row.resolved_block for row in listed],
            deleted=[row.deleted_block for row in listed],
            resolved_at=[NO_TIME if row.resolved_at is None else row.resolved_at for row in listed],
        )

    @classmethod
    def from_files(cls, conditions: Path, unresolved: Path | None, chain: Chain) -> ConditionStore:
        """From a CSV of ``condition_id,payouts,resolved_at`` and a file of further ids that have no payouts yet.

        ``payouts`` is the JSON text of a list of decimal strings, or empty for an unresolved condition. A condition is
        resolved at the block of its ``resolved_at`` and appears a day of blocks before; without a time it is resolved
        at a block that depends on its id, always well below the head.

        Raises :class:`~payout_pipeline.errors.InputError` with file and line for what cannot be read.
        """
        table = _VectorTable()
        ids: list[bytes] = []
        vector: list[int] = []
        times: list[str] = []
        try:
            with conditions.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file)
                header = next(reader, [])
                if [name.strip() for name in header[:2]] != ["condition_id", "payouts"]:
                    raise InputError(
                        f"{conditions}:1: the header is {header}; expected condition_id,payouts,resolved_at"
                    )
                for record in reader:
                    if not record:
                        continue
                    ids.append(_subgraph_id(record[0], conditions, reader.line_num))
                    payouts = record[1] if len(record) > 1 else ""
                    vector.append(table.index_of_json(payouts, conditions, reader.line_num) if payouts else -1)
                    times.append(record[2] if len(record) > 2 else "")
            if unresolved is not None:
                known = set(ids)
                with unresolved.open(encoding="utf-8-sig") as lines:
                    for number, line in enumerate(lines, 1):
                        text = line.strip()
                        if not text or text.startswith("#"):
                            continue
                        identity = _subgraph_id(text, unresolved, number)
                        if identity not in known:
                            known.add(identity)
                            ids.append(identity)
                vector.extend([-1] * (len(ids) - len(vector)))
                times.extend([""] * (len(ids) - len(times)))
        except OSError as error:
            raise InputError(f"cannot read the local subgraph's data: {error}") from error
        resolved_at = _unix_times(times, conditions)
        known_time = resolved_at != NO_TIME
        head = chain.head()
        spread = max(1, head // 2)
        fallback = np.arange(len(ids), dtype=np.int64) * 7919 % spread
        blocks = -((chain.genesis - np.where(known_time, resolved_at, chain.genesis)) // chain.block_seconds)
        resolved = np.where(known_time, np.maximum(blocks, 1), np.maximum(1, fallback))
        return cls(
            ids,
            vector,
            table.vectors,
            created=np.maximum(0, resolved - _DAY_IN_BLOCKS),
            resolved=resolved,
            resolved_at=resolved_at,
        )

    # -- looking things up --------------------------------------------------------------------------------------------

    def find(self, wanted: Iterable[str]) -> Rows:
        """Row numbers of the ids that exist, ascending, each once."""
        keys = [key for key in {text.encode() for text in wanted} if 0 < len(key) <= self.width]
        if not keys or not len(self.ids):
            return np.empty(0, np.int64)
        keys.sort()
        probes = np.array(keys, dtype=self.ids.dtype)
        places = np.searchsorted(self.ids, probes)
        places[places == len(self.ids)] = 0
        found: Rows = places[self.ids[places] == probes].astype(np.int64)
        return found

    def place(self, identity: str, *, after: bool) -> int:
        """How many ids are smaller than this one (``after``: smaller or equal)."""
        key = identity.encode()
        longer = len(key) > self.width
        probe = np.array([key[: self.width]], dtype=self.ids.dtype)
        return int(np.searchsorted(self.ids, probe, side="right" if after or longer else "left")[0])

    def visible(self, rows: Rows, block: int) -> Mask:
        """Which of the rows exist at a block."""
        mask: Mask = (self.created[rows] <= block) & (self.deleted[rows] > block)
        return mask

    def vector_at(self, rows: Rows, block: int) -> npt.NDArray[np.int32]:
        """Index into ``vectors`` of each row at a block, -1 while it is not resolved."""
        return np.where(self.resolved[rows] <= block, self.vector[rows], -1).astype(np.int32)

    def version_start(self, rows: Rows, block: int) -> npt.NDArray[np.int32]:
        """The block at which what a row shows at ``block`` was written."""
        return np.where(self.resolved[rows] <= block, self.resolved[rows], self.created[rows]).astype(np.int32)

    def time_at(self, row: int, block: int) -> int | None:
        """Unix time of a row's resolution as seen at a block."""
        if self.resolved[row] > block or self.resolved_at[row] == NO_TIME:
            return None
        return int(self.resolved_at[row])


def position_ids(identity: str) -> list[int]:
    """Two numbers of up to 256 bits that stand for the ERC-1155 position ids of a condition."""
    return [int(hashlib.sha256(f"{identity}/{outcome}".encode()).hexdigest(), 16) for outcome in (0, 1)]


class _VectorTable:
    """Distinct payout vectors in order of appearance."""

    def __init__(self) -> None:
        self.vectors: list[PayoutVector] = []
        self._by_text: dict[str | tuple[str, ...], int] = {}

    def index_of_texts(self, texts: tuple[str, ...]) -> int:
        index = self._by_text.get(texts)
        if index is None:
            decimals = [normalise(text) for text in texts]
            if None in decimals:
                raise InputError(f"payouts {list(texts)} are not all decimal numbers")
            index = self._by_text[texts] = len(self.vectors)
            self.vectors.append(PayoutVector([value for value in decimals if value is not None]))
        return index

    def index_of_json(self, text: str, path: Path, line: int) -> int:
        index = self._by_text.get(text)
        if index is None:
            try:
                value: Any = orjson.loads(text)
            except orjson.JSONDecodeError as error:
                raise InputError(f"{path}:{line}: payouts are not JSON ({error}): {text[:80]!r}") from error
            if value is None:
                return -1
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise InputError(f"{path}:{line}: payouts are not a list of decimal strings: {text[:80]!r}")
            try:
                index = self._by_text[text] = self.index_of_texts(tuple(value))
            except InputError as error:
                raise InputError(f"{path}:{line}: {error}") from error
        return index


def _subgraph_id(text: str, path: Path, line: int) -> bytes:
    match = _HEX64.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{path}:{line}: not a condition id (64 hex digits): {text[:80]!r}")
    return b"0x" + match[1].lower().encode()


def _unix_times(texts: list[str], path: Path) -> npt.NDArray[np.int64]:
    """ISO 8601 texts in UTC → Unix seconds; the empty text → :data:`NO_TIME`."""
    plain = [text.strip().removesuffix("Z").removesuffix("+00:00").replace(" ", "T") or "NaT" for text in texts]
    try:
        stamps = np.array(plain if plain else ["NaT"], dtype="datetime64[s]")[: len(plain)]
    except ValueError as error:
        raise InputError(f"{path}: a resolved_at is not an ISO 8601 time in UTC: {error}") from error
    return stamps.astype(np.int64)
