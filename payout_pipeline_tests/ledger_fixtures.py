"""Chunks of ids for the tests of the ledger."""

from __future__ import annotations

import tempfile
from pathlib import Path

from payout_pipeline.chunks import Chunk
from payout_pipeline.ids import read_conditions


def make_chunk(ids: list[str]) -> Chunk:
    """A worker's chunk of exactly these ids; an empty one is that of a worker for whom none are left."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "ids.txt"
        path.write_text("\n".join(ids or ["0" * 64]))
        return read_conditions(path).chunk(1, 1) if ids else read_conditions(path).chunk(2, 2)
