"""The reader of .npz files returns what numpy wrote, and raises only ValueError for damaged or hostile files."""

import io
import os
import pickle
import random
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

from refocus_jax.data import npz, remembered, sources

ARRAYS = {
    "x": np.arange(20 * 4 * 5 * 3, dtype=np.uint8).reshape(20, 4, 5, 3),
    "y": np.arange(20) % 3,
    "classes": np.array(["zero", "one", "zwei"]),
    "val": np.arange(20) % 4 == 0,
}


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npy_with_header(header, data=b"", version=(1, 0)):
    length = len(header).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + length + header.encode("latin1") + data


def declared(dtype, shape):
    return f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}"


def write(path, members, compression=zipfile.ZIP_STORED):
    """An archive of members by file name, with valid checksums."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_comes_back(tmp_path, save):
    arrays = ARRAYS | {"f": np.asfortranarray(ARRAYS["x"]), "scalar": np.array(3.5), "big": np.arange(3, dtype=">i4")}
    save(tmp_path / "a.npz", **arrays)
    read = npz.read(tmp_path / "a.npz", [*arrays, "absent"])
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_mapped_arrays_are_those_that_are_read(tmp_path, save):
    arrays = {"x": ARRAYS["x"], "f": np.asfortranarray(ARRAYS["x"]), "big": np.arange(3, dtype=">i4")}
    path = tmp_path / "a.npz"
    save(path, **arrays)
    assert npz.names(path) == arrays.keys()
    for name, array in arrays.items():
        mapped = npz.memory_map(path, name)
        assert isinstance(mapped, np.memmap) and mapped.dtype == array.dtype and not mapped.flags.writeable
        np.testing.assert_array_equal(mapped, array)
    with pytest.raises(ValueError, match="cannot be read as an .npz archive.*absent"):
        npz.memory_map(path, "absent")
    save(path, x=ARRAYS["x"][:0])
    with pytest.raises(ValueError, match=r"x has the shape \(0, 4, 5, 3\), which has no elements"):
        npz.memory_map(path, "x")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_no_wrong_byte_is_ever_given(tmp_path, save):
    path, x = tmp_path / "a.npz", np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), np.uint8)
    save(path, x=x)
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1:])
        for read in (lambda: npz.read(path, ["x"]).get("x", x), lambda: npz.memory_map(path, "x")):
            try:
                np.testing.assert_array_equal(read(), x)
            except ValueError as error:
                assert "cannot be read as an .npz archive" in str(error)


def test_checksums_of_large_files_are_compared_once_until_they_change(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(npz, "_REMEMBERED_BYTES", 1000)
    monkeypatch.setattr(remembered, "_UNSETTLED_NS", 0)
    read, path = [], tmp_path / "a.npz"

    class Bar(npz.tqdm):
        def update(self, n):
            read.append(n)

    monkeypatch.setattr(npz, "tqdm", Bar)
    np.savez(path, arr_0=ARRAYS["x"], x=ARRAYS["x"])
    for name, expected in (("x", True), ("x", False), ("arr_0", True), ("x", False), ("arr_0", False)):
        read.clear()
        npz.memory_map(path, name)
        assert bool(read) == expected
    content, before = path.read_bytes(), path.stat()
    time.sleep(0.02)  # the clock of a file system ticks slowly
    path.write_bytes(content[:300] + bytes(200) + content[500:])  # part of a download that never came
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ValueError, match="cannot be read as an .npz archive.*CRC"):
        npz.memory_map(path, "arr_0")


def test_mapping_takes_no_memory_but_for_what_is_looked_at(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((64, 2**18), np.uint8))
    tracemalloc.start()
    try:
        assert npz.memory_map(tmp_path / "a.npz", "x")[63].sum() == 0
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_what_is_not_asked_for_is_not_looked_at(tmp_path):
    write(tmp_path / "a.npz", {"x.npy": npy(ARRAYS["x"]), "z.npy": b"nonsense"})
    assert npz.read(tmp_path / "a.npz", ["x"]).keys() == {"x"}


class Bomb:
    """An object whose pickle creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("shape", ["(1,)", "()"])
def test_nothing_is_unpickled(tmp_path, shape):
    program = pickle.dumps(Bomb(tmp_path / "exploded"))
    for content in (npy_with_header(declared("|O", shape), program), program):
        write(tmp_path / "a.npz", {"x.npy": content})
        with pytest.raises(ValueError, match="pickled objects, which are never loaded|magic"):
            npz.read(tmp_path / "a.npz", ["x"])
        with pytest.raises(ValueError, match="pickled objects, which are never loaded|magic"):
            npz.memory_map(tmp_path / "a.npz", "x")
    assert not (tmp_path / "exploded").exists()
    pickle.loads(program)
    assert (tmp_path / "exploded").exists()


