"""The blocks of the local subgraph: numbers, times and hashes, all computed, none stored."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field

POLYGON_GENESIS = 1_590_824_836
"""Unix time of Polygon's first block."""
BLOCK_SECONDS = 2


@dataclass(slots=True)
class Chain:
    """Blocks 0 to the head.

    ``head_number`` is the newest block at ``started_at`` (monotonic seconds). With ``advancing`` a new block arrives
    every two seconds; otherwise the head does not move. ``genesis`` is the Unix time of block 0.
    """

    head_number: int
    genesis: int = POLYGON_GENESIS
    advancing: bool = False
    started_at: float = field(default_factory=time.monotonic)

    @classmethod
    def until_now(cls, *, advancing: bool = False) -> Chain:
        """A chain as long as Polygon's would be with a block every two seconds."""
        return cls(head_number=(int(time.time()) - POLYGON_GENESIS) // BLOCK_SECONDS, advancing=advancing)

    def head(self) -> int:
        """Number of the newest block."""
        if not self.advancing:
            return self.head_number
        return self.head_number + int((time.monotonic() - self.started_at) / BLOCK_SECONDS)

    def timestamp(self, number: int) -> int:
        """Unix time in seconds of a block."""
        return self.genesis + number * BLOCK_SECONDS

    def number_at(self, timestamp: int) -> int:
        """The first block that is not older than a Unix time."""
        return max(0, -((self.genesis - timestamp) // BLOCK_SECONDS))

    @staticmethod
    def block_hash(number: int) -> str:
        """64 hex digits with ``0x``."""
        return f"0x{hashlib.sha256(b'block %d' % number).hexdigest()}"
