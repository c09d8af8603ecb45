"""PyTorch's `.pth` files, read without PyTorch and without running their code.

A `.pth` file is a zip of one pickle and the raw bytes of every storage; before PyTorch 1.6, the bytes simply followed
the pickle. A pickle is a program. This module reads it with an unpickler that knows only the few names that a state
dict needs. All other names become inert placeholders, and nothing is imported, so that a hostile file ends in an error.
No maintained library does this without torch.
"""

import collections
import io
import math
import mmap
import os
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

import ml_dtypes
import numpy as np

# torch's storage classes by name. numpy itself has no bfloat16.
_STORAGES = {
    "DoubleStorage": np.dtype(np.float64), "FloatStorage": np.dtype(np.float32), "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16), "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32), "ShortStorage": np.dtype(np.int16), "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8), "BoolStorage": np.dtype(np.bool_),
}


class _StorageType(NamedTuple):
    dtype: np.dtype


class _Storage(NamedTuple):
    """Refers to the numbers of a storage, which are stored outside the pickle."""

    key: str
    dtype: np.dtype
    numel: int


class Tensor(NamedTuple):
    """A tensor as the unpickler returns it: not yet an array, because numpy's `__setstate__` trusts its input."""

    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple

    def array(self, content: memoryview) -> np.ndarray:
        """Returns the tensor as a view of the storage's bytes.

        Raises:
          ValueError: The tensor reaches outside its storage.
        """
        sizes = (self.offset, *self.shape, *self.strides)
        if len(self.shape) != len(self.strides) or any(type(n) is not int or n < 0 for n in sizes):
            raise ValueError(f"a tensor of shape {self.shape} has strides {self.strides} and offset {self.offset}")
        values = np.frombuffer(content, self.storage.dtype)
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        count = math.prod(self.shape)
        # The tensor may not have more elements than its storage: an expanded one could ask for any amount of memory.
        if count and (last >= values.size or count > values.size):
            raise ValueError(f"a tensor of shape {self.shape} reaches outside its storage of {values.size} numbers")
        if not count:
            return np.zeros(self.shape, self.storage.dtype)
        strides = [step * values.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(values[self.offset:], self.shape, strides, writeable=False)


def _rebuild_tensor(storage, offset, shape, strides, *_) -> Tensor:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor has no storage")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor, *_):
    return tensor


class Inert:
    """Placeholder for any name in a pickle that a state dict does not need.

    Training states hold such objects next to their state dicts. It accepts all calls that an unpickler makes, and does
    nothing. Each name gets its own subclass.

    Attributes:
      asked: The name.
    """

    asked = ""

    def __new__(cls, *args, **kwargs):
        """Makes a placeholder from any arguments."""
        return object.__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def _take(self, *args, **kwargs):
        pass

    __call__ = __setstate__ = __setitem__ = append = extend = add = update = _take


class _StateDictUnpickler(pickle.Unpickler):
    """Knows dictionaries, tensors and parameters; every other name becomes an `Inert`, and is never imported."""

    _GLOBALS: ClassVar[dict[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        **{("torch", name): _StorageType(dtype) for name, dtype in _STORAGES.items()},
    }

    def __init__(self, file: IO[bytes]):
        _check_opcodes(file)
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}  # all storages that the pickle names
        self._inert: dict[tuple[str, str], type] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Returns the object for a known name and a placeholder class for any other."""
        if known := self._GLOBALS.get((module, name)):
            return known
        return self._inert.setdefault((module, name), type("Inert", (Inert,), {"asked": f"{module}.{name}"}))

    def persistent_load(self, pid: Any) -> _Storage:
        """Returns the storage that a persistent id refers to."""
        kind, storage_type, key, _, count, *view = pid  # before PyTorch 1.6, `view` told what a storage is a view of
        if kind != "storage" or not isinstance(storage_type, _StorageType) or any(view):
            raise pickle.UnpicklingError(f"it refers to {kind!r}, which is not a storage")
        storage = _Storage(key, storage_type.dtype, count)
        if self.storages.setdefault(key, storage) != storage:
            raise pickle.UnpicklingError(f"storage {key} is named twice with different types or sizes")
        return storage


def _check_opcodes(file: IO[bytes]) -> None:
    """Refuses a pickle whose memo has an index larger than the number of steps so far.

    The unpickler allocates memory for all indices up to the largest. The file's position stays the same.
    """
    begin = file.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if "PUT" in opcode.name and argument is not None and int(argument) > count:
            raise pickle.UnpicklingError(f"its step {count} stores an object in the memo under the number {argument}")
    file.seek(begin)


# Selects the wanted tensors, by name, from the unpickled object.
Choose = Callable[[Any], dict[str, Tensor]]
# A function for every name that returns the array, which cannot be written to.
Readers = dict[str, Callable[[], np.ndarray]]


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _release(mapping: mmap.mmap) -> None:
    """Gives back the memory of what has been read so far; what is still needed of it is read from the file again."""
    if hasattr(mapping, "madvise"):
        mapping.madvise(mmap.MADV_DONTNEED)


def _readers(mapping: mmap.mmap, tensors: Mapping[str, Tensor], contents: Mapping[str, memoryview]) -> Readers:
    """Makes the readers of tensors from the contents of their storages, which lie in the mapped file."""

    def read(array: np.ndarray) -> np.ndarray:
        _release(mapping)
        return array

    return {name: partial(read, tensor.array(contents[tensor.storage.key])) for name, tensor in tensors.items()}


def _content(memory: memoryview, entry: zipfile.ZipInfo) -> memoryview:
    """Returns the bytes of an entry that is not compressed.

    They begin after its local header, whose last two fields are lengths.

    Raises:
      ValueError: They are not those that were written.
    """
    name, extra = struct.unpack_from("<HH", memory, entry.header_offset + 26)
    begin = entry.header_offset + 30 + name + extra
    content = memory[begin:begin + entry.file_size]
    if zlib.crc32(content) != entry.CRC:
        raise ValueError(f"its entry {entry.filename} is damaged: it has another checksum")
    return content


def read_zip(path: Path, choose: Choose) -> Readers:
    """Opens the arrays that `choose` selects from the unpickled object, and no others."""
    mapping = _mapped(path)
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it was not written by torch.save")
        # torch.save does not compress; a compressed entry could expand to any size.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("its entries are compressed, which torch.save never does")
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError("its entries share bytes, which never happens in a file from torch.save")
        root = pickles[0].removesuffix("/data.pkl")
        byteorder = f"{root}/byteorder"
        if byteorder in archive.namelist() and archive.read(byteorder) != b"little":
            raise ValueError("it was written on a big-endian machine")
        unpickler = _StateDictUnpickler(io.BytesIO(archive.read(pickles[0])))
        chosen = choose(unpickler.load())
        contents = {}
        for storage in {tensor.storage for tensor in chosen.values()}:
            contents[storage.key] = _content(memoryview(mapping), archive.getinfo(f"{root}/data/{storage.key}"))
            _check_size(storage, len(contents[storage.key]))
            _release(mapping)
    return _readers(mapping, chosen, contents)


# A file of PyTorch before 1.6 begins with two pickled numbers: one that marks it, and the version of its format.
_SEQUENCE_MAGIC, _SEQUENCE_VERSION = 0x1950A86A20F9469CFC6C, 1001


def read_sequence(path: Path, choose: Choose) -> Readers:
    """As `read_zip`, for files of PyTorch before 1.6: consecutive pickles, then every storage with its length."""
    with open(path, "rb") as file:
        magic, version, system = (_StateDictUnpickler(file).load() for _ in range(3))
        if asked := [value.asked for value in (magic, version, system) if isinstance(value, Inert)]:
            raise ValueError(f"it asks for {asked[0]}, which no state dict needs")
        if magic != _SEQUENCE_MAGIC or version != _SEQUENCE_VERSION or not system["little_endian"]:
            raise ValueError("it was not written by torch.save on a little-endian machine")
        unpickler = _StateDictUnpickler(file)
        chosen, keys = choose(unpickler.load()), _StateDictUnpickler(file).load()
        mapping, contents = _mapped(path), {}
        for key in keys:
            storage = unpickler.storages[key]
            length = storage.numel * storage.dtype.itemsize
            _check_size(storage, storage.dtype.itemsize * int.from_bytes(file.read(8), "little"))
            contents[key] = memoryview(mapping)[file.tell():file.tell() + length]
            _check_size(storage, len(contents[key]))
            file.seek(length, os.SEEK_CUR)
    return _readers(mapping, chosen, contents)


def _check_size(storage: _Storage, size: int) -> None:
    if size != storage.numel * storage.dtype.itemsize:
        raise ValueError(f"storage {storage.key} holds {size} bytes, not {storage.numel} numbers")
