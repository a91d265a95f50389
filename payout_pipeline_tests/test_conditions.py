"""The id reader: which files give the same ids, which are refused and how, and how the ids are cut into chunks."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import re
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from payout_pipeline import conditions
from payout_pipeline.conditions import (
    Batch,
    chunk_bounds,
    hash_ids,
    pack_ids,
    partition_key,
    prefix_range,
    read_conditions,
    unpack_ids,
    worker_of_key,
)
from payout_pipeline.errors import ConfigurationError, InputError, StorageError

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "condition_ids.txt"
IDS = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(50)]
PLAIN = "".join(f"{condition_id}\n" for condition_id in IDS)


def write(tmp_path: Path, content: bytes | str) -> Path:
    path = tmp_path / "ids.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(tmp_path: Path, content: bytes | str) -> list[str]:
    return read_conditions(write(tmp_path, content), tmp_path).ids()


def refusal(tmp_path: Path, content: bytes | str) -> str:
    with pytest.raises(InputError) as caught:
        read_conditions(write(tmp_path, content), tmp_path)
    return str(caught.value)


SAME = {
    "plain": PLAIN.encode(),
    "no final newline": PLAIN.rstrip().encode(),
    "CRLF": PLAIN.replace("\n", "\r\n").encode(),
    "CRLF without the last": PLAIN.replace("\n", "\r\n").rstrip().encode(),
    "CR only": PLAIN.replace("\n", "\r").encode(),
    "mixed line ends": PLAIN.replace("\n", "\r\n", 7).encode(),
    "byte order mark": b"\xef\xbb\xbf" + PLAIN.encode(),
    "blanks and tabs": "".join(f" \t{line} \t\n" for line in IDS).encode(),
    "blank lines": ("\n\n  \n" + PLAIN.replace("\n", "\n\n") + "\n\t\n").encode(),
    "UTF-16 little endian": b"\xff\xfe" + PLAIN.encode("utf-16-le"),
    "UTF-16 big endian": b"\xfe\xff" + PLAIN.encode("utf-16-be"),
    "UTF-32": PLAIN.encode("utf-32"),
    "gzip": gzip.compress(PLAIN.encode()),
    "gzip of two members": gzip.compress(PLAIN[:650].encode()) + gzip.compress(PLAIN[650:].encode()),
    "gzip of UTF-16": gzip.compress(PLAIN.encode("utf-16")),
    "gzip with byte order mark": gzip.compress(b"\xef\xbb\xbf" + PLAIN.encode()),
    "0x": "".join(f"0x{line}\n" for line in IDS).encode(),
    "0X and upper case": "".join(f"0X{line.upper()}\n" for line in IDS).encode(),
    "0x with CRLF": "".join(f"0x{line}\r\n" for line in IDS).encode(),
    "0x on some lines": "".join(f"{'0x' * (number % 2)}{line}\n" for number, line in enumerate(IDS)).encode(),
    "comments": ("# made today\n" + PLAIN.replace("\n", "  # a market\n", 3) + "   # the end").encode(),
    "duplicates in other spellings": (PLAIN + "0x" + IDS[3].upper() + "\n" + PLAIN).encode(),
}


@pytest.mark.parametrize("content", SAME.values(), ids=SAME.keys())
def test_every_readable_spelling_gives_the_same_ids_in_the_same_order(tmp_path: Path, content: bytes) -> None:
    found = read_conditions(write(tmp_path, content), tmp_path)

    assert found.ids() == IDS
    assert found.count == 50
    assert found.sha256 == hashlib.sha256(bytes.fromhex("".join(IDS))).hexdigest()


def test_duplicates_are_counted_and_the_first_occurrence_stays(tmp_path: Path) -> None:
    content = [IDS[2], IDS[0], IDS[2].upper(), IDS[1], "0x" + IDS[0], IDS[2]]

    found = read_conditions(write(tmp_path, "\n".join(content)), tmp_path)

    assert (found.ids(), found.duplicates) == ([IDS[2], IDS[0], IDS[1]], 3)


REFUSED = {
    "63 digits": (IDS[0][:-1], "63 hex digits instead of 64"),
    "65 digits": (IDS[0] + "0", "65 hex digits instead of 64"),
    "no hex digits": ("g" * 64, "not hex digits only"),
    "look-alike Cyrillic a": ("а" + IDS[0][1:], "no ASCII hex digits"),
    "full-width digits": ("０" * 64, "no ASCII hex digits"),
    "no-break space": ("\u00a0" + IDS[0], "no ASCII hex digits"),
    "a CSV header": ("condition_id,payouts", "looks like a table"),
    "a JSON line": ('{"id": "0x12"}', "looks like JSON"),
    "a quoted id": (f'"{IDS[0]}"', "looks like JSON or a quoted value"),
    "two ids on a line": (f"{IDS[0]} {IDS[1]}", "not hex digits only"),
    "a comma behind": (IDS[0] + ",", "looks like a table"),
    "0x twice": ("0x0x" + IDS[0], "not hex digits only"),
    "0x alone": ("0x", "0 hex digits"),
    "zero bytes": ("\0" * 8, "zero bytes"),
}


@pytest.mark.parametrize(("line", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_a_line_that_is_no_id_is_refused_with_its_number(tmp_path: Path, line: str, why: str) -> None:
    message = refusal(tmp_path, f"{IDS[0]}\r\n\n# comment\n{IDS[1]}\n{line}\n{IDS[2]}\n")

    assert "1 line is no condition id" in message
    assert "line 5: " in message
    assert why in message
    assert message.isascii() or message.replace("…", "").isascii()


def test_the_first_twenty_lines_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    message = refusal(tmp_path, PLAIN + "nonsense\n" * 1234)

    assert "1,234 lines are no condition id" in message
    assert re.findall(r"line (\d+):", message) == [str(number) for number in range(51, 71)]
    assert "1,214 more" in message


def test_an_excerpt_of_a_bad_line_cannot_break_out_of_a_log_line(tmp_path: Path) -> None:
    message = refusal(tmp_path, b"\x1b[31mred\x07\x00 \xe2\x80\xae evil" + b"x" * 500)

    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", message)
    assert "\\x1b[31m" in message
    assert len(message) < 600


def test_line_numbers_are_right_beyond_the_first_block(tmp_path: Path) -> None:
    lines = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(40_000)]
    lines[39_000] = "oops"

    assert "line 39001: 'oops'" in refusal(tmp_path, "\n".join(lines))
    assert "line 39001: 'oops'" in refusal(tmp_path, "\r\n".join(lines))


@pytest.mark.parametrize(
    "content", [b"", b"\n\n \t\n", b"# only\n#comments\n", b"\xef\xbb\xbf", gzip.compress(b"", mtime=0)]
)
def test_e4_a_file_without_ids_is_an_error(tmp_path: Path, content: bytes) -> None:
    assert "has no condition ids" in refusal(tmp_path, content)


def test_e4_what_cannot_be_read_says_what_to_set(tmp_path: Path) -> None:
    for path, words in (
        (tmp_path / "missing.txt", "does not exist"),
        (tmp_path, "is a directory"),
        (Path("a\0b"), "is no file name"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            read_conditions(path, tmp_path)
        assert "CONDITION_IDS_FILE" in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, PLAIN)
    path.chmod(0)

    with pytest.raises(InputError, match="cannot be read"):
        read_conditions(path, tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(PLAIN.encode())[:-20], "cut-off gzip"),
        (gzip.compress(PLAIN.encode())[:200] + b"\0" * 50, "damaged or cut-off gzip"),
        (b"\xff\xfe" + PLAIN.encode("utf-16-le")[:-1], "byte order mark and is not valid"),
        (b"\xff\xfe\x00\xd8\n\x00", "byte order mark and is not valid"),
        (b"PK\x03\x04" + bytes(100), "a zip archive"),
        (b"PAR1" + bytes(100), "a Parquet file"),
        (b"a" * (3 << 20), "longer than"),
    ],
)
def test_damaged_and_other_formats_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    assert words in refusal(tmp_path, content)


def test_a_full_temporary_directory_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="TMPDIR"):
        read_conditions(write(tmp_path, PLAIN), tmp_path / "missing")


def test_a_pipe_can_be_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(PLAIN,))
    writer.start()

    assert read_conditions(pipe, tmp_path).ids() == IDS
    writer.join()


def test_no_file_is_left_behind(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()

    found = read_conditions(write(tmp_path, PLAIN + PLAIN), spool)

    assert list(spool.iterdir()) == []
    found.close()


@pytest.mark.skipif(not DATA.exists(), reason="the shared data is not here")
def test_the_real_ids_are_read_as_they_stand(tmp_path: Path) -> None:
    lines = DATA.read_text().split()

    found = read_conditions(DATA, tmp_path)

    assert (found.count, found.duplicates, found.ids()) == (32_314, 0, lines)
    assert [found.chunk(worker, 4).count for worker in range(1, 5)] == [8079, 8079, 8079, 8077]


# ------------------------------------------------------------------------------------------------- deduplication

one_id = st.one_of(
    st.integers(0, 9).map(lambda number: f"{number:064x}"),
    st.integers(0, 9).map(lambda number: f"{number:x}".ljust(64, "0")),
    st.binary(min_size=32, max_size=32).map(bytes.hex),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(one_id, min_size=1, max_size=60), at_once=st.sampled_from([1, 3, 1 << 18]))
def test_deduplication_is_that_of_a_dictionary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: list[str], at_once: int
) -> None:
    monkeypatch.setattr(conditions, "_DEDUPLICATE_AT_ONCE", at_once)

    found = read_conditions(write(tmp_path, "\n".join(ids)), tmp_path)

    assert found.ids() == list(dict.fromkeys(ids))
    assert found.count + found.duplicates == len(ids)


def test_equal_hashes_of_different_ids_are_no_duplicates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "hash_ids", lambda packed: hash_ids(packed) % 3)

    found = read_conditions(write(tmp_path, PLAIN + IDS[4] + "\n"), tmp_path)

    assert (found.ids(), found.duplicates) == (IDS, 1)


def test_duplicates_are_found_across_blocks(tmp_path: Path) -> None:
    lines = [f"{number % 70_000:064x}" for number in range(100_000)]

    found = read_conditions(write(tmp_path, "\n".join(lines)), tmp_path)

    assert (found.count, found.duplicates) == (70_000, 30_000)
    assert found.ids() == lines[:70_000]


# ------------------------------------------------------------------------------------------------------- fuzzing


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=300), st.text(max_size=100).map(str.encode)))
@example(b"\x1f\x8b")
@example(b"\xff\xfe")
@example(b"\r")
def test_any_bytes_are_ids_or_a_refusal(tmp_path: Path, content: bytes) -> None:
    message, ids = "", [IDS[0]]
    try:
        ids = read_conditions(write(tmp_path, content), tmp_path).ids()
    except InputError as error:
        message = str(error)

    assert message.replace("\n", "").isprintable()
    assert ids
    assert all(re.fullmatch("[0-9a-f]{64}", condition_id) for condition_id in ids)


junk = st.sampled_from(["", " ", "#x", "\t", "zz", "0x", IDS[0][:63], IDS[0] + "1"])
spelled = st.sampled_from(IDS).flatmap(
    lambda text: st.sampled_from([text, text.upper(), "0x" + text, "0X" + text, f" {text}\t", text + " # note"])
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.one_of(spelled, junk), max_size=40),
    ending=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    block=st.sampled_from([7, 64, 65, 66, 1 << 20]),
)
def test_the_reader_agrees_with_reading_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], ending: str, encoding: str, block: int
) -> None:
    monkeypatch.setattr(conditions, "_READ_BYTES", block)
    wanted: list[str] = []
    bad: list[int] = []
    for number, line in enumerate(lines, 1):
        text = line.split("#")[0].strip().lower().removeprefix("0x") if not line.strip().startswith("#") else ""
        if re.fullmatch("[0-9a-f]{64}", text):
            wanted.append(text)
        elif line.strip() and not line.strip().startswith("#"):
            bad.append(number)
    path = write(tmp_path, ending.join(lines).encode(encoding))
    if bad or not wanted:
        with pytest.raises(InputError) as caught:
            read_conditions(path, tmp_path)
        assert re.findall(r"line (\d+):", str(caught.value)) == [str(number) for number in bad[:20]]
    else:
        assert read_conditions(path, tmp_path).ids() == list(dict.fromkeys(wanted))


# ------------------------------------------------------------------------------------------------------ chunks


def test_the_chunks_are_those_of_the_guide() -> None:
    assert [chunk_bounds(170_448, worker, 4) for worker in range(1, 5)] == [
        (0, 42_612),
        (42_612, 85_224),
        (85_224, 127_836),
        (127_836, 170_448),
    ]


@given(count=st.integers(0, 10_000), of=st.integers(1, 99))
def test_chunks_follow_each_other_and_cover_everything_once(count: int, of: int) -> None:
    bounds = [chunk_bounds(count, worker, of) for worker in range(1, of + 1)]
    size = -(-count // of)

    assert bounds[0][0] == 0
    assert bounds[-1][1] == count
    assert all(left[1] == right[0] for left, right in pairwise(bounds))
    assert all(stop - start <= size for start, stop in bounds)
    full = [stop - start == size for start, stop in bounds]
    assert full == sorted(full, reverse=True)


def test_more_workers_than_ids_leave_the_later_chunks_empty(tmp_path: Path) -> None:
    found = read_conditions(write(tmp_path, "\n".join(IDS[:3])), tmp_path)

    assert [found.chunk(worker, 5).ids() for worker in range(1, 6)] == [[IDS[0]], [IDS[1]], [IDS[2]], [], []]
    assert found.chunk(5, 5).batches(10) == []
    assert found.chunk(5, 5).sha256 == hashlib.sha256(b"").hexdigest()


def test_a_chunk_gives_its_own_ids_by_its_own_positions(tmp_path: Path) -> None:
    found = read_conditions(write(tmp_path, PLAIN), tmp_path)
    chunk = found.chunk(2, 3)

    assert (chunk.start, chunk.stop, chunk.count) == (17, 34, 17)
    assert chunk.ids() == IDS[17:34]
    assert chunk.ids(5, 8) == IDS[22:25]
    assert chunk.ids(15, 99) == IDS[32:34]
    assert chunk.ids(17, 20) == []
    assert b"".join(chunk.blocks()) == bytes.fromhex("".join(IDS[17:34]))
    assert chunk.sha256 == hashlib.sha256(bytes.fromhex("".join(IDS[17:34]))).hexdigest()
    assert chunk.batches(6) == [Batch(0, 0, 6), Batch(1, 6, 12), Batch(2, 12, 17)]
    assert [batch.count for batch in chunk.batches(6)] == [6, 6, 5]


@pytest.mark.parametrize(("worker", "of"), [(0, 4), (5, 4), (1, 0), (1, 100), (-1, 4)])
def test_there_is_no_such_worker(worker: int, of: int) -> None:
    for function in (partition_key, prefix_range):
        with pytest.raises(ConfigurationError):
            function(worker, of)


@given(of=st.integers(1, 99), data=st.data())
def test_partition_keys_have_one_spelling_and_sort_like_numbers(of: int, data: st.DataObject) -> None:
    keys = [partition_key(worker, of) for worker in range(1, of + 1)]
    worker = data.draw(st.integers(1, of))

    assert keys == sorted(keys)
    assert worker_of_key(keys[worker - 1]) == (worker, of)


@pytest.mark.parametrize(
    "key", ["worker_01_of_4", "worker_1_of_16", "worker_5_of_4", "worker_0_of_4", "w", "", "worker_1_of_4\n"]
)
def test_other_texts_are_no_partition_keys(key: str) -> None:
    with pytest.raises(ConfigurationError, match="worker_1_of_4"):
        worker_of_key(key)


@given(of=st.integers(1, 99))
def test_prefix_ranges_cover_all_ids_once(of: int) -> None:
    ranges = [prefix_range(worker, of) for worker in range(1, of + 1)]

    assert [prefix for span in ranges for prefix in span.prefixes] == [f"{number:02x}" for number in range(256)]
    assert ranges[-1].upper is None
    assert all(left.upper == right.lower for left, right in pairwise(ranges))
    assert sum(span.holds("7f" + "0" * 62) for span in ranges) == 1


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=20))
def test_packing_and_unpacking_are_inverse(ids: list[bytes]) -> None:
    assert pack_ids(unpack_ids(b"".join(ids))) == b"".join(ids)


# ------------------------------------------------------------------------------------------------------- memory

_MEASURE = """
import re, sys
from pathlib import Path
from payout_pipeline.conditions import read_conditions
found = read_conditions(Path(sys.argv[1]), Path(sys.argv[2]))
assert found.chunk(4, 4).ids(0, 1)
# Not ru_maxrss, which begins with the memory of the process that started this one.
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(found.count, found.duplicates, peak)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory is read from /proc")
@pytest.mark.parametrize("doubled", [False, True])
def test_e4_two_million_ids_cost_less_than_50_megabytes_more(tmp_path: Path, doubled: bool) -> None:
    peaks = []
    for count in (170_448, 2_000_000):
        path = tmp_path / f"{count}.txt"
        distinct = count // 2 if doubled else count
        packed = random.Random(count).randbytes(32 * distinct)
        with path.open("w") as file:
            for _ in range(2 if doubled else 1):
                for at in range(0, len(packed), 32 * 4096):
                    file.write("\n".join(unpack_ids(packed[at : at + 32 * 4096])) + "\n")
        done = subprocess.run(
            [sys.executable, "-c", _MEASURE, str(path), str(tmp_path)], capture_output=True, text=True, check=True
        )
        found, duplicates, peak = map(int, done.stdout.split())
        assert (found, duplicates) == (distinct, count - distinct)
        peaks.append(peak)
        path.unlink()
    assert peaks[1] - peaks[0] < 50 * 1024
