"""The input: a file of condition ids, read once, normalised, and cut into one contiguous chunk a worker.

Inside the program an id is 64 lower-case hex digits without ``0x``. The normalised ids go to an anonymous temporary
file of 32 bytes each and are read back a batch at a time, so that memory does not grow with the file.
"""

from __future__ import annotations

import binascii
import codecs
import contextlib
import gzip
import hashlib
import io
import os
import re
import tempfile
import zlib
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from payout_pipeline.errors import ConfigurationError, InputError, StorageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ID_BYTES = 32
ID_DIGITS = 64
MAX_WORKERS = 99
SHOWN_LINES = 20
_READ_BYTES = 1 << 20
_SPOOL_BLOCK_IDS = 1 << 15
_LONGEST_LINE = 1 << 20
_DEDUPLICATE_AT_ONCE = 1 << 17
_EXCERPT = 60

_LINE = re.compile(rb"(?:0[xX])?([0-9a-fA-F]{64})(?:[ \t]+#.*)?", re.DOTALL)
_BLANKS = b" \t\r\n\x0b\x0c"
_REPAIR = "set CONDITION_IDS_FILE to a text file with one condition id (64 hex digits, 0x allowed) a line"
# Text encodings that announce themselves; the longer mark first, since UTF-32's begins with UTF-16's.
_MARKS: tuple[tuple[bytes, str], ...] = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHER_FORMATS: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip archive"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstandard"),
    (b"PAR1", "a Parquet file"),
)
_PARTITION_KEY = re.compile(r"worker_(\d{1,2})_of_(\d{1,2})")


@dataclass(frozen=True, slots=True)
class Batch:
    """Positions ``start`` (inclusive) to ``stop`` (exclusive) within a chunk, asked in one query."""

    index: int
    start: int
    stop: int

    @property
    def count(self) -> int:
        """Number of ids in the batch."""
        return self.stop - self.start


