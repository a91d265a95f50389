"""Reading condition ids: a file, one id a line, becomes distinct ids in one normal form.

Inside the program an id is 64 lower-case hex digits without ``0x``; lists of them are kept as an Arrow array of 32 bytes
each, so that two million ids take 64 MB.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import hashlib
import io
import re
import stat
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from payout_pipeline.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

ID_BYTES = 32
ID_DIGITS = 64
_SHOWN_LINES = 20
_READ_CHARACTERS = 1 << 20
_LONGEST_LINE = 1 << 20
_EXCERPT = 60
_BLANKS = " \t\x0b\x0c"
_LINE = re.compile(r"(?:0[xX])?([0-9a-fA-F]{64})(?:[ \t]+#.*)?")
_REPAIR = "set CONDITION_IDS_FILE to a text file with one condition id (64 hex digits, 0x allowed) a line"
# The longer mark first, since UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHER_FORMATS = (
    (b"PK\x03\x04", "a zip archive"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstandard"),
    (b"PAR1", "a Parquet file"),
)
_NO_FILES = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


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


def unpack_ids(packed: bytes) -> list[str]:
    """The inverse of :func:`pack_ids`: 64 lower-case hex digits an id."""
    digits = packed.hex()
    return [digits[at : at + ID_DIGITS] for at in range(0, len(digits), ID_DIGITS)]


def packed_bytes(array: pa.FixedSizeBinaryArray) -> bytes:
    """The bytes of an array of packed ids, slices included."""
    buffer = array.buffers()[1]
    if buffer is None:
        return b""
    return bytes(buffer.slice(array.offset * ID_BYTES, len(array) * ID_BYTES))


def packed_array(packed: bytes | bytearray) -> pa.FixedSizeBinaryArray:
    """An Arrow array over packed ids, without a copy."""
    import pyarrow as pa

    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(ID_BYTES), len(packed) // ID_BYTES, [None, pa.py_buffer(packed)]
    )


def read_ids(path: Path) -> IdList:
    """Read, normalise and deduplicate the ids of ``path``.

    Read are UTF-8 with or without byte order mark, UTF-16 and UTF-32 with one, each also in gzip; any line end, blanks
    around ids, blank lines, ``#`` comments, ``0x``/``0X``, either case. Raises InputError where the file is missing, no
    regular file, unreadable, without ids, or has lines that are no ids: they are counted and the first 20 listed.
    """
    path = Path(path)
    packed = bytearray()
    refused = _RefusedLines(path)
    for number, lines in _numbered_blocks(path):
        found: list[str] = []
        for offset, line in enumerate(lines):
            text = line.strip(_BLANKS)
            if match := _LINE.fullmatch(text):
                found.append(match[1])
            elif text and not text.startswith("#"):
                refused.add(number + offset, text)
        packed += pack_ids(found)
    refused.raise_if_any()
    if not packed:
        raise InputError(f"{path} has no condition ids (it is empty, or holds comments only); {_REPAIR}")
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


class _RefusedLines:
    """Counts the lines that are no ids and keeps the first ones for the message."""

    def __init__(self, path: Path) -> None:
        self._path, self._count = path, 0
        self._shown: list[str] = []

    def add(self, number: int, text: str) -> None:
        self._count += 1
        if len(self._shown) < _SHOWN_LINES:
            self._shown.append(f"  line {number}: {safe_excerpt(text)} ({_why_no_id(text)})")

    def raise_if_any(self) -> None:
        if not self._count:
            return
        lines = "1 line is" if self._count == 1 else f"{self._count:,} lines are"
        more = f"\n  … and {self._count - len(self._shown):,} more" if self._count > len(self._shown) else ""
        listed = "\n".join(self._shown)
        raise InputError(
            f"{self._path}: {lines} no condition id; nothing was asked.\n{listed}{more}\n"
            f"Correct or remove them, or {_REPAIR}."
        )


def safe_excerpt(text: str) -> str:
    """The beginning of a line, quoted, with everything but printable ASCII escaped."""
    shown = ascii(text[:_EXCERPT].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))
    return f"{shown} …" if len(text) > _EXCERPT else shown


def _why_no_id(text: str) -> str:
    """What is wrong with a line, in a few words."""
    if "\x00" in text:
        return "zero bytes: binary, or UTF-16 without a byte order mark"
    body = text[2:] if text[:2] in ("0x", "0X") else text
    if re.fullmatch(r"[0-9a-fA-F]*", body[:200]):
        return f"{len(body):,} hex digits instead of {ID_DIGITS}"
    if not text.isascii():
        return "characters that are no ASCII hex digits"
    if body[:1] in ("{", "[", '"'):
        return "looks like JSON or a quoted value"
    if re.search(r"[,;\t]", body):
        return "looks like a table; one id a line is expected"
    return "not hex digits only"


def _numbered_blocks(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Whole lines a block at a time, each block with the number of its first line."""
    number, rest = 1, ""
    with _opened(path) as text:
        while block := text.read(_READ_CHARACTERS):
            lines = (rest + block).split("\n")
            rest = lines.pop()
            yield number, lines
            number += len(lines)
            if len(rest) > _LONGEST_LINE:
                raise InputError(
                    f"{path}: line {number} is longer than {_LONGEST_LINE:,} characters and begins with "
                    f"{safe_excerpt(rest)}; this is no list of ids; {_REPAIR}"
                )
    yield number, [rest]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """The file as text with ``\\n`` as its line end; every way in which it cannot be read is an InputError."""
    try:
        mode = path.stat().st_mode
        for is_kind, kind in _NO_FILES:
            if is_kind(mode):  # a pipe would be waited for, and can be read only once
                raise InputError(f"{path} is {kind}, no regular file; {_REPAIR}")
        with path.open("rb") as raw:
            yield _decoded(raw, path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist (looked from {Path.cwd()}); {_REPAIR}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is a damaged or cut-off gzip file ({error}); make it again") from error
    except UnicodeError as error:
        raise InputError(
            f"{path} begins with a UTF-16 or UTF-32 byte order mark and is not valid as such ({error}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; {_REPAIR}") from error
    except ValueError as error:  # a zero byte in the name
        raise InputError(f"{str(path)[:200]!a} is no file name; {_REPAIR}") from error


def _decoded(raw: io.BufferedReader, path: Path) -> IO[str]:
    stream = raw
    if stream.peek(8).startswith(b"\x1f\x8b"):
        stream = io.BufferedReader(cast("io.RawIOBase", gzip.GzipFile(fileobj=raw)))
    head = stream.peek(8)[:8]
    for magic, name in _OTHER_FORMATS:
        if head.startswith(magic):
            raise InputError(f"{path} is {name}; unpack it (plain text and gzip are read), or {_REPAIR}")
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return io.TextIOWrapper(stream, encoding=encoding)
    # A comment may hold any bytes; elsewhere they are refused with the line.
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape")
