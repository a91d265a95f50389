"""The worklist is read once a process, and again as soon as the file is another one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from payout_pipeline.errors import InputError
from payout_pipeline.settings import Settings
from payout_pipeline.worklist import read_worklist


def _settings(path: Path, workers: int = 2) -> Settings:
    return Settings(condition_ids_file=path, workers=workers)


def _write(path: Path, ids: range) -> None:
    path.write_text("".join(f"{number:064x}\n" for number in ids))


def test_a_file_that_did_not_change_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    _write(path, range(10))
    first = read_worklist(_settings(path))
    assert first.ids == 10
    assert read_worklist(_settings(path)) is first
    assert read_worklist(_settings(path, workers=3)) is not first


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