class IdSpool:
    """Ids in an anonymous temporary file: 32 bytes each, in order, gone when the process ends.

    Reading is safe from several threads; writing (`extend`) is for one, before the first read.

    Raises:
        StorageError: the temporary directory is full or not writable.
    """

    def __init__(self, spool_dir: Path | None = None) -> None:
        self._where = str(spool_dir) if spool_dir is not None else tempfile.gettempdir()
        self._size = 0
        try:
            self._file: IO[bytes] = tempfile.TemporaryFile(prefix="condition-ids-", dir=self._where)  # noqa: SIM115
        except OSError as error:
            raise self._fault(error) from error

    def _fault(self, error: OSError) -> StorageError:
        return StorageError(
            f"the temporary file for the condition ids cannot be used in {self._where}: {error.strerror or error} "
            f"(it needs 32 bytes an id, about {max(self._size, 1 << 20):,} bytes so far); "
            "free space there, or point TMPDIR to a directory that has it"
        )

    def __len__(self) -> int:
        return self._size // ID_BYTES

    def extend(self, packed: bytes) -> None:
        """Append ids, 32 bytes each."""
        try:
            self._file.write(packed)
        except OSError as error:
            raise self._fault(error) from error
        self._size += len(packed)

    def flush(self) -> None:
        """Make what was appended readable."""
        try:
            self._file.flush()
        except OSError as error:
            raise self._fault(error) from error

    def packed(self, start: int, stop: int) -> bytes:
        """The ids ``start`` to ``stop`` (exclusive), 32 bytes each."""
        stop = min(stop, len(self))
        if start < 0 or start >= stop:
            return b""
        wanted, offset = (stop - start) * ID_BYTES, start * ID_BYTES
        parts: list[bytes] = []
        while wanted > 0:
            part = os.pread(self._file.fileno(), wanted, offset)
            if not part:
                raise StorageError(f"the temporary file for the condition ids in {self._where} has been cut short")
            parts.append(part)
            wanted -= len(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The ids ``start`` to ``stop`` as packed blocks of at most 1 MiB."""
        end = len(self) if stop is None else min(stop, len(self))
        step = _SPOOL_BLOCK_IDS
        for first in range(start, end, step):
            yield self.packed(first, min(first + step, end))

    def close(self) -> None:
        """Give the temporary file back."""
        with contextlib.suppress(OSError):  # what a full disk did not take is not needed any more
            self._file.close()


def unpack_ids(packed: bytes) -> list[str]:
    """Packed ids (32 bytes each) as 64 lower-case hex digits."""
    digits = packed.hex()
    return [digits[at : at + ID_DIGITS] for at in range(0, len(digits), ID_DIGITS)]


def pack_ids(ids: Iterable[str]) -> bytes:
    """The inverse of `unpack_ids`; every id must be 64 hex digits (ValueError otherwise)."""
    return binascii.unhexlify("".join(ids))


@dataclass(frozen=True)
class Chunk:
    """The ids of one worker: positions ``start`` (inclusive) to ``stop`` (exclusive) of the input file."""

    spool: IdSpool
    start: int
    stop: int
    sha256: str
    """Of the packed ids (32 bytes each) in order."""

    @property
    def count(self) -> int:
        """Number of ids; 0 where there are more workers than the ids need."""
        return self.stop - self.start

    def packed(self, start: int = 0, stop: int | None = None) -> bytes:
        """The ids at positions ``start`` to ``stop`` of this chunk, 32 bytes each."""
        end = self.count if stop is None else min(stop, self.count)
        return self.spool.packed(self.start + start, self.start + end) if start < end else b""

    def ids(self, start: int = 0, stop: int | None = None) -> list[str]:
        """The ids at positions ``start`` to ``stop`` of this chunk, each 64 lower-case hex digits."""
        return unpack_ids(self.packed(start, stop))

    def blocks(self) -> Iterator[bytes]:
        """All ids as packed blocks of at most 1 MiB."""
        yield from self.spool.blocks(self.start, self.stop)

    def batches(self, size: int) -> list[Batch]:
        """The chunk cut into batches of ``size`` ids, the last one shorter; none for an empty chunk."""
        if size < 1:
            raise ConfigurationError(f"GOLDSKY_BATCH_SIZE is {size}; it has to be at least 1")
        return [
            Batch(index, start, min(start + size, self.count)) for index, start in enumerate(range(0, self.count, size))
        ]


@dataclass(frozen=True)
class ConditionFile:
    """The normalised input: distinct ids in the order of their first occurrence."""

    path: Path
    spool: IdSpool
    count: int
    duplicates: int
    """Lines left out because their id had occurred before."""
    sha256: str
    """Of the packed ids (32 bytes each) in order: equal for files that differ in spelling only."""

    def chunk(self, worker: int, of: int) -> Chunk:
        """The ids of worker ``worker`` (from 1) of ``of``: contiguous, ceil(count / of) each, later ones may be empty.

        Raises:
            ConfigurationError: there is no such worker.
        """
        start, stop = chunk_bounds(self.count, worker, of)
        digest = hashlib.sha256()
        for block in self.spool.blocks(start, stop):
            digest.update(block)
        return Chunk(self.spool, start, stop, digest.hexdigest())

    def ids(self, start: int = 0, stop: int | None = None) -> list[str]:
        """The ids at positions ``start`` to ``stop`` of the file, each 64 lower-case hex digits."""
        return unpack_ids(self.spool.packed(start, self.count if stop is None else stop))

    def close(self) -> None:
        """Give the temporary file back; chunks cannot be read any more."""
        self.spool.close()


def _check_worker(worker: int, of: int) -> None:
    if not 1 <= of <= MAX_WORKERS:
        raise ConfigurationError(f"PAYOUT_WORKERS is {of}; it has to be 1 to {MAX_WORKERS}")
    if not 1 <= worker <= of:
        raise ConfigurationError(f"there is no worker {worker} of {of}; workers are numbered 1 to {of}")


def chunk_bounds(count: int, worker: int, of: int) -> tuple[int, int]:
    """Start (inclusive) and stop (exclusive) of a worker's chunk: the guide's table, ceil(count / of) each."""
    _check_worker(worker, of)
    size = -(-count // of)
    return min((worker - 1) * size, count), min(worker * size, count)


def partition_key(worker: int, of: int) -> str:
    """``worker_1_of_4``; zero-padded (``worker_01_of_16``) so that text order is number order."""
    _check_worker(worker, of)
    return f"worker_{worker:0{len(str(of))}d}_of_{of}"


def worker_of_key(key: str) -> tuple[int, int]:
    """The inverse of `partition_key`: (worker, of).

    Raises:
        ConfigurationError: the text is not a partition key in its one spelling.
    """
    match = _PARTITION_KEY.fullmatch(key)
    if match is not None:
        worker, of = int(match[1]), int(match[2])
        if 1 <= of <= MAX_WORKERS and 1 <= worker <= of and partition_key(worker, of) == key:
            return worker, of
    raise ConfigurationError(f"{key[:80]!a} is no partition; they are named like worker_1_of_4 and worker_01_of_16")


@dataclass(frozen=True)
class PrefixRange:
    """A worker's share of all ids by their first two hex digits: ``first`` (inclusive) to ``stop`` (exclusive)."""

    first: int
    stop: int

    @property
    def prefixes(self) -> list[str]:
        """The two-digit prefixes in order."""
        return [f"{prefix:02x}" for prefix in range(self.first, self.stop)]

    @property
    def lower(self) -> str:
        """The smallest text an id of the range can start with."""
        return f"{self.first:02x}"

    @property
    def upper(self) -> str | None:
        """The first prefix behind the range; None where the range reaches to the end."""
        return f"{self.stop:02x}" if self.stop < 256 else None

    def holds(self, condition_id: str) -> bool:
        """Whether the id (64 lower-case hex digits) belongs to the range."""
        return self.first <= int(condition_id[:2], 16) < self.stop


def prefix_range(worker: int, of: int) -> PrefixRange:
    """The share of worker ``worker`` of ``of`` in a scan of a whole subgraph: the 256 prefixes, cut evenly."""
    _check_worker(worker, of)
    return PrefixRange(256 * (worker - 1) // of, 256 * worker // of)


# --------------------------------------------------------------------------------------------------------- reading


def read_conditions(path: Path, spool_dir: Path | None = None) -> ConditionFile:
    """Read, normalise and deduplicate the ids of ``path``.

    Read are: UTF-8 with or without byte order mark, UTF-16 and UTF-32 with one, any of these in gzip; any line end,
    blanks around ids, blank lines, ``#`` comments, ``0x``/``0X``, either case.

    Args:
        path: the file, one id a line.
        spool_dir: where the temporary file (32 bytes an id) goes; the system's temporary directory by default.

    Raises:
        InputError: the file is missing, a directory, unreadable, has no ids, or has lines that are no ids; the
            message counts these lines and lists the first 20.
        StorageError: the temporary file cannot be written.
    """
    path = Path(path)
    spool = IdSpool(spool_dir)
    try:
        faults = _Faults()
        with contextlib.closing(_blocks(path)) as blocks:
            line = 1
            for block in blocks:
                packed, lines = _parse_block(block, line, faults)
                spool.extend(packed)
                line += lines
        spool.flush()
        if faults.count:
            raise InputError(faults.message(path))
        if not len(spool):
            raise InputError(f"{path} has no condition ids (it is empty, or holds comments only); {_REPAIR}")
        spool, duplicates = _without_duplicates(spool, spool_dir)
        digest = hashlib.sha256()
        for part in spool.blocks():
            digest.update(part)
    except BaseException:
        spool.close()
        raise
    return ConditionFile(path, spool, len(spool), duplicates, digest.hexdigest())


class _Faults:
    """Counts the lines that are no ids and keeps the first ones for the message."""

    def __init__(self) -> None:
        self.count = 0
        self.shown: list[str] = []

    def add(self, number: int, text: bytes) -> None:
        self.count += 1
        if len(self.shown) < SHOWN_LINES:
            self.shown.append(f"  line {number}: {safe_excerpt(text)} ({_why_no_id(text)})")

    def message(self, path: Path) -> str:
        lines = "1 line is" if self.count == 1 else f"{self.count:,} lines are"
        more = f"\n  … and {self.count - len(self.shown):,} more" if self.count > len(self.shown) else ""
        listed = "\n".join(self.shown)
        return (
            f"{path}: {lines} no condition id; nothing was asked.\n{listed}{more}\n"
            f"Correct or remove them, or {_REPAIR}."
        )


def safe_excerpt(text: bytes) -> str:
    """The beginning of a line, quoted, with everything but printable ASCII escaped."""
    shown = ascii(text[:_EXCERPT].decode("utf-8", "backslashreplace"))
    return f"{shown} …" if len(text) > _EXCERPT else shown


def _why_no_id(text: bytes) -> str:
    """What is wrong with a line, in a few words."""
    if b"\x00" in text:
        return "zero bytes: binary, or UTF-16 without a byte order mark"
    body = text[2:] if text[:2] in (b"0x", b"0X") else text
    if all(byte in b"0123456789abcdefABCDEF" for byte in body[:200]):
        return f"{len(body):,} hex digits instead of {ID_DIGITS}"
    if any(byte > 127 for byte in text):
        return "characters that are no ASCII hex digits"
    if body[:1] in (b"{", b"[", b'"'):
        return "looks like JSON or a quoted value"
    if b"," in body or b";" in body or b"\t" in body:
        return "looks like a table; one id a line is expected"
    return "not hex digits only"


def _parse_block(block: bytes, first_line: int, faults: _Faults) -> tuple[bytes, int]:
    """Packed ids of a block of whole lines, and its number of lines."""
    regular = _parse_regular(block)
    if regular is not None:
        return regular
    lines = block.splitlines()
    found: list[bytes] = []
    for number, line in enumerate(lines, first_line):
        text = line.strip(_BLANKS)
        if not text or text.startswith(b"#"):
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            faults.add(number, text)
        else:
            found.append(match[1])
    return binascii.unhexlify(b"".join(found)), len(lines)


def _parse_regular(block: bytes) -> tuple[bytes, int] | None:
    """The fast way for blocks of equal lines (an optional 0x, 64 digits, a line end); None for any other block."""
    import numpy as np

    first = block.find(b"\n")
    width = first + 1
    if first < ID_DIGITS or width > ID_DIGITS + 4:
        return None
    ending = b"\r\n" if block[first - 1 : first] == b"\r" else b"\n"
    lead = width - len(ending) - ID_DIGITS
    if lead not in (0, 2) or len(block) % width:
        return None
    lines = np.frombuffer(block, dtype=np.uint8).reshape(-1, width)
    if lead and not ((lines[:, 0] == ord("0")).all() and ((lines[:, 1] | 0x20) == ord("x")).all()):
        return None
    if not (lines[:, width - len(ending) :] == np.frombuffer(ending, dtype=np.uint8)).all():
        return None
    try:
        return binascii.unhexlify(lines[:, lead : lead + ID_DIGITS].tobytes()), len(lines)
    except binascii.Error:
        return None


def _blocks(path: Path) -> Generator[bytes, None, None]:
    """The text of the file in UTF-8, as blocks of whole lines (a last line without line end included)."""
    try:
        if path.is_dir():
            raise InputError(f"{path} is a directory; {_REPAIR}")
        raw = path.open("rb")
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist (looked from {Path.cwd()}); {_REPAIR}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; {_REPAIR}") from error
    except ValueError as error:  # a zero byte in the name
        raise InputError(f"{str(path)[:200]!a} is no file name; {_REPAIR}") from error
    with raw:
        try:
            yield from _whole_lines(_decoded(raw, path), path)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{path} is a damaged or cut-off gzip file ({error}); make it again") from error
        except UnicodeError as error:
            raise InputError(
                f"{path} begins with a UTF-16 or UTF-32 byte order mark and is not valid as such ({error}); "
                "save it as UTF-8"
            ) from error
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}; {_REPAIR}") from error


def _decoded(raw: io.BufferedReader, path: Path) -> Iterator[bytes]:
    """Blocks of bytes in UTF-8 (or whatever 8-bit text it is), after gzip and the byte order mark."""
    stream = raw
    if stream.peek(8).startswith(b"\x1f\x8b"):
        # The buffer gives gzip the full peek() that the detection below needs.
        stream = io.BufferedReader(cast("io.RawIOBase", gzip.GzipFile(fileobj=raw)), _READ_BYTES)
    head = stream.peek(8)[:8]
    for magic, name in _OTHER_FORMATS:
        if head.startswith(magic):
            raise InputError(f"{path} is {name}; unpack it (plain text and gzip are read), or {_REPAIR}")
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            text = io.TextIOWrapper(stream, encoding=encoding, errors="strict", newline="")
            while characters := text.read(_READ_BYTES):
                yield characters.encode("utf-8", "surrogatepass")
            return
    if head.startswith(codecs.BOM_UTF8):
        stream.read(len(codecs.BOM_UTF8))
    while block := stream.read(_READ_BYTES):
        yield block


def _whole_lines(blocks: Iterator[bytes], path: Path) -> Iterator[bytes]:
    """Cut blocks at line ends; a line longer than 1 MiB is no list of ids and is refused before it fills the memory."""
    rest = b""
    lines = 0
    for block in blocks:
        data = rest + block if rest else block
        # A carriage return at the very end may be the first half of "\r\n", so it does not count yet.
        cut = max(data.rfind(b"\n"), data.rfind(b"\r", 0, len(data) - 1)) + 1
        if cut:
            whole, rest = (data, b"") if cut == len(data) else (data[:cut], data[cut:])
            lines += whole.count(b"\n")
            yield whole
        else:
            rest = data
        if len(rest) > _LONGEST_LINE:
            raise InputError(
                f"{path}: line {lines + 1} is longer than {_LONGEST_LINE:,} bytes and begins with "
                f"{safe_excerpt(rest)}; this is no list of ids; {_REPAIR}"
            )
    if rest:
        yield rest


# --------------------------------------------------------------------------------------------------- deduplication


def hash_ids(packed: bytes) -> NDArray[np.uint64]:
    """A 64-bit hash of each packed id, over all of its bytes (generated ids often share their first half)."""
    import numpy as np

    words = np.frombuffer(packed, dtype="<u8").reshape(-1, 4)
    factors = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5)
    mixed: NDArray[np.uint64] = words[:, 0] * np.uint64(factors[0])
    for column, factor in enumerate(factors[1:], 1):
        mixed += words[:, column] * np.uint64(factor)
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0xD6E8FEB86659FD93)
    mixed ^= mixed >> np.uint64(32)
    return mixed


