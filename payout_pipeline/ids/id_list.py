"""Lists of condition ids: packed, distinct, in the order of the input.

Inside the program an id is 64 lower-case hex digits without ``0x``; lists of them are kept as an Arrow array of 32 bytes
each, so that two million ids take 64 MB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from payout_pipeline.errors import InputError
from payout_pipeline.ids.file.opening import ids_of_file, opened
from payout_pipeline.ids.text import ID_BYTES, ID_DIGITS, REPAIR, RefusedTexts

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class IdList:
    """Distinct ids in the order of their first occurrence.

    ``packed`` holds 32 bytes each; ``duplicates`` counts the lines left out because their id had occurred before.
    """

    packed: pa.FixedSizeBinaryArray
    duplicates: int = 0

    @property
    def count(self) -> int:
        """Number of ids."""
        return len(self.packed)

    @property
    def sha256(self) -> str:
        """Of the packed ids in order: equal for files that differ in spelling only."""
        return hashlib.sha256(packed_bytes(self.packed)).hexdigest()

    def ids(self, start: int = 0, stop: int | None = None) -> list[str]:
        """The ids at positions ``start`` to ``stop`` (exclusive), each 64 lower-case hex digits."""
        length = None if stop is None else max(0, stop - start)
        return unpack_ids(packed_bytes(self.packed.slice(min(start, self.count), length)))


def pack_ids(ids: Iterable[str]) -> bytes:
    """32 bytes an id; ValueError unless every id is hex digits."""
    return bytes.fromhex("".join(ids))


def unpack_ids(packed: bytes | memoryview) -> list[str]:
    """The inverse of :func:`pack_ids`: 64 lower-case hex digits an id."""
    digits = packed.hex()
    return [digits[at : at + ID_DIGITS] for at in range(0, len(digits), ID_DIGITS)]


def packed_bytes(array: pa.FixedSizeBinaryArray) -> memoryview:
    """The bytes of an array of packed ids, slices included, without a copy."""
    buffer = array.buffers()[1]
    if buffer is None or not len(array):  # a view of length zero cannot be cast
        return memoryview(b"")
    return memoryview(buffer.slice(array.offset * ID_BYTES, len(array) * ID_BYTES)).cast("B")


def packed_array(packed: bytes | bytearray) -> pa.FixedSizeBinaryArray:
    """An Arrow array over packed ids, without a copy."""
    import pyarrow as pa

    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(ID_BYTES), len(packed) // ID_BYTES, [None, pa.py_buffer(packed)]
    )


def read_ids(path: Path) -> IdList:
    """Read, normalise and deduplicate the ids of ``path``.

    Read are one id a line (quoted or not, ``#`` comments), a CSV table or a Parquet file with one column of ids, a JSON array and
    JSON lines; text as UTF-8 with or without byte order mark, UTF-16 and UTF-32 with one, each also in gzip; any line end,
    blanks around ids, blank lines, ``0x``/``0X``, either case. Raises InputError where the file is missing, no regular file,
    unreadable, without ids, of an unclear form, or has entries that are no ids: they are counted and the first 20 listed.
    """
    path = Path(path)
    packed = bytearray()
    refused = RefusedTexts(str(path))
    with opened(path) as raw:
        for ids in ids_of_file(raw, path, refused):
            packed += pack_ids(ids)
    refused.raise_if_any()
    if not packed:
        raise InputError(f"{path} has no condition ids (it is empty, or holds comments only); {REPAIR}")
    return distinct(packed)


def distinct(packed: bytes | bytearray) -> IdList:
    """The first occurrence of each packed id, in order."""
    import numpy as np

    rows = np.frombuffer(packed, dtype=f"S{ID_BYTES}")
    order = np.argsort(
        rows, kind="stable"
    )  # of equal ids the first comes first; a hash table takes three times as much
    ordered = rows[order]
    repeated = order[1:][ordered[1:] == ordered[:-1]]
    if not len(repeated):
        return IdList(packed_array(packed))
    first = np.ones(len(rows), dtype=bool)
    first[repeated] = False
    return IdList(packed_array(rows[first].tobytes()), len(repeated))
