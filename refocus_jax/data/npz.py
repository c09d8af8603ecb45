"""Reading of arrays from `.npz` files of any origin.

This module and `images` are the only readers of bytes that other programs wrote.
"""

import contextlib
import math
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.lib import format as npy
from tqdm import tqdm

from refocus_jax.data import remembered

_HEADER_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}

# Photographs hardly compress. An array with more bytes than this, and with this many times the bytes of its file, was
# made to fill the memory.
_UNSUSPICIOUS_BYTES = 2**30
_MAX_COMPRESSION = 100

# Checked checksums of files larger than this are remembered; smaller files are checked each time.
_REMEMBERED_BYTES = 2**26
_VERSION = 1  # format of the remembered results
_PART = 2**18  # bytes that are checked at a time


def read(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Read the named arrays, as far as the file holds them.

    Nothing is unpickled, and no memory is allocated for data that are not there.

    Args:
      path: Path of the file.
      names: Names of the arrays.

    Returns:
      The arrays by name.

    Raises:
      ValueError: If the file is not an `.npz` archive, or if one of the arrays is damaged, holds objects or would fill
        the memory. The message does not name the file; callers add its name.
    """
    with _opened(path) as archive:
        held = set(archive.namelist())
        return {name: _read_array(archive, f"{name}.npy") for name in names if f"{name}.npy" in held}


def names(path: Path) -> set[str]:
    """Return the names of the arrays in a file. Raises errors as `read` does."""
    with _opened(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}


def memory_map(path: Path, name: str) -> np.ndarray:
    """Map one array of the file into memory, read-only; parts that are not accessed take no memory.

    A compressed array is first unpacked into a temporary file. The checksum is verified once: for large files the
    result is remembered in `~/.cache/refocus_jax` until they change.

    Args:
      path: Path of the file.
      name: Name of the array.

    Returns:
      The array.

    Raises:
      ValueError: As for `read`, or if the file has no such array, or an array without elements.
    """
    with _opened(path) as archive, _member(archive, f"{name}.npy") as (member, info, shape, fortran_order, dtype):
        if math.prod(shape) == 0:
            raise ValueError(f"{name} has the shape {shape}, which has no elements")
        order: Literal["F", "C"] = "F" if fortran_order else "C"
        offset = member.tell()
        if info.compress_type == zipfile.ZIP_STORED:
            _check_once(path, archive, info)
            return np.memmap(path, dtype, "r", _start(path, info) + offset, shape, order)
        with tempfile.TemporaryFile() as file:
            shutil.copyfileobj(member, file)
            file.flush()
            return np.memmap(file, dtype, "r", 0, shape, order)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except Exception as error:  # damaged files make the readers raise errors of any type
        # Only the first line: numpy's next lines recommend unpickling.
        reason = str(error).partition("\n")[0] if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"it cannot be read as an .npz archive: {reason}; write it with numpy.savez") from error


@contextlib.contextmanager
def _member(archive: zipfile.ZipFile, name: str
            ) -> Iterator[tuple[IO[bytes], zipfile.ZipInfo, tuple[int, ...], bool, np.dtype]]:
    """Yield the file of an array, open where its data begin, and the checked content of its header.

    The header consists of the archive's entry, the shape, whether the order is Fortran's, and the dtype.
    """
    info = archive.getinfo(name)
    assert archive.filename is not None  # it is opened by path
    if info.file_size > max(_UNSUSPICIOUS_BYTES, _MAX_COMPRESSION * os.path.getsize(archive.filename)):
        raise ValueError(f"{name} would unpack to {info.file_size} bytes, which is out of proportion to the file")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed with method {info.compress_type}, which numpy does not write")
    with archive.open(info) as member:
        version = npy.read_magic(member)
        if version not in _HEADER_READERS:
            raise ValueError(f"{name} has npy version {version}, which no plain array needs")
        shape, fortran_order, dtype = _HEADER_READERS[version](member)
        if dtype.hasobject:
            raise ValueError(f"{name} holds pickled objects, which are never loaded")
        # numpy allocates the memory that a header declares before it looks for the data. There could be any number of
        # items with zero bytes.
        present = info.file_size - member.tell()
        if min(shape, default=0) < 0 or dtype.itemsize == 0 or math.prod(shape) * dtype.itemsize != present:
            raise ValueError(f"{name} declares {dtype} {shape}, but {present} bytes of data follow")
        yield member, info, shape, fortran_order, dtype


def _check_once(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Read an uncompressed member to its end, where zipfile verifies the checksum, which a memory map bypasses."""
    places, began, stamp = [remembered.at_home(path)], time.time_ns(), remembered.stamp(path.stat())
    known = remembered.recall(places, _VERSION) if stamp[0] > _REMEMBERED_BYTES else {}
    sound = known["members"] if known.get("stamp") == stamp else []
    if info.filename in sound:
        return
    # The bar appears only if reading takes more than three seconds.
    with archive.open(info) as member, tqdm(desc=f"checking {path}", total=info.file_size, unit="B", unit_scale=True,
                                            leave=False, delay=3, disable=None) as bar:
        while part := member.read(_PART):
            bar.update(len(part))
    if stamp[0] > _REMEMBERED_BYTES and remembered.is_settled(stamp, began):
        remembered.keep(places, _VERSION, {"path": str(path), "stamp": stamp, "members": [*sound, info.filename]})


def _start(path: Path, info: zipfile.ZipInfo) -> int:
    """Return where in the archive the bytes of an uncompressed member begin, after its header of variable length."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        lengths = file.read(4)
    return info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with _member(archive, name) as (member, _, _, _, dtype):
        member.seek(0)
        array = npy.read_array(member, allow_pickle=False)
    if dtype.kind == "U":
        array.tolist()  # only here does numpy decode the characters, and fail if they are invalid
    return array