def _without_duplicates(spool: IdSpool, spool_dir: Path | None) -> tuple[IdSpool, int]:
    """The first occurrence of each id, in order, and the number of lines left out.

    Exact, and small in memory: 8 bytes an id find the ids whose hash occurs twice; only these are compared, in
    portions.
    """
    import numpy as np

    total = len(spool)
    hashes = np.empty(total, dtype=np.uint64)
    at = 0
    for block in spool.blocks():
        part = hash_ids(block)
        hashes[at : at + len(part)] = part
        at += len(part)
    hashes.sort()
    repeated = hashes[1:] == hashes[:-1]
    if not repeated.any():
        return spool, 0
    members = int(repeated.sum())
    # Each repeated hash once: where a run of equal ones begins.
    repeated[1:] &= ~repeated[:-1]
    suspects = hashes[:-1][repeated]
    members += len(suspects)
    del hashes, repeated
    keep = np.ones(total, dtype=bool)
    portions = max(1, -(-members // _DEDUPLICATE_AT_ONCE))
    for portion in np.array_split(suspects, portions):
        if not len(portion):
            continue
        positions: list[NDArray[Any]] = []
        packed: list[bytes] = []
        first = 0
        for block in spool.blocks():
            hashed = hash_ids(block)
            # A portion is a sorted range of hashes, so most ids fall out by its ends.
            chosen = np.flatnonzero((hashed >= portion[0]) & (hashed <= portion[-1]))
            within = hashed[chosen]
            chosen = chosen[portion[np.searchsorted(portion, within)] == within]
            if len(chosen):
                positions.append(chosen + first)
                packed.append(np.frombuffer(block, dtype="S32")[chosen].tobytes())
            first += len(hashed)
        where = np.concatenate(positions)
        # np.unique names the first occurrence of each; its order is that of the file, since positions grow.
        _, firsts = np.unique(np.frombuffer(b"".join(packed), dtype="S32"), return_index=True)
        keep[where] = False
        keep[where[firsts]] = True
    duplicates = total - int(keep.sum())
    if not duplicates:
        return spool, 0
    kept = IdSpool(spool_dir)
    first = 0
    for block in spool.blocks():
        rows = np.frombuffer(block, dtype="S32")
        kept.extend(rows[keep[first : first + len(rows)]].tobytes())
        first += len(rows)
    kept.flush()
    spool.close()
    return kept, duplicates
