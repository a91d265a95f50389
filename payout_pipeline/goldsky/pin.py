"""The snapshot block of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MAX_BLOCK = 2**31 - 1  # Block_height.number is a GraphQL Int


@dataclass(frozen=True)
class Pin:
    """The block that every batch of a run asks, and the deployment that answers.

    By ``number`` it is exactly ``block_number``; by ``number_gte`` the head at the time of asking, refused if that is
    behind ``block_number``. The rest is what the probe said of the head when the run was pinned.
    """

    block_number: int
    deployment: str
    kind: Literal["number", "number_gte"] = "number"
    head_number: int | None = None
    head_timestamp: int | None = None
    has_indexing_errors: bool = False

    def __post_init__(self) -> None:
        if type(self.block_number) is not int or not 0 <= self.block_number <= MAX_BLOCK:
            raise ValueError(f"a block number is a whole number from 0 to {MAX_BLOCK}, not {self.block_number!r}")
        if self.kind not in ("number", "number_gte"):
            raise ValueError(f"a pin is by number or by number_gte, not {self.kind!r}")

    @property
    def argument(self) -> str:
        """The ``block`` argument of a query."""
        return f"block: {{{self.kind}: {self.block_number}}}"
