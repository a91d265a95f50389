"""What ClickHouse's column types can hold: integers exactly, times, wrapped or not."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_UINT64 = 2**64 - 1
_WRAPPED = re.compile(r"(?:LowCardinality|Nullable)\((.*)\)\Z", re.DOTALL)
_INTEGER = re.compile(r"(U?)Int(8|16|32|64|128|256)\Z")
_DATETIME = re.compile(r"DateTime(?:\('[^']*'\))?\Z|DateTime64\(\d(?:,\s*'[^']*')?\)\Z")
_FLOATS = ("Float32", "Float64")


def unwrap(type_name: str) -> str:
    """``type_name`` without ``Nullable`` and ``LowCardinality``."""
    while match := _WRAPPED.match(type_name):
        type_name = match[1]
    return type_name


def is_nullable(type_name: str) -> bool:
    """Whether the column can hold NULL."""
    return type_name.startswith(("Nullable(", "LowCardinality(Nullable("))


@dataclass(frozen=True, slots=True)
class Integers:
    """The whole numbers that a column holds: ``low`` to ``high``."""

    low: int
    high: int


def integers(type_name: str) -> Integers | None:
    """The range of an integer type; None for any other type."""
    match = _INTEGER.match(unwrap(type_name))
    if match is None:
        return None
    bits = int(match[2])
    return Integers(0, 2**bits - 1) if match[1] else Integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def is_float(type_name: str) -> bool:
    """Whether the column holds floats."""
    return unwrap(type_name) in _FLOATS


def is_time(type_name: str) -> bool:
    """Whether the column is a DateTime or DateTime64."""
    return _DATETIME.match(unwrap(type_name)) is not None


def element_type(type_name: str) -> str:
    """The type of an array's elements, empty where it is no array."""
    return type_name[len("Array(") : -1] if type_name.startswith("Array(") and type_name.endswith(")") else ""
