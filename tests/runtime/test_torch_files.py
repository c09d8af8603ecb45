"""What PyTorch's files hold is read without running their code; hostile and damaged files are errors."""

import collections
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refocus_jax.runtime import weight_files
from tests.fixtures import torch_pickles
from tests.fixtures.torch_pickles import Call, Storage, archive, tensor

OLD_FIXTURE = Path(__file__).parents[1] / "fixtures" / "state_dict_before_1_6.pth"


@pytest.fixture
def save(tmp_path, monkeypatch):
    """save(name, storage, ...) -> the path of a file with one tensor, `weight`, of a storage of 0, 1, 2, 3."""
    torch_pickles.install(monkeypatch)
    return lambda name, storage, **sizes: torch_pickles.save(tmp_path / f"{name}.pth", {
        "weight": tensor(storage, **sizes)})


def test_nothing_in_a_file_is_executed(tmp_path):
    target = tmp_path / "executed"
    for number, call in enumerate([Call(os.system, f"touch {target}"), Call(eval, f"open({str(target)!r}, 'w')"),
                                   Call(collections.namedtuple, "a", "b"), Call(np.zeros, 3)]):
        path = archive(tmp_path / f"{number}.pth", pickle.dumps({"weight": call}))
        with pytest.raises(ValueError, match="which no state dict needs"):
            weight_files.read(path)
    assert not target.exists()


def test_tensors_must_lie_inside_their_storage(save):
    np.testing.assert_array_equal(weight_files.read(save("good", Storage()))["weight"], range(4))
    for name, arguments, message in (
            ("long", dict(shape=(5,)), "reaches outside"), ("offset", dict(offset=1), "reaches outside"),
            ("negative", dict(strides=(-1,)), "strides"), ("rank", dict(strides=(1, 1)), "strides"),
            ("expanded", dict(shape=(1 << 40, 4), strides=(0, 1)), "reaches outside")):
        with pytest.raises(ValueError, match=message):
            weight_files.read(save(name, Storage(), **arguments))
    for name, storage, message in (
            ("count", Storage(count=8), "16 bytes, not 8"), ("kind", Storage("module"), "is not a storage"),
            ("key", Storage(key="7"), "no item named")):
        with pytest.raises(ValueError, match=message):
            weight_files.read(save(name, storage))


def test_a_damaged_array_is_named(save):
    path = save("good", Storage())
    content = path.read_bytes()
    numbers = content.index(torch_pickles.NUMBERS.tobytes())
    for place in (numbers, numbers + 15):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1:])
        with pytest.raises(ValueError, match="archive/data/0 is damaged.*Download it again"):
            weight_files.read(path)


def test_a_pickle_that_numbers_its_memory_beyond_reason_is_refused(tmp_path):
    """A few bytes that would take a gigabyte: the unpickler allocates all memo indices up to the largest."""
    for name, put in (("long", b"r" + (2**26).to_bytes(4, "little")), ("text", b"p67108864\n")):
        content = b"\x80\x02}" + put + b"."
        with pytest.raises(ValueError, match="under the number 67108864"):
            weight_files.read(archive(tmp_path / f"{name}.pth", content))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    deep = archive(tmp_path / "deep.pth", b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".")
    long = archive(tmp_path / "long_text.pth", b"\x80\x04\x8d" + (2**60).to_bytes(8, "little") + b"a.")
    for path in (deep, long):
        with pytest.raises(ValueError, match="cannot be read as a state dict"):
            weight_files.read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # kilobytes


def test_what_older_files_say_of_their_storages_is_checked(tmp_path):
    """A storage's number of elements is given in the pickle and again before its bytes."""
    whole, path = OLD_FIXTURE.read_bytes(), tmp_path / "old.pth"
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="bytes, not"):
        weight_files.read(path)
    magic, version, system = (pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": False}))
    assert whole.startswith(magic + version)
    path.write_bytes(magic + version + system + pickle.dumps({}) + pickle.dumps([]))
    with pytest.raises(ValueError, match="little-endian"):
        weight_files.read(path)
    target = tmp_path / "executed"
    path.write_bytes(magic + version + pickle.dumps(Call(os.system, f"touch {target}")))
    with pytest.raises(ValueError, match="which no state dict needs"):
        weight_files.read(path)
    assert not target.exists()


LARGE = """
import re, sys
from pathlib import Path
from refocus_jax.runtime import weight_files

def mapped():
    return int(re.search(r"RssFile:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

arrays, before = weight_files.read(sys.argv[1]), mapped()
total, most = 0, 0
for name in arrays:
    total += arrays[name].sum()
    most = max(most, mapped() - before)
print(len(arrays), total, most)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says how much of a file is in memory")
def test_only_one_array_is_in_memory_at_a_time(save, tmp_path):
    size = 2**22  # bytes
    storages = [np.full(size // 4, i, np.float32) for i in range(8)]
    path = torch_pickles.save(tmp_path / "large.pth", {
        str(i): tensor(Storage(key=str(i), count=size // 4), shape=(size // 4,)) for i in range(8)}, storages)
    run = subprocess.run([sys.executable, "-c", LARGE, str(path)], capture_output=True, text=True, check=True)
    number, total, most = run.stdout.split()
    assert (int(number), float(total)) == (8, sum(range(8)) * size / 4)
    assert 0.5 * size < int(most) < 2.5 * size


def test_arrays_come_from_the_file_as_it_was_opened(save):
    path = save("good", Storage())
    arrays = weight_files.read(path)
    path.unlink()
    for _ in range(2):
        np.testing.assert_array_equal(arrays["weight"], torch_pickles.NUMBERS)
    with pytest.raises(ValueError, match="read-only"):
        arrays["weight"][0] = 1
