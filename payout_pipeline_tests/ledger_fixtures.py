"""Chunks of ids and rows for the tests of the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa

from payout_pipeline.ids.chunks import Chunk
from payout_pipeline.ids.id_list import IdList, pack_ids, packed_array
from payout_pipeline.ledger import ledger_schema
from payout_pipeline.payouts import InvalidVector, Vector


def make_chunk(ids: list[str]) -> Chunk:
    """A worker's chunk of exactly these ids."""
    return Chunk(IdList(packed_array(pack_ids(ids))), 0, len(ids))


def make_rows(
    asked: Sequence[str],
    answered: Mapping[str, Vector | InvalidVector | None],
    *,
    raw: Mapping[str, str | None],
    block_number: int,
    fetched_at: datetime,
    failed: Mapping[str, str] | None = None,
) -> pa.Table:
    """Ledger rows of the ids asked; those that are neither answered nor failed are absent."""
    rows: list[dict[str, Any]] = []
    for condition_id in asked:
        row: dict[str, Any] = {"condition_id": condition_id, "status": "absent"}
        if failed and condition_id in failed:
            row |= {"status": "failed", "error": failed[condition_id]}
        elif condition_id in answered:
            vector = answered[condition_id]
            row |= {"status": "unresolved", "payouts": raw.get(condition_id)}
            if isinstance(vector, InvalidVector):
                row |= {"status": "invalid", "error": vector.reason}
            elif vector is not None:
                row |= {
                    "status": "resolved",
                    "payout_numerators": vector.numerators,
                    "payout_denominator": vector.denominator,
                    "winning_index": vector.winning_index,
                }
        rows.append(row | {"block_number": block_number, "fetched_at": fetched_at})
    return pa.Table.from_pylist(rows, schema=ledger_schema())
