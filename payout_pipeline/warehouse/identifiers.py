"""Names of databases, tables and views that come from the environment.

They cannot be bound parameters everywhere in SQL, so they are allow-listed here and quoted anyway. Light on purpose:
the settings are validated with it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PART = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z", re.ASCII)
_MAX_PART = 200  # a directory and a file name are made of each; file systems end at 255 bytes


def quote_identifier(part: str) -> str:
    """``part`` in backquotes; raises ValueError unless it is a plain identifier (letters, digits, ``_``; ASCII)."""
    if not isinstance(part, str) or not _PART.match(part) or len(part) > _MAX_PART:
        raise ValueError(f"{part!r} is no plain identifier: letters, digits and _ only, not starting with a digit")
    return f"`{part}`"


@dataclass(frozen=True, slots=True)
class QualifiedName:
    """``database.table``, each part a plain identifier."""

    database: str
    name: str

    def __post_init__(self) -> None:
        quote_identifier(self.database)
        quote_identifier(self.name)

    @classmethod
    def parse(cls, text: object) -> QualifiedName:
        """Read ``database.table``; a bare ``table`` is one of the database ``default``. Raises ValueError otherwise."""
        if not isinstance(text, str):
            raise ValueError(f"expected database.table, got {type(text).__name__}")
        parts = text.strip().split(".")
        if len(parts) == 1:
            parts = ["default", *parts]
        if len(parts) != 2:
            raise ValueError(f"expected database.table, got {text!r}")
        return cls(parts[0], parts[1])

    @property
    def sql(self) -> str:
        """Quoted, for use in a statement."""
        return f"{quote_identifier(self.database)}.{quote_identifier(self.name)}"

    def __str__(self) -> str:
        return f"{self.database}.{self.name}"
