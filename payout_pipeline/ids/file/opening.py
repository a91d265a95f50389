"""Opening the id file: what it is, how it is compressed and encoded, and every way in which it cannot be read."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from payout_pipeline.errors import InputError
from payout_pipeline.ids.file.characters import Characters
from payout_pipeline.ids.file.json_values import ids_of_json_array, ids_of_json_lines
from payout_pipeline.ids.file.lines import ids_of_lines
from payout_pipeline.ids.file.parquet import PARQUET_MAGIC, ids_of_parquet
from payout_pipeline.ids.file.table import header_of, ids_of_table
from payout_pipeline.ids.text import REPAIR, RefusedTexts

# The longer mark first, since UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_JSON_BLANKS = " \t"
_OTHER_FORMATS = (
    (b"PK\x03\x04", "a zip archive or a workbook"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstandard"),
    (PARQUET_MAGIC, "Parquet inside gzip"),
)
_NO_FILES = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def ids_of_file(raw: io.BufferedReader, path: Path, refused: RefusedTexts) -> Iterator[list[str]]:
    """The ids of an opened file (64 hex digits, either case), a list at a time; what is none goes to ``refused``.

    Raises InputError where the file is of another format, and what :func:`opened` translates.
    """
    if raw.peek(4).startswith(PARQUET_MAGIC):
        return ids_of_parquet(raw, str(path), refused)
    text = Characters(_decoded(raw, path).read, str(path))
    if text.first.lstrip(_JSON_BLANKS).startswith("["):
        return ids_of_json_array(text, refused)
    if text.first.lstrip(_JSON_BLANKS).startswith("{"):
        return ids_of_json_lines(text, refused)
    header = header_of(text)
    if header is None or len(header.columns) == 1:
        return ids_of_lines(text, refused, header=0 if header is None else text.number)
    return ids_of_table(text, header, refused)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """The bytes of the file; every way in which it cannot be read is an InputError, while it is read, too."""
    try:
        mode = path.stat().st_mode
    except ValueError as error:  # a zero byte in the name
        raise InputError(f"{str(path)[:200]!a} is no file name; {REPAIR}") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    for is_kind, kind in _NO_FILES:
        if is_kind(mode):  # a pipe would be waited for, and can be read only once
            raise InputError(f"{path} is {kind}, no regular file; {REPAIR}")
    try:
        with path.open("rb") as raw:
            yield raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is a damaged or cut-off gzip file ({error}); make it again") from error
    except UnicodeError as error:
        raise InputError(
            f"{path} begins with a UTF-16 or UTF-32 byte order mark and is not valid as such ({error}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path} does not exist (looked from {Path.cwd()}); {REPAIR}")
    return InputError(f"{path} cannot be read: {error.strerror or error}; {REPAIR}")


def _decoded(raw: io.BufferedReader, path: Path) -> IO[str]:
    stream = raw
    if stream.peek(8).startswith(b"\x1f\x8b"):
        stream = io.BufferedReader(cast("io.RawIOBase", gzip.GzipFile(fileobj=raw)))
    head = stream.peek(8)[:8]
    for magic, name in _OTHER_FORMATS:
        if head.startswith(magic):
            raise InputError(f"{path} is {name}; unpack it (plain text and gzip are read), or {REPAIR}")
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return io.TextIOWrapper(stream, encoding=encoding)
    # A comment may hold any bytes; elsewhere they are refused with the line.
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape")
