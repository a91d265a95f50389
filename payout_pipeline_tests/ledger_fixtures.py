"""Chunks of ids for the tests of the ledger."""

from __future__ import annotations

from payout_pipeline.chunks import Chunk
from payout_pipeline.ids import IdList, pack_ids, packed_array


def make_chunk(ids: list[str]) -> Chunk:
    """A worker's chunk of exactly these ids."""
    return Chunk(IdList(packed_array(pack_ids(ids))), 0, len(ids))