@pytest.mark.parametrize(("dtype", "shape", "data"), [
    ("|u1", (10**15,), b"abc"),
    ("|u1", (2**40, 2**40), b""),
    ("|V1000000000", (1,), b"abc"),
    ("<U0", (10**12,), b""),  # items of no bytes: none are missing
    ("|u1", (-1,), b"abc"),
    ("|u1", (-3, -1), b"abc"),
    ("|u1", (2,), b"abc"),
    ("|u1", (4,), b"abc"),
])
def test_no_memory_is_taken_for_data_that_are_not_there(tmp_path, dtype, shape, data):
    write(tmp_path / "a.npz", {"x.npy": npy_with_header(declared(dtype, shape), data)})
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"x.npy declares .* but {len(data)} bytes of data follow"):
            npz.read(tmp_path / "a.npz", ["x"])
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_what_unpacks_out_of_all_proportion_is_refused(tmp_path, monkeypatch):
    photographs = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8)
    monkeypatch.setattr(npz, "_UNSUSPICIOUS_BYTES", 50_000)
    np.savez_compressed(tmp_path / "a.npz", x=photographs)
    np.testing.assert_array_equal(npz.read(tmp_path / "a.npz", ["x"])["x"], photographs)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(100_000, np.uint8))
    for read in (lambda path: npz.read(path, ["x"]), lambda path: npz.memory_map(path, "x")):
        with pytest.raises(ValueError, match="x.npy would unpack to 100128 bytes"):
            read(tmp_path / "a.npz")


@pytest.mark.parametrize("header", [
    "", "[]", "{}", "(" * 5000, "-" * 9000 + "1", "[" * 4000 + "]" * 4000, "x" * 60_000,
    declared("|u1", "(1, 'a')"), declared("|u1", "3"), declared("nonsense", "(3,)"), declared([("a", "<f4", -1)], "()"),
    "{'descr': '|u1', 'fortran_order': 2, 'shape': (3,)}", "{'descr': '|u1', 'shape': __import__('os').getpid()}",
])
def test_headers_that_numpy_does_not_write_are_refused(tmp_path, header):
    for version in ((1, 0), (2, 0), (3, 0), (9, 9)):
        write(tmp_path / "a.npz", {"x.npy": npy_with_header(header, b"abc", version)})
        with pytest.raises(ValueError, match="cannot be read as an .npz archive.*write it with numpy.savez"):
            npz.read(tmp_path / "a.npz", ["x"])


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_that_numpy_does_not_write_are_refused(tmp_path, compression):
    write(tmp_path / "a.npz", {"x.npy": npy(ARRAYS["x"])}, compression)
    with pytest.raises(ValueError, match=f"compressed with method {compression}"):
        npz.read(tmp_path / "a.npz", ["x"])


def test_characters_that_do_not_exist_are_refused(tmp_path):
    write(tmp_path / "a.npz", {"x.npy": npy_with_header(declared("<U1", "(1,)"), b"\xff\xff\xff\xff")})
    with pytest.raises(ValueError, match="cannot be read"):
        npz.read(tmp_path / "a.npz", ["x"])


# foreign bytes


def damaged(content, rng):
    """A truncated copy, or one with a few bytes changed, added or removed; half of the changes are near an end."""
    if rng.random() < 0.2:
        return content[: rng.randrange(len(content))]
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.choice((rng.randrange(len(content)), rng.randrange(140), rng.randrange(-300, 0) % len(content)))
        kind = rng.randrange(4)
        if kind == 0:
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[at] = rng.choice(b"\0\1\x7f\xff0129,()-'<>|OUVfbu")
        elif kind == 2:
            content[at:at] = rng.choice((b"\0", b"0", b"99999999", b"-", b"\xff\xff\xff\xff"))
        else:
            del content[at : at + rng.randrange(1, 9)]
    return bytes(content)


def assert_opened_or_refused(path):
    """Whether the source was refused; if not, all of it is used."""
    for split in sources.SPLITS:
        try:
            source = sources.load(f"npz:{path}", split)
        except ValueError as error:
            assert str(error).startswith("data.source is ")
            return True
        for i in range(len(source)):
            record = source[i]
            assert record["image"].dtype == np.uint8 and record["image"].shape[-1] == 3
            assert 0 <= record["label"] < len(source.class_names)
    return False


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_archives_are_read_or_refused(tmp_path, save):
    path, rng = tmp_path / "a.npz", random.Random(0)
    save(path, **ARRAYS)
    content = path.read_bytes()
    assert not assert_opened_or_refused(path)
    refused = 0
    for _ in range(300):
        path.write_bytes(damaged(content, rng))
        refused += assert_opened_or_refused(path)
    assert refused > 100


@pytest.mark.filterwarnings("ignore")  # those of numpy, which would end the reading early
@pytest.mark.parametrize("name", ARRAYS)
def test_damaged_arrays_with_valid_checksums_are_read_or_refused(tmp_path, name):
    members, rng = {f"{key}.npy": npy(array) for key, array in ARRAYS.items()}, random.Random(name)
    refused = 0
    for _ in range(300):
        path = write(tmp_path / "a.npz", members | {f"{name}.npy": damaged(members[f"{name}.npy"], rng)})
        refused += assert_opened_or_refused(path)
    assert 100 < refused < 300
