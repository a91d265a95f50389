"""The block chain that the local subgraph pretends to follow: numbers, times and hashes, all computed.

A block's time is linear in its number and its hash carries the number, so nothing has to be stored and both
directions can be looked up.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field

POLYGON_GENESIS = 1_590_824_836
"""Unix time of Polygon's first block."""

NEVER = 2**31 - 1
"""The block number of something that does not happen; greater than every real one."""


@dataclass(slots=True)
class Chain:
    """Blocks 0 to the head.

    ``head_number`` is the newest block at ``started_at`` (monotonic seconds). With ``advancing`` a new block arrives
    every ``block_seconds``; otherwise the head stands still. ``genesis`` is the Unix time of block 0.
    """

    head_number: int
    genesis: int = POLYGON_GENESIS
    block_seconds: int = 2
    advancing: bool = False
    started_at: float = field(default_factory=time.monotonic)

    @classmethod
    def until_now(cls, *, advancing: bool = False) -> Chain:
        """A chain as long as Polygon's would be with a block every two seconds; the head is not older than that."""
        return cls(head_number=(int(time.time()) - POLYGON_GENESIS) // 2, advancing=advancing)

    def head(self) -> int:
        """Number of the newest block."""
        if not self.advancing:
            return self.head_number
        return self.head_number + int((time.monotonic() - self.started_at) / self.block_seconds)

    def timestamp(self, number: int) -> int:
        """Unix time in seconds of a block."""
        return self.genesis + number * self.block_seconds

    def number_at(self, timestamp: int) -> int:
        """The first block that is not older than a Unix time."""
        return max(0, -((self.genesis - timestamp) // self.block_seconds))

    @staticmethod
    def block_hash(number: int) -> str:
        """64 hex digits with ``0x``: a digest of the number, then the number itself."""
        digest = hashlib.sha256(b"block %d" % number).hexdigest()
        return f"0x{digest[:48]}{number:016x}"

    def number_of(self, block_hash: str) -> int | None:
        """The number of the block with this hash (``0x`` optional, any case); None if there is no such block."""
        digits = block_hash.lower().removeprefix("0x")
        if len(digits) != 64:
            return None
        try:
            number = int(digits[48:], 16)
        except ValueError:
            return None
        return number if self.block_hash(number) == f"0x{digits}" else None
