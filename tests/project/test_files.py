"""atomic_file writes files completely or not at all; time_call measures what it documents."""

import os
import stat

import pytest

from a2c_compiled._files import atomic_file
from a2c_compiled.benchmarks.measure.timing import time_call


def contents(folder):
    """Every file of a folder, hidden ones too, by name."""
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_new_file_appears_at_the_end_of_the_block(tmp_path):
    with atomic_file(tmp_path / "new.txt") as temporary:
        temporary.write_text("all of it")
        assert not (tmp_path / "new.txt").exists()
    assert contents(tmp_path) == {"new.txt": "all of it"}


def test_an_existing_file_is_replaced_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("older")
    with atomic_file(path) as temporary:
        temporary.write_text("newer")
        assert path.read_text() == "older"
    assert contents(tmp_path) == {"file.txt": "newer"}


def fail_halfway(path, error):
    path.write_text("half of")
    raise error


@pytest.mark.parametrize("older", [{}, {"file.txt": "older"}], ids=["no_older", "older"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_raises_changes_nothing(tmp_path, older, error):
    for name, text in older.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(error), atomic_file(tmp_path / "file.txt") as temporary:
        fail_halfway(temporary, error)
    assert contents(tmp_path) == older


def test_a_file_that_cannot_be_renamed_leaves_no_temporary_file(tmp_path):
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(OSError, match=r"folder\.txt"), atomic_file(tmp_path / "folder.txt") as temporary:
        temporary.write_text("all of it")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.txt"]


def test_missing_folders_are_made(tmp_path):
    with atomic_file(tmp_path / "one" / "two" / "file.txt") as temporary:
        temporary.write_text("all of it")
    assert contents(tmp_path / "one" / "two") == {"file.txt": "all of it"}


def test_a_path_may_be_a_string(tmp_path):
    with atomic_file(str(tmp_path / "file.txt")) as temporary:
        temporary.write_text("all of it")
    assert contents(tmp_path) == {"file.txt": "all of it"}


def test_the_temporary_file_is_hidden_in_the_same_folder_with_the_same_suffix(tmp_path):
    with atomic_file(tmp_path / "model.onnx") as temporary:
        assert (temporary.parent, temporary.suffix, temporary.name[0]) == (tmp_path, ".onnx", ".")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_new_file_has_the_usual_permissions(tmp_path, mask):
    before = os.umask(mask)
    try:
        with atomic_file(tmp_path / "file.txt") as temporary:
            temporary.write_text("all of it")
        assert os.umask(mask) == mask, "the mask itself is left as it was"
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == 0o666 & ~mask


def test_two_writers_of_one_file_have_different_temporary_files(tmp_path):
    with atomic_file(tmp_path / "file.txt") as first, atomic_file(tmp_path / "file.txt") as second:
        first.write_text("first")
        second.write_text("second")
    assert contents(tmp_path) == {"file.txt": "first"}


def test_a_timing_is_the_median_and_spread_of_seconds_per_call(monkeypatch):
    clock = Clock([3.0, 1.0, 1.0, 2.0, 4.0, 1.0])
    monkeypatch.setattr("time.perf_counter", lambda: clock.now)
    timing = time_call(clock.call, samples=5, sample_seconds=0.5)
    assert timing == pytest.approx((1.0, 1.0, 2.4, 5)), "the first call warms up and does not count"


def test_a_short_call_is_repeated_until_a_sample_is_long_enough(monkeypatch):
    clock = Clock([1e-4] * 100_000)
    monkeypatch.setattr("time.perf_counter", lambda: clock.now)
    timing = time_call(clock.call, samples=3, sample_seconds=0.01)
    assert timing == pytest.approx((1e-4, 1e-4, 1e-4, 3))
    assert clock.calls >= 300, "three samples of at least 0.01 s, 1e-4 s a call"


class Clock:
    """A clock that calls advance by known amounts, in place of the one that time_call reads."""

    def __init__(self, durations):
        self.durations, self.now, self.calls = durations, 0.0, 0

    def call(self):
        self.now += self.durations[self.calls]
        self.calls += 1
