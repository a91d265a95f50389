"""The id reader: which files give the same ids, and which are refused and how."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import re
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from payout_pipeline.errors import InputError
from payout_pipeline.ids.chunks import chunk_of
from payout_pipeline.ids.file import characters
from payout_pipeline.ids.id_list import IdList, pack_ids, packed_array, packed_bytes, read_ids, unpack_ids
from payout_pipeline_tests.running import REPOSITORY

DATA = REPOSITORY.parent / "shared" / "data" / "condition_ids.txt"
IDS = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(50)]
PLAIN = "".join(f"{condition_id}\n" for condition_id in IDS)


def write(tmp_path: Path, content: bytes | str) -> Path:
    path = tmp_path / "ids.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(tmp_path: Path, content: bytes | str) -> list[str]:
    return read_ids(write(tmp_path, content)).ids()


def refusal(tmp_path: Path, content: bytes | str) -> str:
    with pytest.raises(InputError) as caught:
        read_ids(write(tmp_path, content))
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
    "quoted": "".join(f'"{line}"\n' for line in IDS).encode(),
    "quoted, as in code": "".join(f"    '0x{line}',  # a market\n" for line in IDS).encode(),
    "duplicates in other spellings": (PLAIN + "0x" + IDS[3].upper() + "\n" + PLAIN).encode(),
}


@pytest.mark.parametrize("content", SAME.values(), ids=SAME.keys())
def test_every_readable_spelling_gives_the_same_ids_in_the_same_order(tmp_path: Path, content: bytes) -> None:
    found = read_ids(write(tmp_path, content))

    assert found.ids() == IDS
    assert found.count == 50
    assert found.sha256 == hashlib.sha256(bytes.fromhex("".join(IDS))).hexdigest()


def test_duplicates_are_counted_and_the_first_occurrence_stays(tmp_path: Path) -> None:
    content = [IDS[2], IDS[0], IDS[2].upper(), IDS[1], "0x" + IDS[0], IDS[2]]

    found = read_ids(write(tmp_path, "\n".join(content)))

    assert (found.ids(), found.duplicates) == ([IDS[2], IDS[0], IDS[1]], 3)


REFUSED = {
    "63 digits": (IDS[0][:-1], "63 hex digits instead of 64"),
    "65 digits": (IDS[0] + "0", "65 hex digits instead of 64"),
    "no hex digits": ("g" * 64, "not hex digits only"),
    "look-alike Cyrillic a": ("а" + IDS[0][1:], "no ASCII hex digits"),
    "full-width digits": ("０" * 64, "no ASCII hex digits"),
    "a CSV header": ("condition_id,payouts", "looks like a table"),
    "a JSON line": ('{"id": "0x12"}', "looks like JSON"),
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


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "directory"])
def test_e6_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "ids"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        path.mkdir()

    with pytest.raises(InputError, match=f"is a {kind}, no regular file"):
        read_ids(path)


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
            read_ids(path)
        assert "CONDITION_IDS_FILE" in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, PLAIN)
    path.chmod(0)

    with pytest.raises(InputError, match="cannot be read"):
        read_ids(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(PLAIN.encode())[:-20], "cut-off gzip"),
        (gzip.compress(PLAIN.encode())[:200] + b"\0" * 50, "damaged or cut-off gzip"),
        (b"\xff\xfe" + PLAIN.encode("utf-16-le")[:-1], "byte order mark and is not valid"),
        (b"\xff\xfe\x00\xd8\n\x00", "byte order mark and is not valid"),
        (b"PK\x03\x04" + bytes(100), "a zip archive"),
        (b"PAR1" + bytes(100), "cut-off Parquet file"),
        (gzip.compress(b"PAR1" + bytes(100)), "Parquet inside gzip"),
        (b"a" * (3 << 20), "longer than"),
    ],
    ids=range(8),
)
def test_damaged_and_other_formats_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    assert words in refusal(tmp_path, content)


@pytest.mark.skipif(not DATA.exists(), reason="the shared data is not here")
def test_the_real_ids_are_read_as_they_stand(tmp_path: Path) -> None:
    lines = DATA.read_text().split()

    found = read_ids(DATA)

    assert (found.count, found.duplicates, found.ids()) == (32_314, 0, lines)
    assert [chunk_of(found, worker, 4).count for worker in range(1, 5)] == [8079, 8079, 8079, 8077]


# ------------------------------------------------------------------------------------------------- deduplication

one_id = st.one_of(
    st.integers(0, 9).map(lambda number: f"{number:064x}"),
    st.integers(0, 9).map(lambda number: f"{number:x}".ljust(64, "0")),
    st.binary(min_size=32, max_size=32).map(bytes.hex),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(one_id, min_size=1, max_size=60))
def test_deduplication_is_that_of_a_dictionary(tmp_path: Path, ids: list[str]) -> None:
    found = read_ids(write(tmp_path, "\n".join(ids)))

    assert found.ids() == list(dict.fromkeys(ids))
    assert found.count + found.duplicates == len(ids)


def test_duplicates_are_found_across_blocks(tmp_path: Path) -> None:
    lines = [f"{number % 70_000:064x}" for number in range(100_000)]

    found = read_ids(write(tmp_path, "\n".join(lines)))

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
        ids = read_ids(write(tmp_path, content)).ids()
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
    monkeypatch.setattr(characters, "READ_CHARACTERS", block)
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
            read_ids(path)
        assert re.findall(r"line (\d+):", str(caught.value)) == [str(number) for number in bad[:20]]
    else:
        assert read_ids(path).ids() == list(dict.fromkeys(wanted))


_MEASURE = """
import re, sys
from pathlib import Path
from payout_pipeline.ids.id_list import read_ids
found = read_ids(Path(sys.argv[1]))
assert found.ids(0, 1)
# Not ru_maxrss, which begins with the memory of the process that started this one.
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(found.count, found.duplicates, peak)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory is read from /proc")
@pytest.mark.parametrize("form", ["lines", "lines, each twice", "table", "array", "Parquet"])
@pytest.mark.slow
def test_e4_two_million_ids_are_read_within_300_megabytes(tmp_path: Path, form: str) -> None:
    path = tmp_path / "ids"
    distinct = 1_000_000 if form == "lines, each twice" else 2_000_000
    packed = random.Random(distinct).randbytes(32 * distinct)
    if form == "Parquet":
        pq.write_table(pa.table({"condition_id": unpack_ids(packed)}), path, row_group_size=distinct)
    else:
        before, between, behind = {"table": ("slug,market_id\na,", "\nb,", "\n"), "array": ('["', '", "', '"]')}.get(
            form, ("", "\n", "\n")
        )
        with path.open("w") as file:
            file.write(before)
            for start in range(0, 2_000_000, 4000):
                at = 32 * (start % distinct)
                file.write((between if start else "") + between.join(unpack_ids(packed[at : at + 32 * 4000])))
            file.write(behind)

    done = subprocess.run([sys.executable, "-c", _MEASURE, str(path)], capture_output=True, text=True, check=True)

    found, duplicates, peak = map(int, done.stdout.split())
    assert (found, duplicates) == (distinct, 2_000_000 - distinct)
    assert peak < 300 * 1024


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=20), st.integers(0, 20), st.integers(0, 20))
def test_packed_ids_survive_the_array_and_its_slices(ids: list[bytes], start: int, length: int) -> None:
    array = packed_array(b"".join(ids))

    assert packed_bytes(array) == b"".join(ids)
    assert IdList(array).ids(start, start + length) == unpack_ids(b"".join(ids[start : start + length]))
    assert pack_ids(unpack_ids(b"".join(ids))) == b"".join(ids)
