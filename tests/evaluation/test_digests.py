"""An unchanged file is not read again; a changed file is, even if its size and times are made to look the same."""

import os
import shutil
import time

import pytest

from refocus_jax.evaluation import digests


@pytest.fixture
def read(monkeypatch):
    """Names of the files that were read."""
    names, of_file = [], digests.of_file
    monkeypatch.setattr(digests, "of_file", lambda path: names.append(path.name) or of_file(path))
    return names


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two files of the same size that have not changed for long: the clock of the test runs ahead."""
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    now = time.time_ns
    monkeypatch.setattr(digests.time, "time_ns", lambda: now() + 60 * 10**9)
    return [tmp_path / "a", tmp_path / "b"]


def test_files_are_read_once(files, read, tmp_path):
    memory = tmp_path / "digests.json"
    found = digests.of_files(files, memory)
    assert found == [digests.of_file(path) for path in files] and found[0] != found[1]
    read.clear()
    assert digests.of_files(files[::-1], memory) == found[::-1] and not read
    memory.write_text('{"a": 1}')
    assert digests.of_files(files, memory) == found and sorted(read) == ["a", "b"]


def swapped(a, b):
    a.rename(a.with_name("c"))
    b.rename(a)
    a.with_name("c").rename(b)


def swapped_with_times_set_back(a, b):
    status = a.stat()
    swapped(a, b)
    for path in (a, b):
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def changed_with_time_set_back(a, b):
    status = a.stat()
    a.write_bytes(b"x" * 100)
    os.utime(a, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [swapped, swapped_with_times_set_back, changed_with_time_set_back])
def test_a_change_is_always_noticed(files, change, tmp_path):
    before = digests.of_files(files, tmp_path / "digests.json")
    change(*files)
    after = digests.of_files(files, tmp_path / "digests.json")
    assert after != before and after == [digests.of_file(path) for path in files]


def test_what_has_just_changed_is_not_remembered(tmp_path, read):
    """Within one tick of the clock, the times of a file may stay the same."""
    (tmp_path / "a").write_bytes(b"a")
    for _ in range(2):
        digests.of_files([tmp_path / "a"], tmp_path / "digests.json")
    assert read == ["a", "a"]


def test_a_moved_folder_has_the_digests_that_it_had(files, tmp_path):
    memory = tmp_path / "digests.json"
    before = digests.of_files(files, memory)
    (tmp_path / "moved").mkdir()
    moved = [shutil.move(path, tmp_path / "moved" / path.name) for path in files]
    assert digests.of_files(moved, memory) == before
