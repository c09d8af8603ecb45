"""Arrays of an `.npz` file of any origin. With `images`, the reader of bytes that others wrote."""

import contextlib
import math
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy
from tqdm import tqdm

from refocus_jax.data import remembered

_HEADER_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}

# Photographs hardly compress. An array of more bytes than this, and of so many times the bytes of its file, was made
# to fill the memory.
_UNSUSPICIOUS_BYTES = 2**30
_MAX_COMPRESSION = 100

# That the bytes of larger files are sound is remembered, and of smaller ones found out each time.
_REMEMBERED_BYTES = 2**26
_VERSION = 1  # of what is remembered
_PART = 2**18  # bytes that are checked at a time


def read(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Those of the named arrays that the file holds.

    Nothing is unpickled, and no memory is taken for data that are not there.

    Raises:
      ValueError: the file is no `.npz` archive, or one of the arrays is damaged, holds objects or would fill the
        memory. To name the file is left to the caller.
    """
    with _opened(path) as archive:
        held = set(archive.namelist())
        return {name: _read_array(archive, f"{name}.npy") for name in names if f"{name}.npy" in held}


def names(path: Path) -> set[str]:
    """Of the arrays that the file holds. Raises as `read` does."""
    with _opened(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}


def memory_map(path: Path, name: str) -> np.ndarray:
    """One array of the file, of any size: what is not looked at takes no memory, and nothing can be written.

    What is compressed is unpacked into a temporary file first. The checksum is compared once: of large files it is
    remembered in `~/.cache/refocus_jax` until they change.

    Raises:
      ValueError: as for `read`; or the file has no such array, or one without elements.
    """
    with _opened(path) as archive, _member(archive, f"{name}.npy") as (member, info, shape, fortran_order, dtype):
        if math.prod(shape) == 0:
            raise ValueError(f"{name} is of shape {shape} and holds nothing")
        order, offset = "F" if fortran_order else "C", member.tell()
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
    except Exception as error:  # whatever a damaged file does to the readers
        # The first line alone: numpy goes on to advise unpickling.
        reason = str(error).partition("\n")[0] if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"it cannot be read as an .npz archive: {reason}; write it with numpy.savez") from error


@contextlib.contextmanager
def _member(archive: zipfile.ZipFile, name: str
            ) -> Iterator[tuple[BinaryIO, zipfile.ZipInfo, tuple[int, ...], bool, np.dtype]]:
    """An array's file, open where its data begin, and what its header says, which has been checked."""
    info = archive.getinfo(name)
    if info.file_size > max(_UNSUSPICIOUS_BYTES, _MAX_COMPRESSION * os.path.getsize(archive.filename)):
        raise ValueError(f"{name} would unpack to {info.file_size} bytes, which is out of proportion to the file")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed by method {info.compress_type}, which numpy does not write")
    with archive.open(info) as member:
        version = npy.read_magic(member)
        if version not in _HEADER_READERS:
            raise ValueError(f"{name} has npy version {version}, which no plain array needs")
        shape, fortran_order, dtype = _HEADER_READERS[version](member)
        if dtype.hasobject:
            raise ValueError(f"{name} holds pickled objects, which are never loaded")
        # numpy takes the memory that a header asks for before it looks for the data. Items of no bytes could be any
        # number.
        present = info.file_size - member.tell()
        if min(shape, default=0) < 0 or dtype.itemsize == 0 or math.prod(shape) * dtype.itemsize != present:
            raise ValueError(f"{name} declares {dtype} {shape}, but {present} bytes of data follow")
        yield member, info, shape, fortran_order, dtype


def _check_once(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Reads an uncompressed member to its end, where zipfile compares the checksum: a memory map goes past that."""
    places, began, stamp = [remembered.at_home(path)], time.time_ns(), remembered.stamp(path.stat())
    known = remembered.recall(places, _VERSION) if stamp[0] > _REMEMBERED_BYTES else {}
    sound = known["members"] if known.get("stamp") == stamp else []
    if info.filename in sound:
        return
    # The bar appears where there is much to read.
    with archive.open(info) as member, tqdm(desc=f"checking {path}", total=info.file_size, unit="B", unit_scale=True,
                                            leave=False, delay=3, disable=None) as bar:
        while part := member.read(_PART):
            bar.update(len(part))
    if stamp[0] > _REMEMBERED_BYTES and remembered.is_settled(stamp, began):
        remembered.keep(places, _VERSION, {"path": str(path), "stamp": stamp, "members": [*sound, info.filename]})


def _start(path: Path, info: zipfile.ZipInfo) -> int:
    """Where in the archive the bytes of an uncompressed member begin: after its local header, of varying length."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        lengths = file.read(4)
    return info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with _member(archive, name) as (member, _, _, _, dtype):
        member.seek(0)
        array = npy.read_array(member, allow_pickle=False)
    if dtype.kind == "U":
        array.tolist()  # numpy looks at characters, and fails at those that do not exist, only here
    return array
