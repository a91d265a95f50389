"""How the ids are divided among workers, and what tells today's input from another."""

from __future__ import annotations

import hashlib
import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payout_pipeline.errors import ConfigurationError, InputError
from payout_pipeline.ids.chunks import (
    chunk_bounds,
    chunk_of,
    partition_key,
    prefix_range,
    read_worklist,
    worker_of_key,
)
from payout_pipeline.ids.id_list import IdList, pack_ids, packed_array
from payout_pipeline.settings import Settings

IDS = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(50)]


def packed(ids: list[str]) -> IdList:
    return IdList(packed_array(pack_ids(ids)))


def _settings(path: Path, workers: int = 2) -> Settings:
    return Settings(condition_ids_file=path, workers=workers)


def _write(path: Path, ids: range) -> None:
    path.write_text("".join(f"{number:064x}\n" for number in ids))


def test_a_file_of_the_same_size_with_other_ids_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    _write(path, range(10))
    first = read_worklist(_settings(path))
    _write(path, range(10, 20))
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))  # file systems with coarse times
    second = read_worklist(_settings(path))
    assert second.ids == 10
    assert second.fingerprint != first.fingerprint


def test_a_file_that_took_the_place_of_another_with_its_times_is_read_again(tmp_path: Path) -> None:
    path, other = tmp_path / "ids.txt", tmp_path / "other.txt"
    _write(path, range(10))
    _write(other, range(10, 20))
    first = read_worklist(_settings(path))
    times = path.stat()
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)
    assert read_worklist(_settings(path)).fingerprint != first.fingerprint


def test_a_file_that_went_away_is_an_error_and_not_what_was_read_before(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    _write(path, range(10))
    read_worklist(_settings(path))
    path.unlink()
    with pytest.raises(InputError, match=r"ids\.txt"):
        read_worklist(_settings(path))


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


def test_more_workers_than_ids_leave_the_later_chunks_empty() -> None:
    found = packed(IDS[:3])

    assert [chunk_of(found, worker, 5).ids() for worker in range(1, 6)] == [[IDS[0]], [IDS[1]], [IDS[2]], [], []]
    assert chunk_of(found, 5, 5).sha256 == hashlib.sha256(b"").hexdigest()


def test_a_chunk_gives_its_own_ids_by_its_own_positions() -> None:
    found = packed(IDS)
    chunk = chunk_of(found, 2, 3)

    assert (chunk.start, chunk.stop, chunk.count) == (17, 34, 17)
    assert chunk.ids() == IDS[17:34]
    assert chunk.ids(5, 8) == IDS[22:25]
    assert chunk.ids(15, 99) == IDS[32:34]
    assert chunk.ids(17, 20) == []
    assert chunk.sha256 == hashlib.sha256(bytes.fromhex("".join(IDS[17:34]))).hexdigest()


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
    assert sum(span.holds("7f" + "0" * 62) for span in ranges) == 1
