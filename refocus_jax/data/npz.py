"""Arrays of an `.npz` file of any origin. With `images`, the reader of bytes that others wrote."""

import math
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

_HEADER_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}

# Photographs hardly compress. An array of more bytes than this, and of so many times the bytes of its file, was made
# to fill the memory.
_UNSUSPICIOUS_BYTES = 2**30
_MAX_COMPRESSION = 100


def read(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Those of the named arrays that the file holds.

    Nothing is unpickled, and no memory is taken for data that are not there.

    Raises:
      ValueError: the file is no `.npz` archive, or one of the arrays is damaged, holds objects or would fill the
        memory. To name the file is left to the caller.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            held = set(archive.namelist())
            limit = max(_UNSUSPICIOUS_BYTES, _MAX_COMPRESSION * path.stat().st_size)
            return {name: _read_array(archive, f"{name}.npy", limit) for name in names if f"{name}.npy" in held}
    except Exception as error:  # whatever a damaged file does to the readers
        # The first line alone: numpy goes on to advise unpickling.
        reason = str(error).partition("\n")[0] if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"it cannot be read as an .npz archive: {reason}; write it with numpy.savez") from error


def _read_array(archive: zipfile.ZipFile, name: str, limit: int) -> np.ndarray:
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed by method {info.compress_type}, which numpy does not write")
    if info.file_size > limit:
        raise ValueError(f"{name} would unpack to {info.file_size} bytes, which is out of proportion to the file")
    with archive.open(info) as member:
        version = npy.read_magic(member)
        if version not in _HEADER_READERS:
            raise ValueError(f"{name} has npy version {version}, which no plain array needs")
        shape, _, dtype = _HEADER_READERS[version](member)
        if dtype.hasobject:
            raise ValueError(f"{name} holds pickled objects, which are never loaded")
        # numpy takes the memory that a header asks for before it looks for the data. Items of no bytes could be any
        # number.
        present = info.file_size - member.tell()
        if min(shape, default=0) < 0 or dtype.itemsize == 0 or math.prod(shape) * dtype.itemsize != present:
            raise ValueError(f"{name} declares {dtype} {shape}, but {present} bytes of data follow")
        member.seek(0)
        array = npy.read_array(member, allow_pickle=False)
    if dtype.kind == "U":
        array.tolist()  # numpy looks at characters, and fails at those that do not exist, only here
    return array
